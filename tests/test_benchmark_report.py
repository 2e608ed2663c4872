"""What the machines measured is what README and docs show: recording, merging, the tables, and the pages themselves."""

import json
from types import SimpleNamespace

import jax
import pytest

from attention_zoo.training.errors import UserError
from benchmarks import __main__ as command
from benchmarks import additive, attention, record, report
from benchmarks.__main__ import main
from benchmarks.rows import Row
from tests.measured import ROOFS, result, row


def measured(**others):
    return Row(**{name: one for name, one in row(**others).items() if name != "run"}, low_ms=6.0, high_ms=8.0)


def test_the_pages_show_what_the_machines_measured(capsys):
    """Mended by `python -m benchmarks report`."""
    assert main(["report", "--check"]) == 0, capsys.readouterr().err


def test_every_result_is_whole_and_named_after_its_machine():
    for path in record.RESULTS.iterdir():
        found = record.read(path)
        assert path.name == f"{record.slug(found['machine'])}.json"
        assert {name for run in found["runs"].values() for name in run} <= {"commit", "versions", "roofs", "note"}


def test_new_rows_replace_those_measured_beside_each_other_and_no_others():
    old = result(row(), row("peer", 2.0), row(case="B3", run="two"), row(dtype="bfloat16"))
    new = [{**row(), "median_ms": 5.0}, row("other", 3.0)]
    found = record.merged(old, new, "now", {"versions": {}, "roofs": {}})
    assert [(one["implementation"], one["case"], one["dtype"], one["run"]) for one in found["rows"]] == [
        ("attention_zoo", "B2", "float32", "now"),
        ("other", "B2", "float32", "now"),
        ("attention_zoo", "B3", "float32", "two"),
        ("attention_zoo", "B2", "bfloat16", "one"),
    ]
    assert found["rows"][0]["median_ms"] == 5.0 and found["runs"].keys() == {"one", "two", "now"}
    again = record.merged(found, [row(dtype="bfloat16")], "later", {})
    assert again["runs"].keys() == {"two", "now", "later"}


def test_recorded_rows_are_read_again_and_those_of_other_runs_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "machine", lambda: "Abacus, 1 core")
    first, second = measured(case="B2"), measured(case="B3")
    path = record.record([first], ROOFS, tmp_path)
    assert path == tmp_path / "abacus-1-core.json" and record.record([second], {}, tmp_path) == path
    (found,) = record.read_all(tmp_path).values()
    assert [one["case"] for one in found["rows"]] == ["B2", "B3"]
    assert found["rows"][0]["roof"] is None and found["rows"][0]["high_ms"] == 8.0
    assert {"jax", "flax"} <= next(iter(found["runs"].values()))["versions"].keys()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("text", ["", "[]", '{"rows": []}', json.dumps({**result(row()), "runs": {}})])
def test_a_damaged_result_is_one_sentence_and_stays(text, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "machine", lambda: "Abacus")
    (tmp_path / "abacus.json").write_text(text)
    with pytest.raises(UserError, match=r"abacus\.json holds no results of a machine"):
        record.record([], {}, tmp_path)
    assert (tmp_path / "abacus.json").read_text() == text


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("model name\t: Intel(R) Xeon(R) CPU E5-2686 v4 @ 2.30GHz", "Intel Xeon E5-2686 v4"),
        ("model name\t: AMD EPYC Processor", "AMD EPYC"),
        ("cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC Processor", "AMD EPYC (family 25, model 17)"),
        ("cpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC 7B13", "AMD EPYC 7B13"),
    ],
)
def test_a_processors_name_has_no_trade_marks_and_tells_generations_apart(line, name, tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\n{line}\nflags\t: fpu\n\npower management:\n")
    assert record.processor_name(file) == name
    assert record.slug("AMD EPYC (family 25, model 1), 2 cores") == "amd-epyc-family-25-model-1-2-cores"


def test_the_pages_take_in_an_accelerator(tmp_path, monkeypatch):
    """Its results beside the recorded ones, in every page; its float32 is not judged by what a CPU is to reach."""
    old = {page: page.read_text(encoding="utf-8") for page in report.pages(report.ROOT)}
    for path in record.RESULTS.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind="NVIDIA Zither 8 GB")])
    plain = {"case": "B8 H8 T512 D64 plain", "benchmark": "attention"}
    half = {**plain, "dtype": "bfloat16"}
    door = {**half, "case": f"cudnn, {plain['case']}", "benchmark": "kernels"}
    device = {"timed_by": "profiler", "median_ms": 0.0414}
    rows = [measured(**half, **device), measured(implementation="PyTorch", ratio=0.875, **half)]
    rows += [measured(**door, **device), measured(**plain), measured(implementation="jax.nn", ratio=9.0, **plain)]
    path = record.record(rows, ROOFS, tmp_path)
    results = record.read_all(tmp_path)
    assert path.name == "nvidia-zither-8-gb.json" and "NVIDIA Zither 8 GB" in results
    new = "".join(report.filled(text, results, page.name) for page, text in old.items())
    gone = set("".join(old.values()).splitlines()) - set(new.splitlines())
    cases = [line for line in new.splitlines() if "| NVIDIA Zither 8 GB |" in line]
    assert [line.split("|")[2:5] for line in cases[:3]] == [
        [" forward+gradient, bfloat16, device time ", " NVIDIA Zither 8 GB ", " 0.041 ms, 3.0 MB "],
        [" forward+gradient, float32 ", " NVIDIA Zither 8 GB ", " 7.0 ms, 3.0 MB "],
        [" forward+gradient, bfloat16, device time ", " NVIDIA Zither 8 GB ", " 0.041 ms, 3.0 MB "],
    ]
    assert "0.88 (0.79 - 0.96) on the wall, 3.0 MB" in cases[0] and gone <= {"Not measured yet."}
    assert not [line for line in new.splitlines() if "at least" in line and "Zither" in line]


def test_the_command_records_and_refuses_what_is_only_a_try(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "roofs", lambda dtype: {**ROOFS, "of": dtype})
    assert main(["additive", "--sizes", "small", "--record"]) == 2
    assert "error: --record keeps what was measured at the sizes paper and long" in capsys.readouterr().err
    rows = [measured(benchmark="additive"), measured(benchmark="additive", implementation="peer")]
    monkeypatch.setattr(additive, "benchmark", lambda size, repetitions, **options: rows)
    given = ["additive", "--sizes", "paper", "--dtype", "bfloat16"]
    for less in (["--peers", "plain JAX"], ["--repetitions", "5"]):
        assert main([*given, *less, "--record"]) == 2
    assert main(given) == 0 and not list(tmp_path.iterdir())
    assert main([*given, "--record"]) == 0
    (found,) = record.read_all(tmp_path).values()
    assert [one["implementation"] for one in found["rows"]] == ["attention_zoo", "peer"]
    assert [run["roofs"]["of"] for run in found["runs"].values()] == ["bfloat16"]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(UserError("attention: peer differs"), 2, "peer differs"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_what_was_measured_outlives_what_fails_after_it(error, code, said, tmp_path, monkeypatch, capsys):
    def failing(size, repetitions, **options):
        yield measured(benchmark="attention", case="B5")
        raise error

    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "roofs", lambda dtype: ROOFS)
    monkeypatch.setattr(additive, "benchmark", lambda size, repetitions, **options: [measured(benchmark="additive")])
    monkeypatch.setattr(attention, "benchmark", failing)
    file = tmp_path / "rows.txt"
    assert main(["additive", "attention", "--sizes", "paper", "--record", "--json", str(file)]) == code
    out, err = capsys.readouterr()
    assert said in err and "B5" in out
    (found,) = record.read_all(tmp_path).values()
    assert len(found["rows"]) == 2 == len(json.loads(file.read_text())["rows"])


def test_a_page_keeps_all_but_its_tables():
    page = (
        "Before.\n<!-- benchmarks: a -->\nold\n<!-- end -->\nBetween `<!-- benchmarks: x`.\n"
        "<!-- benchmarks: b -->\n<!-- end -->"
    )
    made = {"a": lambda results: "A", "b": lambda results: "B"}
    new = report.filled(page, {}, "page", made)
    assert new == (
        "Before.\n<!-- benchmarks: a -->\n\nA\n\n<!-- end -->\nBetween `<!-- benchmarks: x`.\n"
        "<!-- benchmarks: b -->\n\nB\n\n<!-- end -->"
    )
    assert report.filled(new, {}, "page", made) == new


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        ("<!-- benchmarks: a -->\nold\n<!-- benchmarks: a -->\n<!-- end -->", "page: a table between .* is not closed"),
        ("<!-- benchmarks: a -->\nold", "page: a table between .* is not closed"),
        ("<!-- benchmarks: b -->\n<!-- end -->", "there is no table 'b'; there are a."),
    ],
)
def test_a_page_with_a_wrong_table_is_refused(page, sentence):
    with pytest.raises(UserError, match=sentence):
        report.filled(page, {}, "page", {"a": lambda results: "A"})


def test_report_mends_what_check_finds(tmp_path, monkeypatch, capsys):
    drawn = {}
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "save", lambda figure, path: drawn.update({path.name: len(figure.axes)}))
    (tmp_path / "docs").mkdir()
    stale = "<!-- benchmarks: machines -->\n<!-- end -->\n"
    for page in (tmp_path / "README.md", tmp_path / "docs" / "page.md"):
        page.write_text(stale)
    assert main(["report", "--check"]) == 1 and not drawn
    assert [line.partition(" ")[0] for line in capsys.readouterr().err.splitlines()] == ["README.md", "docs/page.md"]
    assert (tmp_path / "README.md").read_text() == stale
    assert main(["report"]) == 0 and main(["report", "--check"]) == 0
    assert "| Intel Xeon, 2 cores | " in (tmp_path / "docs" / "page.md").read_text()
    assert drawn.items() >= {"cost.png": 6, "variance.png": 1}.items()
