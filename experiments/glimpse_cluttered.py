"""Six glimpses find a digit among pieces of other digits, and name it; random glimpses find it less often.

As glimpse_translated, with four pieces of eight pixels, cut out of training digits, strewn over the canvas (Mnih 2014,
section 4.1). The control, `--locations random`, looks at random places with the same network: what it lacks is what
choosing where to look is worth.

Command: python -m experiments train glimpse_cluttered
Machine: one NVIDIA H100 80GB HBM3 with 16 CPU cores, which some twenty runs shared; the minutes are those of the
whole run, with compilation.
Reached: three seeds, each chosen on dev, on 2,000 test pictures: results/glimpse_cluttered.json: error_rate 0.023,
pointing_accuracy 0.834, pointing_ratio 7.51, minutes 2.3; results/glimpse_cluttered_1.json: error_rate 0.033,
pointing_accuracy 0.844, pointing_ratio 7.59, minutes 1.4; results/glimpse_cluttered_2.json: error_rate 0.028,
pointing_accuracy 0.868, pointing_ratio 7.81, minutes 1.4. With --locations random:
results/glimpse_cluttered_random.json: error_rate 0.204, pointing_ratio 1.08; results/glimpse_cluttered_random_1.json:
error_rate 0.194, pointing_ratio 1.08; results/glimpse_cluttered_random_2.json: error_rate 0.202, pointing_ratio 1.08.
With --recipe classic, on an NVIDIA H200: results/glimpse_cluttered_classic.json: error_rate 0.115, pointing_ratio 3.35;
results/glimpse_cluttered_classic_1.json: error_rate 0.115, pointing_ratio 3.56;
results/glimpse_cluttered_classic_2.json: error_rate 0.127, pointing_ratio 3.28.
"""

from pathlib import Path
from typing import Any, Literal

from attention_zoo.data import GlimpseImages, cluttered_digits
from attention_zoo.models import RecurrentAttention
from attention_zoo.training import Experiment, optimizer
from attention_zoo.training.glimpses import glimpsing


def experiment(
    recipe: Literal["dense", "classic"] = "dense",
    locations: Literal["policy", "random"] = "policy",
    source: str = "digits",
    canvas: int = 60,
    digit: int = 20,
    distort: float = 0.15,
    clutter: int = 4,
    piece: int = 8,
    glimpses: int = 6,
    size: int = 12,
    scales: int = 3,
    units: int = 256,
    hidden: int = 128,
    first: Literal["random", "centre"] = "random",
    rollouts: int = 4,
    first_std: float = 0.15,
    last_std: float = 0.05,
    location_weight: float = 0.15,
    penalty: float = 1e-3,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.01,
    batch_size: int = 128,
    steps: int = 4000,
    evaluate_every: int = 1000,
    noise_every: int | None = None,
    dev_examples: int = 1000,
    test_examples: int = 2000,
    seed: int = 0,
    saved: Path | None = None,
) -> Experiment:
    """A digit among clutter to its class, by glimpses.

    Args:
        recipe: of the reward: "dense" after every glimpse, or "classic", the paper's 0 or 1 after the last.
        locations: chosen by the model, or random ones, as a control.
        source: scikit-learn's digits, or a TFDS data set of grey images such as mnist.
        canvas: its side, in pixels.
        digit: its side, in pixels.
        distort: how far training digits are turned, scaled, sheared and moved.
        clutter: pieces of other digits on each canvas.
        piece: their side, in pixels.
        glimpses: of each canvas.
        size: side of a glimpse's patch, in values.
        scales: patches of a glimpse, each twice as wide and half as sharp as the one before.
        units: of the LSTM.
        hidden: width of the halves of the glimpse network.
        first: where the first glimpse is in training.
        rollouts: paths through each canvas in a step.
        first_std: of the sampled locations, in halves of the canvas, at the first step.
        last_std: the same at the last step.
        location_weight: of the score-function loss.
        penalty: of the squared locations before their tanh.
        learning_rate: of AdamW; it falls to zero along a cosine.
        weight_decay: of AdamW.
        batch_size: canvases a step.
        steps: how long to train.
        evaluate_every: steps between evaluations on the dev split; the best checkpoint is kept.
        noise_every: steps between measurements of the gradient's variance; None for none.
        dev_examples: canvases in the dev split.
        test_examples: canvases in the test split.
        seed: of the parameters, of the sampled locations and of the canvases.
        saved: a work folder whose names of classes do instead of the data set, to read inputs only.
    """
    placed: Any = {"canvas": canvas, "size": digit, "distort": distort, "source": source}
    placed |= {"dev_examples": dev_examples, "test_examples": test_examples}
    placed |= {"clutter": clutter, "piece": piece}
    data = GlimpseImages.load(saved) if saved else cluttered_digits(batch_size, **placed)
    model = RecurrentAttention(
        len(data.labels),
        units=units,
        hidden=hidden,
        glimpses=glimpses,
        size=size,
        scales=scales,
        locations=locations,
        first=first,
        detached=recipe == "classic",
        learned_baseline=recipe == "classic" and locations == "policy",
    )
    return glimpsing(
        "glimpse_cluttered",
        model,
        data,
        recipe=recipe,
        rollouts=rollouts,
        std=(first_std, last_std),
        location_weight=location_weight,
        penalty=penalty,
        optimizer=optimizer(
            "adamw", learning_rate, schedule="cosine", steps=steps, clip=1.0, weight_decay=weight_decay
        ),
        steps=steps,
        evaluate_every=evaluate_every,
        checkpoint_every=evaluate_every,
        noise_every=noise_every,
        seed=seed,
    )
