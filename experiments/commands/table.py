"""`python -m experiments table TASK`: every mechanism at one budget, several seeds, as a table and a picture."""

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import jax
from jax.experimental.compilation_cache import compilation_cache
from tyro.conf import Positional

from attention_zoo.training import UserError
from attention_zoo.training.machine import device, make_writable, versions
from attention_zoo.training.reporting import write_whole
from experiments.commands.catalogue import function
from experiments.commands.cost import costs
from experiments.commands.gallery import gallery
from experiments.commands.refusal import nearest
from experiments.commands.train import train

LUONG, RAFFEL = {"query": "current"}, {"score": "additive_normalised"}
# What each row of the table trains `mechanisms` with; the other flags are the same for all.
ROWS: dict[str, dict[str, Any]] = {
    "additive": {},
    "normalised additive": {"score": "additive_normalised"},
    "dot": {"score": "dot", **LUONG},
    "scaled dot": {"score": "scaled_dot", **LUONG},
    "general": {"score": "general", **LUONG},
    "concat": {"score": "concat", **LUONG},
    "cosine": {"score": "cosine", **LUONG},
    "location": {"score": "location", **LUONG},
    "location-sensitive": {"past": "location"},
    "coverage": {"past": "coverage"},
    "coverage penalty": {"coverage": 1.0},
    "guided": {"guided": 1.0},
    "temperature 1/2": {"alignment": "tempered", "temperature": 0.5},
    "sparsemax": {"alignment": "sparsemax"},
    "entmax-1.5": {"alignment": "entmax15"},
    "top-3": {"alignment": "top_k"},
    "local-m": {"alignment": "local_m", "score": "general", **LUONG},
    "local-p": {"alignment": "local_p", "score": "general", **LUONG},
    "renormalised local-p": {"alignment": "local_p_renormalised", "score": "general", **LUONG},
    "monotonic": {"alignment": "monotonic", **RAFFEL},
    "MoChA": {"alignment": "mocha", **RAFFEL},
    "Gumbel-softmax": {"alignment": "gumbel_softmax"},
    "straight-through": {"alignment": "straight_through"},
}
METRICS = ("exact_match", "alignment_accuracy", "alignment_entropy")


def table(
    task: Positional[Literal["dates", "reverse"]],
    workdir: Path = Path("runs/mechanisms"),
    output: Path | None = None,
    seeds: int = 3,
    rows: str = "",
    steps: int = 400,
    train_examples: int = 20_000,
    held_out_examples: int = 1_000,
    costs_only: bool = False,
) -> int:
    """Trains every mechanism that is not trained yet, measures its cost, and writes the table.

    Args:
        task: "dates" or "reverse".
        workdir: where the runs are kept, in a folder for each task, mechanism and seed.
        output: where TASK.json, TASK.md and TASK.png are written; the work folder by default.
        seeds: runs of each mechanism, with the seeds 0, 1, ...
        rows: names of mechanisms with commas between; all of them by default.
        steps: of each run.
        train_examples: sources in the training split.
        held_out_examples: sources in the dev split, and as many in the test split.
        costs_only: train nothing; measure the costs of the table that is there again, and keep its scores.
    """
    if seeds < 1:
        raise UserError(f"--seeds is {seeds}: there must be at least 1.")
    if costs_only:
        return _measure_again(task, workdir if output is None else output)
    budget = {"task": task, "steps": steps, "train_examples": train_examples, "held_out_examples": held_out_examples}
    chosen = {name: {**budget, **ROWS[name]} for name in _known(rows)}
    output = workdir if output is None else output
    _claim(output, task, chosen)
    with _cached(workdir / "compiled"):
        found = {name: [_run(workdir / task / _folder(name) / str(seed), flags, seed) for seed in range(seeds)]
                 for name, flags in chosen.items()}  # fmt: skip
        measured = _costs(chosen)
    rows_found = [_row(name, chosen[name], summaries, measured[name]) for name, summaries in found.items()]
    result = {"task": task, "budget": budget, "seeds": seeds, **_machine(), "costs": _machine(), "rows": rows_found}
    gallery({name: workdir / task / _folder(name) / "0" for name in chosen}, task, output / f"{task}.png")
    _write(result, output)
    return 0


def _measure_again(task: str, output: Path) -> int:
    path = output / f"{task}.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        chosen = {row["mechanism"]: row["flags"] for row in result["rows"]}
    except FileNotFoundError as error:
        raise UserError(f"There is no {path} to measure again: name its --output.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no table of mechanisms.") from error
    make_writable(output)
    measured = _costs(chosen)
    result["costs"] = _machine()
    result["rows"] = [{**row, **measured[row["mechanism"]]} for row in result["rows"]]
    _write(result, output)
    return 0


def _costs(chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    return costs({name: function("mechanisms")(**flags) for name, flags in chosen.items()})


def _machine() -> dict[str, Any]:
    return {"device": device(), "versions": versions()}


def _write(result: dict[str, Any], output: Path) -> None:
    write_whole(output / f"{result['task']}.json", json.dumps(result, indent=2) + "\n")
    write_whole(output / f"{result['task']}.md", render(result))
    print(render(result))


def _claim(output: Path, task: str, chosen: Mapping[str, Any]) -> None:
    """Refuses, before anything is trained, a folder that cannot be written or whose table has other rows."""
    make_writable(output)
    path = output / f"{task}.json"
    if not path.exists():
        return
    try:
        there = [row["mechanism"] for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no table of mechanisms: remove it, or name another folder with --output."
        ) from error
    lost = [name for name in there if name not in chosen]
    if lost:
        raise UserError(f"{path} also has {', '.join(lost)}: name another folder with --output, or all its rows.")


@contextmanager
def _cached(folder: Path) -> Iterator[None]:
    """Keeps compiled programs, so that what one seed compiled the next can read: they differ in no program."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()


def _known(rows: str) -> Sequence[str]:
    names = [name.strip() for name in rows.split(",")] if rows else list(ROWS)
    for name in names:
        if name not in ROWS:
            raise UserError(f"There is no mechanism {name!r}{nearest(name, ROWS)}; there are: {', '.join(ROWS)}.")
    return names


def _folder(name: str) -> str:
    return name.replace(" ", "_").replace("/", "_of_")


def _run(folder: Path, flags: dict[str, Any], seed: int) -> dict[str, Any]:
    print(f"{folder} ...", file=sys.stderr)
    train("mechanisms", folder, {**flags, "seed": seed})
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def _row(name: str, flags: dict[str, Any], summaries: list[dict[str, Any]], cost: dict[str, float]) -> dict[str, Any]:
    metrics = {metric: [summary["metrics"][metric] for summary in summaries] for metric in METRICS}
    return {"mechanism": name, "flags": flags, **metrics, "parameters": summaries[0]["parameters"], **cost}


def render(result: dict[str, Any]) -> str:
    """The page of a task: its budget, the table, and the picture. Means over the seeds, and lowest to highest."""
    budget, task = result["budget"], result["task"]
    lines = [
        f"# Every mechanism on `{task}`",
        "",
        f"Written by `python -m experiments table {task} --output docs/mechanisms`: {budget['steps']} steps of each "
        f"mechanism on {budget['train_examples']:,} examples, {result['seeds']} seeds, scores on "
        f"{budget['held_out_examples']:,} test examples (mean, lowest to highest), trained on "
        f"{result['device']}. A step's time is a median of "
        f"turns, on {result['costs']['device']}; its temporary memory is the compiler's figure.",
        "",
        "| mechanism | exact match | alignment accuracy | entropy, nats | step, ms | temporaries, MB | parameters |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [spread(row[metric], digits) for metric, digits in zip(METRICS, (3, 3, 2), strict=True)]
        cost = [f"{row['step_ms']:.1f}", f"{row['temporary_bytes'] / 1e6:.1f}", f"{row['parameters']:,}"]
        lines.append("| " + " | ".join([row["mechanism"], *cells, *cost]) + " |")
    return "\n".join([*lines, "", f"![where every mechanism looks in the same source]({task}.png)", ""])


def spread(values: Sequence[float], digits: int) -> str:
    """The mean of the seeds, and their range."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else mean
