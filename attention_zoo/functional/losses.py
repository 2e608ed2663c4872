"""Losses of token sequences, divided by the number of real tokens, never by the padded size."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp

from attention_zoo.functional.arrays import one_cpu, unstacked, varying, zeros_after
from attention_zoo.functional.rows import LEAST, for_the_fullest
from attention_zoo.notation import Array, Bool, Float, Int, checked

_ROWS = 4096  # of logits at a time: enough to fill an accelerator
_CPU_ROWS, _CPU_LOGITS = 256, 5 * 2**20  # rows, and logits of all, that a CPU's caches hold
_SIZES = 4  # of a slice that is not full; each is compiled
_PARTS = 8  # of a row of logits

# (features [r, D], targets [r], mask [r]) -> what a slice adds to the sums, and what it gives, [r, D] or None.
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
    float32 at least. With one CPU as JAX's only device the real tokens are taken together, wherever they stand, and of
    the padding as much as fills a slice, or a quarter of a large one; under `jax.vmap` all examples take as many as
    the fullest. Reverse mode only, as with any `jax.custom_vjp`.

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
    loss, right = _projected(label_smoothing, rows, *varying(features, kernel, bias, targets, mask))
    return loss, jax.lax.stop_gradient(right)


def _default_rows(vocabulary: int) -> int:
    if jax.default_backend() != "cpu":
        return _ROWS
    return min(_CPU_ROWS, max(_CPU_ROWS // 4, _CPU_LOGITS // max(1, vocabulary)))


def _over_slices(one: _Slicewise, most: int, kernel: Any, features: Any, targets: Any, mask: Any) -> tuple[Any, Any]:
    """The sums of what `one` adds, slice after slice, and what it gives, in its place: [B, T, D] or None."""
    if not mask.size:
        sums, gave = one(*(array.reshape(0, *array.shape[2:]) for array in (features, targets, mask)))
        return sums, None if gave is None else gave.reshape(features.shape)
    if not one_cpu():
        return _over_steps(one, most, features, targets, mask)
    sizes = _SIZES if min(most, mask.size) * kernel.size >= LEAST else 1
    return _over_real_rows(one, most, sizes, features, targets, mask)


def _over_real_rows(one: _Slicewise, most: int, sizes: int, features: Any, targets: Any, mask: Any) -> tuple[Any, Any]:
    """Slices of the real tokens: first what is left over, in the least of so many sizes that holds it; then full ones.

    The sums begin as what the first one adds, instead of as zeros.
    """
    x, y, real = (array.reshape(mask.size, *array.shape[2:]) for array in (features, targets, mask))
    count = -(-mask.size // most)
    rows = -(-mask.size // count)
    parts = sorted({-(-rows * n // sizes) for n in range(1, sizes + 1)})
    number = real.sum()
    full = jnp.maximum(number - 1, 0) // rows
    left = number - full * rows
    needed = sum((left > part).astype(jnp.int32) for part in parts[:-1])
    places = jnp.nonzero(real, size=count * rows, fill_value=mask.size)[0]
    first = jnp.where(jnp.arange(rows) < left, places[:rows], mask.size)

    def slice_of(places: Any) -> tuple[Any, Any]:
        taken = (jnp.take(array, places, axis=0, mode="fill", fill_value=0) for array in (x, y))
        shares, gave = one(*taken, places < mask.size)
        return shares, None if gave is None else jnp.pad(gave, ((0, rows - len(places)), (0, 0)))

    def put(found: Any, places: Any, gave: Any) -> Any:
        # Outside of the switches, for which XLA would copy all rows.
        return None if gave is None else found.at[places].set(gave, mode="drop")

    def added(sums: Any, places: Any) -> tuple[Any, Any]:
        shares, gave = slice_of(places)
        return jax.tree.map(jnp.add, sums, shares), gave

    def step(state: Any, n: Any) -> tuple[Any, None]:
        own = jax.lax.dynamic_slice_in_dim(places, left + n * rows, rows)
        sums, gave = jax.lax.cond(n < most_full, added, lambda sums, _: (sums, nothing), state[0], own)
        return (sums, put(state[1], own, gave)), None

    branches = [partial(slice_of, first[:part]) for part in parts]
    sums, gave = jax.lax.switch(for_the_fullest(jnp.int32(needed)), branches)
    nothing, most_full = jax.tree.map(jnp.zeros_like, gave), for_the_fullest(full)
    found = None if gave is None else put(zeros_after(x.shape, gave.dtype, features), first, gave)
    if count > 1:
        (sums, found), _ = jax.lax.scan(step, (sums, found), jnp.arange(count - 1))
    return sums, None if found is None else found.reshape(features.shape)


def _over_steps(one: _Slicewise, most: int, features: Any, targets: Any, mask: Any) -> tuple[Any, Any]:
    """Slices of whole steps, in which every row stays on its device."""
    slices = [_steps(array, most) for array in (features, targets, mask)]

    def step(sums: Any, slices: Any) -> tuple[Any, Any]:
        shares, gave = one(*slices)
        return jax.tree.map(jnp.add, sums, shares), gave

    shares, _ = jax.eval_shape(one, *(unstacked(array) for array in slices))
    zeros = jax.tree.map(lambda share: zeros_after(share.shape, share.dtype, features), shares)
    sums, gave = jax.lax.scan(step, zeros, slices)
    if gave is None:
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
    logits = features @ kernel if bias is None else features @ kernel + bias[None]
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    top = logits.max(-1, keepdims=True) if bias is None else _largest(logits)
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


def _largest(logits: jax.Array) -> jax.Array:
    """Of every row, [r, 1], where a bias was added: on one CPU by comparing parts, into which that addition melts.

    For a reduction alone XLA would write all logits first.
    """
    each = logits.shape[-1] // _PARTS
    if not one_cpu() or not each:
        return logits.max(-1, keepdims=True)
    parts = [logits[:, n * each : (n + 1) * each] for n in range(_PARTS)]
    rest = logits[:, _PARTS * each :]
    largest = reduce(jnp.maximum, parts).max(-1, keepdims=True)
    return jnp.maximum(largest, rest.max(-1, keepdims=True)) if rest.shape[-1] else largest


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _projected(
    smoothing: float, rows: int, features: Any, kernel: Any, bias: Any, targets: Any, mask: Any
) -> tuple[Any, Any]:
    count = jnp.maximum(mask.sum(), 1)

    def one(*arrays: Any) -> Any:
        return _slice(smoothing, count, kernel, bias, *arrays)[:2], None

    (loss, right), _ = _over_slices(one, rows, kernel, features, targets, mask)
    return loss / count, right / count


def _projected_forward(
    smoothing: float, rows: int, features: Any, kernel: Any, bias: Any, targets: Any, mask: Any
) -> tuple[Any, Any]:
    count = jnp.maximum(mask.sum(), 1)
    # Divided at once, the sums are the gradients: no pass over the kernel afterwards. Float16 has no room for that.
    at_once, rest = (jnp.ones_like(count), count) if kernel.dtype == jnp.float16 else (count, jnp.ones_like(count))

    wide = jnp.promote_types(kernel.dtype, jnp.float32)  # in half precision a long sum stops growing

    def one(x: Any, *others: Any) -> Any:
        loss, right, d_logits = _slice(smoothing, at_once, kernel, bias, x, *others)
        d_logits = d_logits.astype(kernel.dtype)
        d_kernel = jnp.matmul(x.T, d_logits, preferred_element_type=wide)
        shares = loss, right, d_kernel, None if bias is None else d_logits.sum(0, dtype=wide)
        return shares, (d_logits @ kernel.T).astype(x.dtype)

    (loss, right, *sums), d_features = _over_slices(one, rows, kernel, features, targets, mask)
    d_weights = jax.tree.map(lambda share, weights: (share / rest).astype(weights.dtype), sums, [kernel, bias])
    return (loss / count, right / count), (d_features, *d_weights, rest)


def _projected_backward(smoothing: float, rows: int, residuals: Any, gradients: Any) -> tuple[Any, ...]:
    d_features, *d_weights, rest = residuals

    def scaled(tree: Any, factor: Any) -> Any:
        return jax.tree.map(lambda share: share * factor.astype(share.dtype), tree)

    return scaled(d_features, gradients[0] / rest), *scaled(d_weights, gradients[0]), None, None


_projected.defvjp(_projected_forward, _projected_backward)
