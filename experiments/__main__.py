"""The command line: `python -m experiments list | train | evaluate | predict | compare | table | baseline`."""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from attention_zoo.training import UserError
from experiments.commands.baseline import baseline
from experiments.commands.catalogue import SAVED, docstring, first_paragraph, function, names
from experiments.commands.compare import compare
from experiments.commands.evaluate import evaluate
from experiments.commands.flags import keywords
from experiments.commands.listing import listing
from experiments.commands.predict import predict
from experiments.commands.refusal import nearest, sentence
from experiments.commands.table import table
from experiments.commands.train import train

PROGRAM = "python -m experiments"
USAGE = f"""\
{PROGRAM} list                                        the experiments, what they claim and what they reached
{PROGRAM} train NAME [--workdir DIR] [--flag value]   trains one, or goes on where a run of the same flags stopped
{PROGRAM} evaluate WORKDIR [--split test]             the metrics of a run's best checkpoint
{PROGRAM} predict WORKDIR INPUT... [--plot FILE]      what it makes of your own input
{PROGRAM} compare WORKDIR... --plot FILE              accuracy against source length, runs side by side
{PROGRAM} table TASK                                  every mechanism at one budget, as a table and a picture
{PROGRAM} baseline [WORKDIR...]                       TF-IDF on the sentences of runs that classify, beside them
Each command, and `train NAME`, explains its flags with --help."""
COMMANDS: dict[str, Callable[..., int]] = {
    "list": listing,
    "evaluate": evaluate,
    "predict": predict,
    "compare": compare,
    "table": table,
    "baseline": baseline,
}


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code: 0, 2 for input that cannot be used, 130 after Ctrl-C."""
    try:
        return run(list(sys.argv[1:] if words is None else words))
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return 130
    except Exception as error:
        said = sentence(error)
        if said is None:
            raise
        print(said, file=sys.stderr)
        return 2


def run(words: list[str]) -> int:
    """Finds the command that the first word names and calls it with the flags that the others give."""
    command, *rest = words or ["--help"]
    if command in ("--help", "-h"):
        print(USAGE)
        return 0
    if command == "train":
        return run_train(rest)
    if command not in COMMANDS:
        known = [*COMMANDS, "train"]
        raise UserError(f"There is no command {command!r}{nearest(command, known)}; {PROGRAM} --help lists them all.")
    return COMMANDS[command](**keywords(COMMANDS[command], rest, f"{PROGRAM} {command}"))


def run_train(words: list[str]) -> int:
    """`train`, whose flags are the keyword arguments of the experiment that the first word names."""
    if not words or words[0].startswith("-"):
        raise UserError(f"{PROGRAM} train NAME: which experiment? There are: {', '.join(names())}.")
    name, *rest = words
    build, workdir = function(name), {"workdir": (Path, Path("runs") / name)}
    opening = first_paragraph(docstring(name))
    flags = keywords(build, rest, f"{PROGRAM} train {name}", opening, more=workdir, without=[SAVED])
    try:
        return train(name, flags.pop("workdir"), flags)
    except KeyboardInterrupt as stop:
        said = str(stop) or "stopped; the same command goes on from the last checkpoint"
        raise KeyboardInterrupt(f"{said}: {PROGRAM} train {shlex.join(words)}") from stop


if __name__ == "__main__":
    sys.exit(main())
