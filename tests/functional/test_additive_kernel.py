"""The kernels of additive attention, interpreted on a CPU: against float64 and the chunks, and what they refuse."""

from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional import additive_attention as door
from attention_zoo.functional import additive_kernel, attend, scores
from attention_zoo.functional.additive_kernel import MODERATE, Block, Plan, additive_scores
from tests.quick import quick

B, T, S, D, V = 2, 7, 5, 11, 3
ROWS = np.random.default_rng(0).random((B, T, S)) < 0.6
ROWS[0, 2] = ROWS[1, 6] = False
ROWS[:, :, 4] = False
COTANGENTS = np.random.default_rng(1).normal(size=(B, T, V)).astype(np.float32)
# Several blocks each way, the last ones not full, and the sum of each in several parts.
SMALL = Plan(Block(4, 2, 2, 4), Block(2, 8, 2, 4), programs=37, interpret=True)
LARGE = Plan(programs=1, interpret=True)
LOW = Plan(Block(32, 4, 2, 4), Block(16, 4, 2, 4), programs=2, interpret=True)  # blocks with less rows than wanted
PLANS = {"many blocks": SMALL, "one block": LARGE, "low blocks": LOW}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(door, "INTERPRET", True)
    monkeypatch.setattr(additive_kernel, "Plan", lambda interpret: SMALL)


def draw(seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=s).astype(np.float32) for s in ((B, T, D), (B, S, D), (B, S, V), (D,))]


def with_gradients(function):
    """(arguments, mask, cotangents) -> context, and the gradients by queries, keys, values and energy."""

    def run(arguments, mask, cotangents):
        context, pull_back = jax.vjp(lambda *arguments: function(*arguments, mask), *arguments)
        return context, pull_back(cotangents)

    return quick(run)


by_kernel = with_gradients(partial(door.additive_attention, implementation="pallas"))


def reference(arguments, mask):
    """The plain formula in float64."""

    def plain(queries, keys, values, energy, mask=None):
        return attend.attend(queries, keys, values, mask, score=lambda q, k: scores.additive(q, k, energy))[0]

    with jax.enable_x64(True):
        wide = [np.asarray(array, np.float64) for array in arguments]
        return with_gradients(plain)(wide, mask, COTANGENTS.astype(np.float64))


def scores_with_gradients(function):
    def run(cotangents, *arguments):
        found, pull_back = jax.vjp(function, *arguments)
        return found, *pull_back(cotangents)

    return quick(run)


RUNS = {name: scores_with_gradients(partial(additive_scores, p)) for name, p in PLANS.items()}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize(("size", "moderate"), [(1, True), (1, False), (1e-3, False)])
def test_scores_and_gradients_equal_float64(run, size, moderate):
    queries, keys, _, energy = draw()
    arguments = [np.float32(size) * queries, np.float32(size) * keys, energy]
    cotangents = np.random.default_rng(2).normal(size=(B, T, S)).astype(np.float32)
    found = run(cotangents, *arguments, np.full(B, moderate))
    with jax.enable_x64(True):
        wide = [array.astype(np.float64) for array in (cotangents, *arguments)]
        expected = scores_with_gradients(scores.additive)(*wide)
    for one, other in zip(found, expected, strict=False):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * np.abs(other).max())


@pytest.mark.parametrize("mask", [None, ROWS], ids=["none", "rows"])
def test_attention_equals_float64_in_value_and_gradient(mask):
    found = by_kernel(draw(), mask, COTANGENTS)
    expected = reference(draw(), mask)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)
    if mask is ROWS:
        context, gradients = found
        np.testing.assert_array_equal(context[~ROWS.any(-1)], 0)
        np.testing.assert_array_equal(gradients[0][~ROWS.any(-1)], 0)
        for gradient in gradients[1:3]:
            np.testing.assert_array_equal(gradient[~ROWS.any(1)], 0)


@pytest.mark.parametrize("edge", [0.999 * MODERATE, 1.001 * MODERATE, 1e4])
@pytest.mark.parametrize("sign", [1, -1])
def test_one_large_query_changes_no_other_and_is_exact_itself(edge, sign):
    # With sign -1 a key nearly cancels it. The other example stays moderate.
    queries, keys, values, energy = draw()
    queries[0, 1], keys[0, 3] = edge, sign * np.float32(edge - 0.25)
    arguments = [queries, keys, values, energy]
    found, expected = by_kernel(arguments, None, COTANGENTS), reference(arguments, None)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6), found, expected)


def test_what_a_mask_hides_changes_nothing():
    queries, keys, values, energy = draw()
    clean = by_kernel(draw(), ROWS, COTANGENTS)
    for garbage in (1e4, -1e4):
        dirty = [np.where(~ROWS.any(-1)[..., None], np.float32(-garbage), queries)]
        dirty += [np.where(~ROWS.any(1)[..., None], np.float32(garbage), array) for array in (keys, values)]
        # Two terms have one denominator, so what is hidden may change a rounding.
        found = by_kernel([*dirty, energy], ROWS, COTANGENTS)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), found, clean)
        np.testing.assert_array_equal(found[1][1][:, 4], 0)


def test_tiny_inputs_keep_the_digits_of_the_gradient_by_the_energy():
    queries, keys, values, energy = draw()
    arguments = [np.float32(1e-4) * queries, np.float32(1e-4) * keys, values, energy]
    found, expected = by_kernel(arguments, None, COTANGENTS)[1][3], reference(arguments, None)[1][3]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_vmap_and_leading_axes_equal_the_batch():
    arguments, expected = draw(), by_kernel(draw(), ROWS, COTANGENTS)[0]
    one = partial(door.additive_attention, energy=arguments[3], implementation="pallas")

    def run(examples, mask):
        twice = lambda *two: jax.vmap(lambda q, k, v, m: one(q, k, v, mask=m))(*two)  # noqa: E731
        nested = jax.vmap(twice)(*(array[None] for array in (*examples, mask)))[0]
        return nested, one(*(array[None] for array in examples), mask=mask)[0]

    for found in quick(run)(arguments[:3], ROWS):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_bfloat16_is_computed_in_float32_and_comes_back():
    arguments = [array.astype(jnp.bfloat16) for array in draw()]
    found, gradients = by_kernel(arguments, ROWS, COTANGENTS.astype(jnp.bfloat16))
    expected, _ = reference(arguments, ROWS)
    assert {leaf.dtype for leaf in jax.tree.leaves((found, gradients))} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=2**-8, atol=1e-6)


def test_dropout_drops_weights_and_their_mean_stays():
    # With values one-hot the context is the weights; the scores are all alike.
    rows, source = 67, 13
    values = np.broadcast_to(np.eye(source, dtype=np.float32), (B, source, source))
    arguments = (
        np.zeros((B, rows, 3), np.float32),
        np.zeros((B, source, 3), np.float32),
        values,
        np.zeros(3, np.float32),
    )
    key = jax.random.key(3, impl="unsafe_rbg")
    dropping = partial(door.additive_attention, dropout=0.25, key=key, implementation="pallas")
    found = source * quick(dropping)(*arguments)
    kept = found > 0
    np.testing.assert_allclose(found[kept], 4 / 3, rtol=1e-5)
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / kept.size)
    assert len(np.unique(kept.reshape(-1, source), axis=0)) > B * rows / 2


def test_the_default_is_the_kernel_where_it_can_run_and_chunks_elsewhere(monkeypatch):
    def kind(**options):
        text = str(jax.make_jaxpr(partial(door.additive_attention, **options))(*draw()))
        return "pallas" if "pallas_call" in text else "chunked"

    assert (kind(), kind(chunk=3), kind(implementation="chunked")) == ("pallas", "chunked", "chunked")
    monkeypatch.setattr(door, "WHOLE", B * T * D - 1)
    assert kind() == "chunked"
    monkeypatch.undo()
    assert kind() == "chunked"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"implementation": "pallas", "chunk": 3}, "'pallas' wants no chunk; got 3"),
        ({"implementation": "fused"}, "implementation is chunked or pallas; got 'fused'"),
    ],
)
def test_bad_options_are_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=f"additive_attention: .*{sentence}"):
        door.additive_attention(*draw(), **options)


def test_what_the_kernel_lacks_is_one_sentence(monkeypatch, float64):
    wide = [array.astype(np.float64) for array in draw()]
    with pytest.raises(ValueError, match="'pallas' wants float32 or less; got float64"):
        door.additive_attention(*wide, implementation="pallas")
    monkeypatch.setattr(door, "WHOLE", 100)
    with pytest.raises(ValueError, match=f"'pallas' wants at most 100 scores, or .*; got {B * T * D}"):
        door.additive_attention(*draw(), implementation="pallas")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="'pallas' wants a GPU of NVIDIA's, Ampere or later; got cpu"):
        door.additive_attention(*draw(), implementation="pallas")


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("shape", [(16, 256, 256, 256), (2, 1, 7, 11)])
def test_lowers_for_cuda_forward_and_backward(shape):
    batch, steps, source, width = shape
    shapes = (batch, steps, width), (batch, source, width), (width,), (batch, steps, source)
    arguments = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]

    def run(queries, keys, energy, cotangents):
        moderate = jnp.ones(batch, bool)
        found, pull_back = jax.vjp(lambda *a: additive_scores(Plan(), *a, moderate), queries, keys, energy)
        return found, pull_back(cotangents)

    with abstract_gpu():
        lowered = jax.jit(run).trace(*arguments).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("__gpu$xla.gpu.triton") == 3


def abstract_gpu():
    """What jax 0.11 wants to know of a GPU that is not there; 0.10 takes any for Hopper."""
    if jax.__version_info__ < (0, 11):
        return nullcontext()
    from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", platform="cuda", num_cores=None)
    return use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device))
