"""The tables of docs and README: each by hand from a few rows, and the verdicts on what is to be reached."""

from benchmarks import attention, machine, record, tables
from benchmarks.aims import AIMS, Aim, Limit
from benchmarks.peers import OURS
from tests.measured import result, row


def test_a_table_of_ratios_by_hand():
    one, two = result(row(), row("peer", 2.0, temporary_bytes=164_000_000)), result(row(median_ms=1234.5))
    two["rows"].append(row("new", 0.5, ratio_low=None, ratio_high=None, temporary_bytes=None))
    assert tables.compared("sine")({"Abacus": one, "Quipu": two}).splitlines() == [
        "| case | of what | machine | attention_zoo | peer | new |",
        "|---|---|---|---|---|---|",
        "| B2 | forward+gradient, float32 | Abacus | 7.0 ms, 3.0 MB | 2.00 (1.80 - 2.20), 164 MB |  |",
        "| B2 | forward+gradient, float32 | Quipu | 1234 ms, 3.0 MB |  | 0.50 |",
    ]
    assert tables.compared("sine", "forward")({"Abacus": one}) == "Not measured yet."
    fast = result(row(benchmark="decode", tokens_per_second=1234))
    assert tables.TABLES["decode"]({"Abacus": fast}).endswith("| 7.0 ms, 1,234 tokens/s, 3.0 MB |")


def test_a_table_says_who_was_timed_by_the_profiler():
    timed = {"timed_by": "profiler", "median_ms": 0.0414}
    one = result(row(**timed), row("peer", 2.0, **timed), row("else", timed_by="wall"), row(case="B3", timed_by="wall"))
    assert tables.compared("sine")({"Abacus": one}).splitlines()[2:] == [
        "| B2 | forward+gradient, float32, device time | Abacus | 0.041 ms, 3.0 MB | 2.00 (1.80 - 2.20), 3.0 MB "
        "| 1.00 (0.90 - 1.10) on the wall, 3.0 MB |",
        "| B3 | forward+gradient, float32 | Abacus | 7.0 ms, 3.0 MB |  |  |",
    ]


def test_a_gpus_table_says_which_share_of_its_peak_was_reached():
    ours = row(benchmark="transformer", dtype="bfloat16", roof_fraction=0.5)
    gpu = result(ours, row("peer", 2.0, benchmark="transformer", dtype="bfloat16", roof_fraction=0.25))
    for run in gpu["runs"].values():
        run["roofs"] = {**run["roofs"], "matmul_gflops": 494_700.0}
    lines = tables.TABLES["transformer"]({"NVIDIA H200": gpu, "Abacus": result(ours)}).splitlines()
    assert lines[-2:] == ["", f"Model FLOP utilisation of B2: 25.0% (NVIDIA H200, {machine.OF_PEAK})."]


def test_an_aim_is_judged_by_the_fastest_peer_and_its_memory():
    rows = [row(temporary_bytes=1), row("slow", 3.0), row("fast", 1.42, temporary_bytes=50), row("else", 0.1)]
    rows += [row(case="B7", temporary_bytes=1000), row("fast", 5.0, case="B7", temporary_bytes=3000)]
    rows += [row(case="B3", dtype="bfloat16"), row("fast", 9.0, case="B3", dtype="bfloat16")]

    def reached(least, share=None, cases=("B2",)):
        return Aim("work", "peers", least, "sine", cases, "slow|fast", share).reached(rows)

    assert reached(1.4) == "1.42 (fast)"
    assert reached(1.5) == "1.42 (fast), missed"
    assert reached(1.4, 1 / 20) == "1.42 (fast), temporaries 1/50"
    assert reached(1.4, 1 / 60) == "1.42 (fast), temporaries 1/50, missed"
    assert reached(1.4, 1 / 20, cases=("B[27]",)) == "1.42 (fast), temporaries 1/50"
    assert reached(1.4, cases=("B2", "B3")) == "1.42 (fast) / not measured"
    assert reached(1.4, cases=("B3", "B4")) == "not measured"
    rows[2]["roof_fraction"] = 0.7
    assert reached(1.42) == "1.42 (fast)"
    assert reached(1.43) == "1.42 (fast), missed (the peer is at 70% of the roof)"
    rows[2]["roof_fraction"] = 0.69
    assert reached(1.43) == "1.42 (fast), missed"


def test_a_limit_is_judged_by_the_largest_figure():
    rows = [row(waste=0.04), row(waste=0.08), row("peer", waste=0.5), row(waste=0.9, case="B3"), row(waste=None)]
    limit = Limit("work", 0.1, "{:.0%}", "sine", "B2", "waste")
    assert (limit.goal, limit.reached(rows)) == ("at most 10%", "8%")
    assert Limit("work", 0.05, "{:.0%}", "sine", "B2", "waste").reached(rows) == "8%, missed"
    assert Limit("work", 0.1, "{:.0%}", "sine", "B2", "time").reached(rows) == "not measured"
    assert Limit("work", 0.1, "{:.0%}", "sine", "B2", "waste", "peer").reached(rows) == "50%, missed"


def test_the_newest_run_of_a_benchmark_is_shown():
    early, late = (
        result(row(run="2026-01-02")),
        result(row(run="2026-03-04"), row(benchmark="cosine", run="2025-01-01")),
    )
    both = {"Abacus": late, "Quipu": early}
    assert tables.newest(both, "sine") == ("Abacus", late["rows"][:1])
    assert tables.newest({"Quipu": early}, "cosine") == ("", [])
    assert (
        tables.source(both, "Abacus", late["rows"][:1], "more") == "Measured on Abacus; jax 0.10.2, 2026-03-04; more."
    )


def test_a_table_of_estimators_by_hand():
    noise = {
        "benchmark": "hard",
        "case": "bound, B4",
        "error_vs_reference": 0.0331,
        "bias_bound": 0.09,
        "samples": 20_000,
    }
    one = result(
        row("plain", 1.158, variance=15.58, snr=0.0449, **noise),
        row("soft", **{**noise, "bias_bound": 0.0}, variance=0.0, snr=None),
    )
    assert tables.hard({"Abacus": one}).splitlines()[2:] == [
        "| bound | plain | 3.3 | 9.0 | 15.58 | 0.04 | 1.16 |",
        "| bound | soft | 3.3 (biased) | 0.0 | 0.00 |  | 1.00 |",
        "",
        "Measured on Abacus; jax 0.10.2, one; 20,000 gradients of each.",
    ]


def test_a_table_of_growth_by_hand():
    grown = {f"{what}_growth": {"T": 1.0, "S": None, "D": 0.5} for what in ("time", "temporaries", "flops")}
    both = [row("dot", benchmark="scores", direction=direction, loop=True, **grown)
            for direction in ("forward", "forward+gradient")]  # fmt: skip
    assert tables.TABLES["scores"]({"Abacus": result(*both)}).splitlines()[2:] == [
        "| dot | 7.00 | 1.00 | 7.00 | 1.00 | 3.0 | 1.00, ?, 0.50 | 1.00, ?, 0.50 | 1.00, ?, 0.50 * |",
        "",
        "Measured on Abacus; jax 0.10.2, one; B2.",
    ]
    assert tables.TABLES["scores"]({}) == "Not measured yet."


def test_tables_of_pipelines_and_of_startup_by_hand():
    read = row(benchmark="input", case="dates", examples_per_second=12345.6, padding_waste=0.0449, shapes=5)
    begun = row(
        "attention_zoo.models",
        1.5,
        benchmark="startup",
        case="import",
        median_ms=2345.0,
        cpu_ms=1999.0,
        beyond_ms=601.0,
    )
    first = row(benchmark="startup", case="first step", median_ms=9000.0, cpu_ms=8000.0, beyond_ms=None)
    results = {"Abacus": result(read, begun, first)}
    assert tables.TABLES["input"](results).splitlines()[2:] == [
        "| dates | Abacus | attention_zoo | 12,346 | 4.5% | 5 | 1.00 (0.90 - 1.10) |"
    ]
    assert tables.TABLES["startup"](results).splitlines()[2:] == [
        "| import | attention_zoo.models | Abacus | 2.35 s | 2.00 s | 0.60 s |",
        "| first step | attention_zoo | Abacus | 9.00 s | 8.00 s |  |",
    ]
    verdicts = [aim.reached(results["Abacus"]["rows"]) for aim in AIMS if isinstance(aim, Limit)]
    assert verdicts == ["601 ms", "not measured"]
    slow = next(aim for aim in AIMS if isinstance(aim, Limit)).reached([{**begun, "beyond_ms": 1501.0}])
    assert slow == "1501 ms, missed"


def test_every_aim_is_of_a_benchmark_and_names_what_it_measures():
    """Each against rows as the benchmarks name them."""
    torch, jax = ("torch", "PyTorch", "torch.compile"), ("flax.linen", "jax.nn", "tokamax", "plain JAX", "keras")
    cases = {
        "attention": [f"{shape} {mask}" for shape in ("B8 H8 T512 D64", "B1 H8 T4096 D64") for mask in attention.CASES],
        "additive": ["B32 T50 S50 D256"],
        "recurrent": ["lstm, bidirectional, full, B64 S30 I512 D512"],
        "seq2seq": ["B64 S30 T30 N8000"],
        "transformer": ["encoder-decoder, B32 S64 T64 D256 N8000"],
        "decode": ["beam 5 B64 S29"],
        "loss": ["B64 T30 D512 N8000", "B64 T30 D512 N32000"],
    }
    names = (OURS, *torch, *jax, "JoeyNMT", "flax wmt", "optax")
    rows = [row(name, 9.0 * (name != OURS), case=case, benchmark=benchmark, temporary_bytes=100 - 99 * (name == OURS))
            for benchmark, several in cases.items() for case in several for name in names]  # fmt: skip
    verdicts = [aim.reached(rows) for aim in AIMS if isinstance(aim, Aim)]
    assert len(verdicts) >= 12 and not [words for words in verdicts if "not measured" in words or "missed" in words]
    (eager,) = (aim for aim in AIMS if aim.against == "eager PyTorch")
    assert "compile" not in eager.reached(
        [*rows, row("torch.compile", 0.1, case="B64 S30 T30 N8000", benchmark="seq2seq")]
    )


def test_a_table_of_canvases_by_hand():
    cost = {"benchmark": "glimpse_large", "side": 64, "flops": 3.8e8}
    one = result(row(**cost, direction="forward"), row(**cost), row("whole", **{**cost, "temporary_bytes": 16.4e6}))
    assert tables.glimpse_large({"Abacus": one}).splitlines()[2:4] == [
        "| 64 | glimpses | 7 ms | 0.38 | 3.0 MB |",
        "| 64 | whole | 7 ms | 0.38 | 16 MB |",
    ]


def test_what_glimpses_compute_does_not_depend_on_the_canvas_as_the_page_says():
    rows = tables.newest(record.read_all(), "glimpse_large")[1]
    flops = {(one["implementation"], one["direction"]): set() for one in rows}
    for one in rows:
        flops[one["implementation"], one["direction"]].add(one["flops"])
    ours = {name: len(found) for name, found in flops.items() if name[0] == "attention_zoo"}
    assert ours == {("attention_zoo", "forward"): 1, ("attention_zoo", "forward+gradient"): 1}
    assert all(len(found) > 1 for name, found in flops.items() if name not in ours)
