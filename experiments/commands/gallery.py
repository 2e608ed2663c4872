"""One picture of where every mechanism looks in the same source."""

from pathlib import Path

from attention_zoo.figures import draw_alignments, save
from experiments.commands.workdir import open_run

SENTENCES = {"dates": "mardi 3 mai 2016", "reverse": "3 14 15 9 26 5 35 8 9 7"}


def gallery(folders: dict[str, Path], task: str, path: Path) -> None:
    """Draws the alignment of each run, in its work folder, for the task's sentence."""
    panels = {}
    for name, folder in folders.items():
        experiment, params = open_run(folder, pairs=False)
        (prediction,) = experiment.predict(params, [SENTENCES[task]])
        if prediction.looked is not None:
            panels[name] = prediction.looked
    save(draw_alignments(panels), path)
