"""Losses of token sequences, divided by the number of real tokens, never by the padded size."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from attention_zoo.functional.arrays import one_cpu, zeros_after
from attention_zoo.notation import Array, Bool, Float, Int, checked

_ROWS = 4096  # of logits at a time: enough to fill an accelerator
_CPU_ROWS, _CPU_LOGITS = 256, 5 * 2**20  # rows, and logits of all, that a CPU's caches hold

# (sums, features [r, D], targets [r], mask [r]) -> the sums, a slice's added, and what it gives, [r, D] or None.
_Slicewise = Callable[..., tuple[Any, Any]]


@checked
def cross_entropy(
    logits: Float[Array, "*b T N"],
    targets: Int[Array, "*b T"],
    mask: Bool[Array, "*b T"],
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Mean cross-entropy of the real tokens, `-sum_t log p(y_t) / sum_t 1`, in nats.

    With label smoothing e the target gives 1 - e to the token and e / N to every entry of the vocabulary, the
    token among them (Szegedy 2016, section 7). Computed in float32 at least.

    Args:
        logits: unnormalised log-probabilities, [..., T, N]; finite, also in padding.
        targets: token ids, [..., T]; what stands in padding does not matter.
        mask: True = a real token, [..., T].
        label_smoothing: e, in [0, 1).

    Returns:
        the mean over all real tokens; zero if there are none.

    Raises:
        ValueError: label_smoothing is outside [0, 1).

    >>> cross_entropy(jnp.zeros((1, 2, 4)), jnp.array([[1, 0]]), jnp.array([[True, False]]))
    Array(1.3862944, dtype=float32)
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"cross_entropy: label_smoothing lies in [0, 1); got {label_smoothing}")
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # log p = logit - log-sum-exp, without a second [..., T, N] array of log-probabilities.
    token = jnp.take_along_axis(wide, jnp.where(mask, targets, 0)[..., None], axis=-1)[..., 0]
    smoothed = token if label_smoothing == 0 else (1 - label_smoothing) * token + label_smoothing * wide.mean(-1)
    losses = jax.nn.logsumexp(wide, axis=-1) - smoothed
    return jnp.sum(losses, where=mask) / jnp.maximum(mask.sum(), 1)


@checked
def log_likelihood(logits: Float[Array, "*b N"], targets: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """`log p(y)` of every target [...] under logits [..., N], in nats; in float32 at least.

    >>> log_likelihood(jnp.zeros((1, 4)), jnp.array([3]))
    Array([-1.3862944], dtype=float32)
    """
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jnp.take_along_axis(jax.nn.log_softmax(wide, -1), targets[..., None], axis=-1)[..., 0]


@checked
def projected_cross_entropy(
    features: Float[Array, "B T D"],
    kernel: Float[Array, "D N"],
    bias: Float[Array, " N"] | None,
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    label_smoothing: float = 0.0,
    rows: int | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`cross_entropy` of the logits `x_t W + b`, which never exist whole: a few rows at a time.

    Equal to `cross_entropy(features @ kernel + bias, ...)` up to rounding. When it is differentiated, each slice's
    share of the gradient is formed while its logits are at hand, so nothing is computed twice; beside the gradient of
    the kernel and a slice's share of it, the largest temporaries are `rows` rows of logits. The shares are summed in
    float32 at least. With one CPU as JAX's only device the real tokens are taken together, wherever they stand, and
    slices or half slices of padding alone are skipped (not where `jax.vmap` maps over masks). Reverse mode only, as
    with any `jax.custom_vjp`.

    Args:
        features: what the output layer sees, [B, T, D]; finite, also in padding.
        kernel: of the output layer, [D, N]; bias: [N], or None.
        targets, mask, label_smoothing: as in `cross_entropy`.
        rows: about how many of the B x T rows, of all devices, are taken at a time. One CPU takes at most that many;
            elsewhere whole steps of the batch are taken, at least one, and where the batch is sharded, each slice's
            gradient of the kernel is summed over the devices. By default 256 on a CPU, down to 64 for vocabularies
            above 20,480, and 4096 elsewhere, where it takes more work at a time to fill the device.

    Returns:
        the loss, and the share of the real tokens that no other is more probable than (not differentiable).

    Raises:
        ValueError: label_smoothing is outside [0, 1), or rows is below 1.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"projected_cross_entropy: label_smoothing lies in [0, 1); got {label_smoothing}")
    rows = _default_rows(kernel.shape[1]) if rows is None else rows
    if rows < 1:
        raise ValueError(f"projected_cross_entropy: rows is at least 1; got {rows}")
    bias = jnp.zeros_like(kernel[0]) if bias is None else bias
    loss, right = _projected(label_smoothing, rows, features, kernel, bias, targets, mask)
    return loss, jax.lax.stop_gradient(right)


def _default_rows(vocabulary: int) -> int:
    if jax.default_backend() != "cpu":
        return _ROWS
    return min(_CPU_ROWS, max(_CPU_ROWS // 4, _CPU_LOGITS // max(1, vocabulary)))


def _over_slices(
    one: _Slicewise, rows: int, sums: Any, found: Any, features: Any, targets: Any, mask: Any
) -> tuple[Any, Any]:
    """The last sums of `one`, slice after slice, and what it gave, in its place in `found`: zeros [B, T, D] or None."""
    if not mask.size:
        return sums, found
    return (_over_real_rows if one_cpu() else _over_steps)(one, rows, sums, found, features, targets, mask)


def _over_real_rows(
    one: _Slicewise, most: int, sums: Any, found: Any, features: Any, targets: Any, mask: Any
) -> tuple[Any, Any]:
    """Slices of the real tokens; others fill the last one, or half of it, at most."""
    x, y, real = (array.reshape(mask.size, *array.shape[2:]) for array in (features, targets, mask))
    count = -(-mask.size // most)
    rows = -(-mask.size // count)
    places = jnp.nonzero(real, size=count * rows, fill_value=mask.size)[0].reshape(count, rows)
    parts = sorted({0, -(-rows // 2) if count > 1 else rows, rows})

    def step(state: Any, places: Any) -> tuple[Any, None]:
        # The real ones come first, so a part is needed where the one before it is full.
        needed = sum(jnp.int32(places[part] < mask.size) for part in parts[:-1])
        sums, gave = jax.lax.switch(needed, [partial(part_of, places[:part]) for part in parts], state[0])
        # Outside of the switch, for which XLA would copy all rows.
        return (sums, None if found is None else state[1].at[places].set(gave, mode="drop")), None

    def part_of(places: Any, sums: Any) -> tuple[Any, Any]:
        if not len(places):
            return sums, None if found is None else jnp.zeros((rows, x.shape[1]), found.dtype)
        taken = (jnp.take(array, places, axis=0, mode="fill", fill_value=0) for array in (x, y))
        sums, gave = one(sums, *taken, places < mask.size)
        return sums, None if found is None else jnp.pad(gave, ((0, rows - len(places)), (0, 0)))

    start = sums, None if found is None else found.reshape(x.shape)
    (sums, found), _ = jax.lax.scan(step, start, places)
    return sums, None if found is None else found.reshape(features.shape)


def _over_steps(
    one: _Slicewise, most: int, sums: Any, found: Any, features: Any, targets: Any, mask: Any
) -> tuple[Any, Any]:
    """Slices of whole steps, in which every row stays on its device."""
    slices = [_steps(array, most) for array in (features, targets, mask)]
    sums, gave = jax.lax.scan(lambda sums, slices: one(sums, *slices), sums, slices)
    if found is None:
        return sums, None
    batch, steps, width = features.shape
    joined = jnp.moveaxis(gave.reshape(len(gave), batch, -1, width), 0, 1).reshape(batch, -1, width)
    return sums, joined[:, :steps]


def _steps(array: jax.Array, rows: int) -> jax.Array:
    """[B, T, ...] to [slices, B t, ...], about `rows` rows each, the last one filled up with zeros."""
    batch, steps = array.shape[:2]
    each = -(-steps // min(steps, -(-batch * steps // rows)))
    count = -(-steps // each)
    padded = jnp.pad(array, ((0, 0), (0, each * count - steps), *[(0, 0)] * (array.ndim - 2)))
    sliced = jnp.moveaxis(padded.reshape(batch, count, each, *array.shape[2:]), 1, 0)
    return sliced.reshape(count, batch * each, *array.shape[2:])


def _slice(
    smoothing: float, count: Any, kernel: Any, bias: Any, features: Any, targets: Any, mask: Any
) -> tuple[Any, ...]:
    """Sums of one slice: loss and right tokens; and the logits' gradient of the summed loss over `count`, [r, N]."""
    logits = features @ kernel + bias[None]
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    top = logits.max(-1, keepdims=True)
    exponentials = jnp.exp(logits - top)
    total = exponentials.sum(-1, keepdims=True)
    token = jnp.take_along_axis(logits, jnp.where(mask, targets, 0)[:, None], axis=-1)
    smoothed = token if smoothing == 0 else (1 - smoothing) * token + smoothing * logits.mean(-1, keepdims=True)
    losses = jnp.log(total) + top - smoothed
    real = mask[:, None]
    chosen = jnp.arange(logits.shape[-1])[None] == targets[:, None]
    each = 1 / count.astype(logits.dtype)
    gradient = exponentials * jnp.where(real, each / total, 0) - jnp.where(chosen & real, (1 - smoothing) * each, 0)
    if smoothing:
        gradient -= jnp.where(real, smoothing / logits.shape[-1] * each, 0)
    return jnp.sum(losses, where=real), jnp.sum(token == top, where=real, dtype=jnp.int32), gradient


def _nothing(features: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sums of loss and right tokens before the first slice."""
    wide = jnp.promote_types(jnp.result_type(features, kernel), jnp.float32)
    return jnp.zeros((), wide), jnp.zeros((), jnp.int32)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _projected(
    smoothing: float, rows: int, features: Any, kernel: Any, bias: Any, targets: Any, mask: Any
) -> tuple[Any, Any]:
    count = jnp.maximum(mask.sum(), 1)

    def one(sums: Any, *arrays: Any) -> Any:
        loss, right, _ = _slice(smoothing, count, kernel, bias, *arrays)
        return (sums[0] + loss, sums[1] + right), None

    sums, _ = _over_slices(one, rows, _nothing(features, kernel), None, features, targets, mask)
    return sums[0] / count, sums[1] / count


def _projected_forward(
    smoothing: float, rows: int, features: Any, kernel: Any, bias: Any, targets: Any, mask: Any
) -> tuple[Any, Any]:
    count = jnp.maximum(mask.sum(), 1)
    # Divided at once, the sums are the gradients: no pass over the kernel afterwards. Float16 has no room for that.
    at_once, rest = (jnp.ones_like(count), count) if kernel.dtype == jnp.float16 else (count, jnp.ones_like(count))

    wide = jnp.promote_types(kernel.dtype, jnp.float32)  # in half precision a long sum stops growing

    def one(sums: Any, x: Any, *others: Any) -> Any:
        loss, right, d_logits = _slice(smoothing, at_once, kernel, bias, x, *others)
        d_logits = d_logits.astype(kernel.dtype)
        d_kernel = jnp.matmul(x.T, d_logits, preferred_element_type=wide)
        added = (sums[0] + loss, sums[1] + right, sums[2] + d_kernel, sums[3] + d_logits.sum(0, dtype=wide))
        return added, (d_logits @ kernel.T).astype(x.dtype)

    after_features = partial(zeros_after, source=features)
    zeros = (*_nothing(features, kernel), after_features(kernel.shape, wide), after_features(bias.shape, wide))
    nowhere = after_features(features.shape, features.dtype)
    sums, d_features = _over_slices(one, rows, zeros, nowhere, features, targets, mask)
    d_kernel, d_bias = (share / rest for share in sums[2:])
    shares = d_features, d_kernel.astype(kernel.dtype), d_bias.astype(bias.dtype)
    return (sums[0] / count, sums[1] / count), (*shares, rest)


def _projected_backward(smoothing: float, rows: int, residuals: Any, gradients: Any) -> tuple[Any, ...]:
    *shares, rest = residuals
    factors = gradients[0] / rest, gradients[0], gradients[0]
    return *(share * factor.astype(share.dtype) for share, factor in zip(shares, factors, strict=True)), None, None


_projected.defvjp(_projected_forward, _projected_backward)
