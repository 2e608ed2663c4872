"""Pictures of what a run learnt: alignment heat maps, learning curves, accuracy against source length.

Each `draw_...` returns a matplotlib `Figure` and touches no global state; `save` writes it.
"""

from attention_zoo.figures.alignment import draw_alignment, draw_alignments
from attention_zoo.figures.canvas import FORMATS, save
from attention_zoo.figures.captions import draw_caption
from attention_zoo.figures.curves import draw_curves, read_metrics
from attention_zoo.figures.glimpses import draw_cost, draw_glimpses
from attention_zoo.figures.growth import draw_growth
from attention_zoo.figures.length import LengthBins, accuracy_by_length, draw_accuracy_by_length
from attention_zoo.figures.variance import draw_variance

__all__ = [
    "FORMATS",
    "LengthBins",
    "accuracy_by_length",
    "draw_accuracy_by_length",
    "draw_alignment",
    "draw_alignments",
    "draw_caption",
    "draw_cost",
    "draw_curves",
    "draw_glimpses",
    "draw_growth",
    "draw_variance",
    "read_metrics",
    "save",
]
