"""The tables of docs and README, each a function of what the machines measured."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import scores
from benchmarks.aims import AIMS, NOT_MEASURED
from benchmarks.machine import OF_PEAK, PEAKS, utilisation
from benchmarks.peers import OURS
from benchmarks.rows import short

# The results of every machine, by its name.
Results = Mapping[str, Mapping[str, Any]]
Table = Callable[[Results], str]


def aims(results: Results) -> str:
    """What is to be reached on a CPU, and what each machine measured that is one."""
    results = {name: result for name, result in results.items() if "cpu" in result["device"].lower()}
    lines = [
        (aim.work, aim.against, aim.goal, *(aim.reached(result["rows"]) for result in results.values()))
        for aim in AIMS
    ]  # fmt: skip
    return markdown(("work", "against", "at least", *results), lines)


def compared(benchmark: str, direction: str | None = None) -> Table:
    """The table of a benchmark: our time, each peer's over it with its 95 % interval, and the temporary memory.

    What an accelerator's profiler timed is called device time; in such a line a ratio of times on the wall says so.
    """

    def table(results: Results) -> str:
        rows = [(name, row) for name, row in _rows(results, benchmark) if direction in (None, row["direction"])]
        groups: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
        for machine, row in rows:
            group = row["case"], f"{row['direction']}, {row['dtype']}", machine
            groups.setdefault(group, {})[row["implementation"]] = row
        columns = dict.fromkeys([OURS, *(row["implementation"] for _, row in rows)])
        lines = [
            (
                case,
                what + ", device time" * _profiled(found),
                machine,
                *(_cell(found.get(name), found) for name in columns),
            )
            for (case, what, machine), found in groups.items()
        ]
        return markdown(("case", "of what", "machine", *columns), lines)

    return table


def transformer(results: Results) -> str:
    """The training steps, and which share of its peak a GPU whose data sheet is known reached in bfloat16."""
    lines = [compared("transformer")(results)]
    for machine, row in _rows(results, "transformer"):
        known = machine in PEAKS and row["roof_fraction"] is not None
        if known and row["implementation"] == OURS and row["dtype"] == "bfloat16":
            share = utilisation(row["roof_fraction"], results[machine]["runs"][row["run"]]["roofs"], machine)
            lines.append(f"Model FLOP utilisation of {row['case']}: {share:.1%} ({machine}, {OF_PEAK}).")
    return "\n\n".join(lines)


def hard(results: Results) -> str:
    """Bias, variance and time of every estimator, from the newest run."""
    machine, rows = newest(results, "hard")
    lines = [
        (
            row["case"].partition(",")[0],
            row["implementation"],
            f"{100 * row['error_vs_reference']:.1f}{' (biased)' * (row['error_vs_reference'] > row['bias_bound'])}",
            f"{100 * row['bias_bound']:.1f}",
            f"{row['variance']:.2f}",
            "" if row["snr"] is None else f"{row['snr']:.2f}",
            f"{row['ratio']:.2f}",
        )
        for row in rows
    ]
    heads = "gradient of", "estimator", "bias, %", "seen from, %", "variance", "signal to noise", "time over soft"
    drawn = f"{rows[0]['samples']:,} gradients of each" if rows else ""
    return markdown(heads, lines, source(results, machine, rows, drawn))


def glimpse_large(results: Results) -> str:
    """Time, operations and memory of a training step against the side of the canvas, from the newest run."""
    machine, rows = newest(results, "glimpse_large")
    rows = [row for row in rows if row["direction"] == "forward+gradient"]
    lines = [
        (
            row["side"],
            "glimpses" if row["implementation"] == OURS else row["implementation"],
            f"{row['median_ms']:.0f} ms",
            f"{row['flops'] / 1e9:.2f}",
            megabytes(row["temporary_bytes"]),
        )
        for row in rows
    ]
    return markdown(("side", "model", "training step", "GFLOP", "temporaries"), lines, source(results, machine, rows))


def pipelines(results: Results) -> str:
    """Examples a second, padding and shapes of every pipeline, beside plain loops."""
    lines = [
        (
            row["case"],
            machine,
            row["implementation"],
            f"{row['examples_per_second']:,.0f}",
            f"{row['padding_waste']:.1%}",
            row["shapes"],
            ratio(row),
        )
        for machine, row in _rows(results, "input")
    ]
    heads = "pipeline", "machine", "read by", "examples a second", "padding", "shapes", "its time over ours"
    return markdown(heads, lines)


def startup(results: Results) -> str:
    """The time of imports and first steps."""
    lines = [
        (
            row["case"],
            row["implementation"],
            machine,
            f"{row['median_ms'] / 1e3:.2f} s",
            f"{row['cpu_ms'] / 1e3:.2f} s",
            "" if row["beyond_ms"] is None else f"{row['beyond_ms'] / 1e3:.2f} s",
        )
        for machine, row in _rows(results, "startup")
    ]
    return markdown(("until", "of what", "machine", "time", "processor time", "beyond jax and flax"), lines)


def growth(results: Results) -> str:
    """Time, memory and growth of every mechanism, from the newest run."""
    machine, rows = newest(results, "scores")
    heads, *lines = scores.table(rows)
    shape = rows[0]["case"] if rows else ""
    return markdown(heads, lines, source(results, machine, rows, shape))


def machines(results: Results) -> str:
    """What was measured where, when, with which versions, and what the machine could do then."""
    lines = []
    for machine, result in results.items():
        for ended, run in result["runs"].items():
            names = dict.fromkeys(row["benchmark"] for row in result["rows"] if row["run"] == ended)
            roofs, versions = run["roofs"], run["versions"]
            peers = [f"{name} {versions[name]}" for name in ("tokamax", "torch", "keras") if name in versions]
            lines.append(
                (
                    machine,
                    ", ".join(names),
                    ended[:10],
                    run.get("commit") or "",
                    ", ".join([f"jax {versions['jax']}", f"Python {versions['python']}", *peers]),
                    f"{roofs['matmul_gflops']:.0f} GFLOP/s",
                    f"{roofs['copy_gb_per_s']:.1f} GB/s",
                    f"{roofs['tanh_g_per_s']:.2f} G/s",
                    run.get("note", ""),
                )
            )
    heads = "machine", "benchmarks", "measured", "commit", "versions", "matrix product", "copy", "tanh", "note"
    return markdown(heads, lines)


def newest(results: Results, benchmark: str) -> tuple[str, list[dict[str, Any]]]:
    """The machine whose run of a benchmark is the newest, and its rows; no rows where there is no such run."""
    ended: dict[str, str] = {}
    for machine, row in _rows(results, benchmark):
        ended[machine] = max(ended.get(machine, ""), row["run"])
    machine = max(ended, key=ended.__getitem__, default="")
    return machine, [row for name, row in _rows(results, benchmark) if name == machine]


def source(results: Results, machine: str, rows: Sequence[Mapping[str, Any]], more: str = "") -> str:
    """One line that says where rows of one machine come from."""
    if not rows:
        return ""
    runs = {row["run"]: results[machine]["runs"][row["run"]] for row in rows}
    words = [f"jax {run['versions']['jax']}, {ended[:10]}" for ended, run in runs.items()]
    notes = [run["note"] for run in runs.values() if "note" in run]
    return (
        "; ".join([f"Measured on {machine}", *dict.fromkeys(words), *dict.fromkeys(notes), *([more] if more else [])])
        + "."
    )


def markdown(heads: Sequence[str], lines: Sequence[Sequence[Any]], below: str = "") -> str:
    """A table, and a line below it; one sentence where there is no line."""
    if not lines:
        return f"{NOT_MEASURED.capitalize()} yet."
    rows = [heads, ["---"] * len(heads), *lines]
    table = "\n".join(
        "|" + "|".join(f" {cell} " if cell != "---" else cell for cell in map(str, row)) + "|" for row in rows
    )
    return f"{table}\n\n{below}" if below else table


def milliseconds(time: float) -> str:
    """A time, whole milliseconds from ten on, microseconds below one."""
    return f"{time:.0f} ms" if time >= 10 else f"{short(time)} ms"


def ratio(row: Mapping[str, Any]) -> str:
    """A ratio with its interval, where it has one."""
    low, high = row.get("ratio_low"), row.get("ratio_high")
    interval = "" if low is None or high is None else f" ({low:.2f} - {high:.2f})"
    return f"{row['ratio']:.2f}{interval}"


def megabytes(size: int) -> str:
    """Bytes as megabytes: whole ones from ten on."""
    return f"{size / 1e6:.{0 if size >= 1e7 else 1}f} MB"


def _rows(results: Results, benchmark: str) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a benchmark with their machines: case by case, in a case and direction machine by machine."""
    found = [(machine, row) for machine, result in results.items() for row in result["rows"]]
    found = [(machine, row) for machine, row in found if row["benchmark"] == benchmark]
    places = {place: number for number, place in enumerate(dict.fromkeys(_place(row) for _, row in found))}
    return sorted(found, key=lambda pair: places[_place(pair[1])])


def _place(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["case"], row["direction"]


def _profiled(group: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether any of the rows measured beside each other is timed by the profiler."""
    return any(row.get("timed_by") == "profiler" for row in group.values())


def _cell(row: Mapping[str, Any] | None, group: Mapping[str, Mapping[str, Any]]) -> str:
    """A time, or a ratio with its interval; the rate, where there is one; and the temporaries."""
    if row is None:
        return ""
    words = milliseconds(row["median_ms"]) if row["implementation"] == OURS else ratio(row)
    words += " on the wall" * (_profiled(group) and row.get("timed_by") != "profiler")
    rate = f", {row['tokens_per_second']:,} tokens/s" if "tokens_per_second" in row else ""
    memory = "" if row.get("temporary_bytes") is None else f", {megabytes(row['temporary_bytes'])}"
    return words + rate + memory


TABLES: dict[str, Table] = {
    "aims": aims,
    "additive": compared("additive"),
    "attention": compared("attention", "forward+gradient"),
    "captioner": compared("captioner"),
    "decode": compared("decode"),
    "glimpse_large": glimpse_large,
    "hard": hard,
    "input": pipelines,
    "kernels": compared("kernels"),
    "loss": compared("loss"),
    "machines": machines,
    "multihead": compared("multihead"),
    "recurrent": compared("recurrent"),
    "scores": growth,
    "seq2seq": compared("seq2seq"),
    "startup": startup,
    "transformer": transformer,
}
