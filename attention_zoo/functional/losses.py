"""Losses of token sequences, divided by the number of real tokens, never by the padded size."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from attention_zoo.notation import Array, Bool, Float, Int, checked

_ROWS = {"cpu": 256}  # of logits at a time: what its caches hold


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
    """`cross_entropy` of the logits `x_t W + b`, which never exist whole: a few steps at a time.

    Equal to `cross_entropy(features @ kernel + bias, ...)` up to rounding. When it is differentiated, each slice's
    share of the gradient is formed while its logits are at hand, so nothing is computed twice; beside the gradient of
    the kernel and a slice's share of it, the largest temporaries are `rows` rows of logits. The shares are summed in
    float32 at least. Reverse mode only, as with any `jax.custom_vjp`.

    Args:
        features: what the output layer sees, [B, T, D].
        kernel: of the output layer, [D, N]; bias: [N], or None.
        targets, mask, label_smoothing: as in `cross_entropy`.
        rows: about how many of the B x T rows, of all devices, are taken at a time; whole steps of the batch, at least
            one. Where the batch is sharded, each slice's gradient of the kernel is summed over the devices. By default
            256 on a CPU, and 4096 elsewhere, where it takes more work at a time to fill the device.

    Returns:
        the loss, and the share of the real tokens that no other is more probable than (not differentiable).

    Raises:
        ValueError: label_smoothing is outside [0, 1), or rows is below 1.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"projected_cross_entropy: label_smoothing lies in [0, 1); got {label_smoothing}")
    rows = _ROWS.get(jax.default_backend(), 4096) if rows is None else rows
    if rows < 1:
        raise ValueError(f"projected_cross_entropy: rows is at least 1; got {rows}")
    bias = jnp.zeros_like(kernel[0]) if bias is None else bias
    loss, right = _projected(label_smoothing, rows, features, kernel, bias, targets, mask)
    return loss, jax.lax.stop_gradient(right)


def _slices(array: jax.Array, rows: int) -> jax.Array:
    """[B, T, ...] to [slices, B, steps, ...], about `rows` rows each, the last one filled up with zeros."""
    batch, steps = array.shape[:2]
    each = max(1, steps // max(1, -(-batch * steps // rows)))
    count = max(1, -(-steps // each))
    padded = jnp.pad(array, ((0, 0), (0, each * count - steps), *[(0, 0)] * (array.ndim - 2)))
    return jnp.moveaxis(padded.reshape(batch, count, each, *array.shape[2:]), 1, 0)


def _slice(
    smoothing: float, count: Any, kernel: Any, bias: Any, features: Any, targets: Any, mask: Any
) -> tuple[Any, ...]:
    """Sums of one slice: loss and right tokens; and the logits' gradient of the summed loss over `count`, [B, t, N]."""
    logits = (features.reshape(-1, features.shape[-1]) @ kernel + bias[None]).reshape(*mask.shape, -1)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    top = logits.max(-1, keepdims=True)
    exponentials = jnp.exp(logits - top)
    total = exponentials.sum(-1, keepdims=True)
    token = jnp.take_along_axis(logits, jnp.where(mask, targets, 0)[..., None], axis=-1)
    smoothed = token if smoothing == 0 else (1 - smoothing) * token + smoothing * logits.mean(-1, keepdims=True)
    losses = jnp.log(total) + top - smoothed
    real = mask[..., None]
    chosen = jnp.arange(logits.shape[-1])[None, None] == targets[..., None]
    each = 1 / count.astype(logits.dtype)
    gradient = exponentials * jnp.where(real, each / total, 0) - jnp.where(chosen & real, (1 - smoothing) * each, 0)
    if smoothing:
        gradient -= jnp.where(real, smoothing / logits.shape[-1] * each, 0)
    return jnp.sum(losses, where=real), jnp.sum(token == top, where=real, dtype=jnp.int32), gradient


def _nothing(features: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sums of loss and right tokens before the first slice."""
    return jnp.zeros((), jnp.promote_types(features.dtype, jnp.float32)), jnp.zeros((), jnp.int32)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _projected(
    smoothing: float, rows: int, features: Any, kernel: Any, bias: Any, targets: Any, mask: Any
) -> tuple[Any, Any]:
    count = jnp.maximum(mask.sum(), 1)

    def step(sums: Any, slices: Any) -> Any:
        loss, right, _ = _slice(smoothing, count, kernel, bias, *slices)
        return (sums[0] + loss, sums[1] + right), None

    sums, _ = jax.lax.scan(step, _nothing(features), [_slices(array, rows) for array in (features, targets, mask)])
    return sums[0] / count, sums[1] / count


def _projected_forward(
    smoothing: float, rows: int, features: Any, kernel: Any, bias: Any, targets: Any, mask: Any
) -> tuple[Any, Any]:
    count = jnp.maximum(mask.sum(), 1)
    # Divided at once, the sums are the gradients: no pass over the kernel afterwards. Float16 has no room for that.
    at_once, later = (jnp.ones_like(count), count) if kernel.dtype == jnp.float16 else (count, jnp.ones_like(count))

    wide = jnp.promote_types(kernel.dtype, jnp.float32)  # in half precision a long sum stops growing

    def step(sums: Any, slices: Any) -> Any:
        loss, right, d_logits = _slice(smoothing, at_once, kernel, bias, *slices)
        flat, x = d_logits.reshape(-1, kernel.shape[1]).astype(kernel.dtype), slices[0].reshape(-1, kernel.shape[0])
        d_kernel = jnp.matmul(x.T, flat, preferred_element_type=wide)
        added = (sums[0] + loss, sums[1] + right, sums[2] + d_kernel, sums[3] + flat.sum(0, dtype=wide))
        return added, (flat @ kernel.T).reshape(slices[0].shape)

    zeros = (*_nothing(features), jnp.zeros(kernel.shape, wide), jnp.zeros(bias.shape, wide))
    sums, d_features = jax.lax.scan(step, zeros, [_slices(array, rows) for array in (features, targets, mask)])
    d_features = jnp.moveaxis(d_features, 0, 1).reshape(len(features), -1, features.shape[-1])
    d_kernel, d_bias = (share / later for share in sums[2:])
    shares = d_features[:, : features.shape[1]], d_kernel.astype(kernel.dtype), d_bias.astype(bias.dtype)
    return (sums[0] / count, sums[1] / count), (*shares, later)


def _projected_backward(smoothing: float, rows: int, residuals: Any, gradients: Any) -> tuple[Any, ...]:
    *shares, later = residuals
    factors = gradients[0] / later, gradients[0], gradients[0]
    return *(share * factor.astype(share.dtype) for share, factor in zip(shares, factors, strict=True)), None, None


_projected.defvjp(_projected_forward, _projected_backward)
