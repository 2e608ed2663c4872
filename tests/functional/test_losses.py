"""Cross-entropy: by hand, against torch, its padding, limits, precision and gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from attention_zoo.functional import losses
from attention_zoo.functional.losses import cross_entropy, projected_cross_entropy
from attention_zoo.functional.rows import LEAST

B, T, N = 3, 5, 7
TARGETS = np.random.default_rng(0).integers(N, size=(B, T))
MASK = np.arange(T) < np.array([5, 2, 0])[:, None]


compute = jax.jit(jax.value_and_grad(cross_entropy), static_argnames="label_smoothing")
value = jax.jit(cross_entropy, static_argnames="label_smoothing")


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape)


def test_by_hand():
    # Probabilities 1/8 and 3/4 of the two real tokens; the third is padding.
    logits = np.log([[1.0, 7.0], [3.0, 1.0], [1.0, 1.0]])
    found = value(logits, np.array([0, 0, 1]), np.array([True, True, False]))
    np.testing.assert_allclose(found, (np.log(8) + np.log(4 / 3)) / 2, rtol=1e-6)


def test_label_smoothing_by_hand():
    # e / N = 0.2 / 4 for every entry: -log p is ln 8 at the target (0.85) and ln 8, ln 4, ln 2 elsewhere (0.05 each).
    logits = np.log([[1.0, 1.0, 2.0, 4.0]])
    found = value(logits, np.array([0]), np.array([True]), label_smoothing=0.2)
    np.testing.assert_allclose(found, (0.85 * 3 + 0.05 * (3 + 2 + 1)) * np.log(2), rtol=1e-6)


def test_equals_torch(golden, float64):
    case = golden("cross_entropy", "torch")
    for smoothing, loss, gradient in zip(case["label_smoothing"], case["losses"], case["gradients"], strict=True):
        arguments = case["logits"], case["targets"], case["targets"] != 0
        found, found_gradient = compute(*arguments, label_smoothing=float(smoothing))
        np.testing.assert_allclose(found, loss, rtol=1e-10)
        np.testing.assert_allclose(found_gradient, gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_padding_changes_nothing_and_receives_no_gradient(smoothing):
    logits, garbage = draw(B, T, N), np.where(MASK[..., None], draw(B, T, N), 1e30)
    clean, clean_gradient = compute(logits, TARGETS, MASK, label_smoothing=smoothing)
    # Ids in padding may be anything, also outside the vocabulary.
    dirty, dirty_gradient = compute(garbage, np.where(MASK, TARGETS, -70), MASK, label_smoothing=smoothing)
    assert clean == dirty
    np.testing.assert_array_equal(clean_gradient, dirty_gradient)
    np.testing.assert_array_equal(clean_gradient[~MASK], 0)
    assert np.all(np.abs(clean_gradient[MASK]) > 0)


def test_divides_by_the_number_of_real_tokens():
    tokens, _ = compute(draw(B, T, N)[MASK], TARGETS[MASK], MASK[MASK])
    longer = [np.pad(array, [(0, 2), (0, 4)] + [(0, 0)] * (array.ndim - 2)) for array in (draw(B, T, N), TARGETS, MASK)]
    np.testing.assert_allclose(compute(*longer)[0], tokens, rtol=1e-6)


def test_no_real_token_gives_zero_and_no_gradient():
    loss, gradient = compute(draw(B, T, N), TARGETS, np.zeros((B, T), bool))
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


def test_a_sure_model_loses_nothing_and_a_uniform_one_the_log_of_the_vocabulary():
    sure = 1e4 * np.eye(N)[TARGETS]
    assert value(sure, TARGETS, MASK) == 0
    even = value(np.full((B, T, N), 8.0), TARGETS, MASK, label_smoothing=0.1)
    np.testing.assert_allclose(even, np.log(N), rtol=1e-6)


def test_bfloat16_logits_lose_in_float32():
    logits = jnp.array(draw(B, T, N), jnp.bfloat16)
    loss, gradient = compute(logits, TARGETS, MASK)
    assert loss.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(loss, compute(logits.astype(jnp.float32), TARGETS, MASK)[0])


def test_float32_stays_float32_where_float64_is_on(float64):
    loss, gradient = compute(np.float32(draw(B, T, N)), TARGETS, MASK)
    assert loss.dtype == gradient.dtype == jnp.float32


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradient_equals_finite_differences(smoothing, float64):
    loss = jax.jit(lambda logits: cross_entropy(logits, TARGETS, MASK, smoothing))
    check_grads(loss, (draw(B, T, N),), order=1, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_label_smoothing_outside_its_range_is_refused(smoothing):
    with pytest.raises(ValueError, match="label_smoothing lies in"):
        cross_entropy(draw(B, T, N), TARGETS, MASK, smoothing)


D = 2


@pytest.mark.parametrize("devices", [1, 8])  # alone, a CPU takes the real tokens together
@pytest.mark.parametrize("rows", [1, 2 * B, 10**6])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_projected_equals_cross_entropy_of_the_logits(devices, rows, smoothing, monkeypatch, float64):
    monkeypatch.setattr("attention_zoo.functional.losses.jax.device_count", lambda: devices)
    features, kernel, bias = draw(B, T, D), draw(D, 19), draw(19) + 9 * (np.arange(19) == 17)
    targets = np.where(np.arange(T) == 0, (features @ kernel + bias).argmax(-1), TARGETS)
    assert 17 in targets[MASK]  # it is compared beside the eight parts of a row

    def sliced(*arguments):
        return projected_cross_entropy(*arguments, targets, MASK, smoothing, rows)

    def whole(features, kernel, bias):
        logits = features @ kernel + bias[None, None]
        right = jnp.sum(logits.argmax(-1) == targets, where=MASK) / MASK.sum()
        return cross_entropy(logits, targets, MASK, smoothing), right

    @jax.jit
    def run(*arguments):
        both = [jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*arguments) for loss in (sliced, whole)]
        return *both, sliced(*arguments)

    found, expected, forward = jax.device_get(run(features, kernel, bias))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), found, expected)
    np.testing.assert_allclose(forward, expected[0], rtol=1e-12)
    assert not found[1][0][1, 2:].any()  # padding gets no gradient


@pytest.mark.parametrize("each", [jax.lax.map, lambda loss, arrays: jax.vmap(loss)(arrays)], ids=["map", "vmap"])
@pytest.mark.parametrize("least", [0, LEAST])  # of a large slice that is not full there are four sizes
def test_projected_reads_no_padding_with_any_number_of_real_tokens(each, least, monkeypatch, float64):
    monkeypatch.setattr(losses, "LEAST", least)
    mask = np.random.default_rng(2).permuted(np.tri(B * T + 1, B * T, -1, bool), axis=1).reshape(-1, B, T)
    features, kernel = np.where(mask[..., None], draw(B, T, D), np.nan), draw(D, N)

    def loss(mask, features, kernel):
        return projected_cross_entropy(features, kernel, None, TARGETS, mask, rows=8)[0]

    def whole(mask, features, kernel):
        return cross_entropy(features @ kernel, TARGETS, mask)

    found, expected = (
        jax.jit(partial(each, lambda given, one=one: jax.value_and_grad(one, (1, 2))(*given, kernel)))((mask, read))
        for one, read in ((loss, features), (whole, np.nan_to_num(features)))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), found, expected)


def computed(loss, *arguments, monkeypatch):
    """The sizes of the slices that the loss forms."""
    found, slice_of = [], losses._slice

    def watched(*arguments):
        jax.debug.callback(lambda size: found.append(int(size)), len(arguments[-1]))
        return slice_of(*arguments)

    monkeypatch.setattr(losses, "_slice", watched)
    monkeypatch.setattr(losses, "LEAST", 0)
    jax.block_until_ready(jax.jit(jax.grad(loss))(*arguments))
    jax.effects_barrier()
    return found


@pytest.mark.parametrize("real, rows", [(0, [1]), (1, [1]), (3, [3]), (6, [2, 4]), (12, [4, 4, 4])])
def test_projected_computes_no_more_rows_than_are_real_but_for_a_quarter_of_a_slice(real, rows, monkeypatch):
    mask = np.arange(12) % 2 * 6 + np.arange(12) // 2 < real  # every second place comes first
    features, targets = np.ones((1, 12, D), np.float32), np.zeros((1, 12), np.int32)

    def loss(kernel):
        return projected_cross_entropy(features, kernel, None, targets, mask[None], rows=4)[0]

    assert computed(loss, np.ones((D, N), np.float32), monkeypatch=monkeypatch) == rows


def test_projected_computes_for_all_examples_of_vmap_as_many_rows_as_for_the_fullest(monkeypatch):
    mask = np.arange(12) < np.array([[1], [6]])
    features, targets = np.ones((1, 12, D), np.float32), np.zeros((1, 12), np.int32)

    def loss(kernel):
        one = lambda mask: projected_cross_entropy(features, kernel, None, targets, mask[None], rows=4)[0]  # noqa: E731
        return jax.vmap(one)(mask).sum()

    # The first needs a quarter, and no full slice; the second two quarters, and one.
    assert computed(loss, np.ones((D, N), np.float32), monkeypatch=monkeypatch) == [2, 4]


def test_projected_copies_the_gradient_of_all_features_for_no_slice(monkeypatch):
    monkeypatch.setattr(losses, "LEAST", 0)
    features, kernel, targets = jnp.ones((8, 16, D)), jnp.ones((D, N)), jnp.zeros((8, 16), int)
    loss = jax.jit(jax.grad(lambda x, mask: projected_cross_entropy(x, kernel, None, targets, mask, rows=16)[0]))
    compiled = loss.lower(features, targets == 0).compile().as_text()
    assert f"f32[128,{D}]" in compiled
    assert not [line for line in compiled.splitlines() if f" = f32[128,{D}]" in line and " copy(" in line]


@pytest.mark.parametrize("batch, steps, rows", [(96, 256, 4096), (3, 7, 2), (3, 7, 1), (1, 5, 99), (64, 67, 1000)])
def test_slices_of_whole_steps_are_filled_but_for_less_than_a_step_each(batch, steps, rows):
    slices, each = jax.eval_shape(lambda a: losses._steps(a, rows), jax.ShapeDtypeStruct((batch, steps), bool)).shape
    assert steps <= slices * each // batch < steps + slices  # 294 for 256 steps, when a slice was rounded down
    assert each < rows + batch


def test_projected_gradient_equals_finite_differences(float64):
    loss = jax.jit(lambda *weights: projected_cross_entropy(*weights, TARGETS, MASK, 0.1, B)[0] ** 2)
    check_grads(loss, (draw(B, T, D), draw(D, N), draw(N)), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_projected_without_tokens_or_bias():
    features, kernel = np.float32(draw(B, T, D)), np.float32(draw(D, N))
    assert jax.jit(projected_cross_entropy)(features, kernel, None, TARGETS, MASK & False) == (0, 0)
    with pytest.raises(ValueError, match="rows is at least 1; got 0"):
        projected_cross_entropy(features, kernel, None, TARGETS, MASK, rows=0)


def test_a_scaled_float16_gradient_over_many_tokens_does_not_underflow():
    # All words are equally likely: of a word that is no target, the gradient by its bias is 1 / N.
    shape, vocabulary, scale = (64, 67), 101, 2.0**10
    features, kernel, bias = (np.zeros(size, np.float16) for size in ((*shape, 3), (3, vocabulary), (vocabulary,)))

    def loss(bias):
        return scale * projected_cross_entropy(features, kernel, bias, jnp.zeros(shape, int), jnp.ones(shape, bool))[0]

    np.testing.assert_allclose(np.asarray(jax.jit(jax.grad(loss))(bias))[1:], scale / vocabulary, rtol=2e-3)


def test_the_gradient_of_a_float16_kernel_does_not_overflow_where_its_mean_does_not():
    features, targets = np.full((2, 17_011, 1), 4, np.float16), np.ones((2, 17_011), np.int32)
    kernel, mask = np.zeros((1, 5), np.float16), np.ones((2, 17_011), bool)

    def loss(kernel):
        return projected_cross_entropy(features, kernel, None, targets, mask)[0]

    # 4 (1/5 - 1) of the class that all are of, 4 / 5 of the others; their sums lie above 65,504.
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(kernel), [[0.8, -3.2, 0.8, 0.8, 0.8]], rtol=2e-3)


def test_the_gradient_of_a_bfloat16_kernel_is_summed_in_float32():
    # Equal rows have equal gradients: summed a row at a time in bfloat16, they would stop growing at 256 of them.
    features, kernel = np.ones((1, 523, 3), jnp.bfloat16), np.zeros((3, 2), jnp.bfloat16)

    def loss(features, kernel, bias):
        shape = features.shape[:2]
        return projected_cross_entropy(features, kernel, bias, jnp.zeros(shape, int), jnp.ones(shape, bool), rows=1)[0]

    run = jax.jit(jax.grad(loss, (0, 1, 2)))
    _, d_kernel, d_bias = jax.device_get(run(features, kernel, np.zeros(2, jnp.bfloat16)))
    for found in (*d_kernel, d_bias):
        np.testing.assert_allclose(np.float32(found), [-0.5, 0.5], rtol=2.0**-7)


@pytest.mark.parametrize("backend, slices", [("cpu", 2), ("gpu", 1)])  # on a CPU there is one before the loop
def test_by_default_a_device_other_than_a_cpu_takes_more_rows_at_a_time(monkeypatch, backend, slices):
    monkeypatch.setattr("attention_zoo.functional.losses.jax.default_backend", lambda: backend)
    shape = (11, 61)  # 671 rows
    features, kernel = jnp.ones((*shape, 2)), jnp.ones((2, 3))

    def loss(features):
        return projected_cross_entropy(features, kernel, None, jnp.zeros(shape, int), jnp.ones(shape, bool))[0]

    assert f"length={slices}" in str(jax.make_jaxpr(loss)(features))
