"""Layer normalisation and rectifier whose gradients keep no array that the network does not keep anyway.

Else a norm's scale and deviation would be kept as whole [..., D] arrays, and a rectifier's inputs beside its outputs:
memory that XLA:CPU takes anew, and the system clears, in every step (docs/DESIGN.md, what prototypes measured).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from attention_zoo.functional.arrays import varying
from attention_zoo.notation import Array, Float, checked

Kept = tuple[jax.Array, ...]


@checked
def layer_norm(
    inputs: Float[Array, "*b D"],
    scale: Float[Array, " D"],
    bias: Float[Array, " D"],
    *,
    epsilon: float = 1e-6,
    dtype: DTypeLike | None = None,
) -> Float[jax.Array, "*b D"]:
    """`y = (x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias` over the last axis (Ba 2016).

    The same as `flax.linen.LayerNorm`, which has the forward mode too: here there is reverse mode only (`jax.grad`,
    `jax.vjp`), which keeps x, and a mean and a deviation for each vector. Computed in float32 at least.

    Args:
        inputs: x, [..., D].
        scale, bias: [D].
        epsilon: added to the variance.
        dtype: of y; by default what x, scale and bias promote to.

    Returns:
        y [..., D].
    """
    given = jnp.result_type(inputs, scale, bias) if dtype is None else jnp.dtype(dtype)
    rows = jnp.asarray(inputs).reshape(-1, inputs.shape[-1])
    wide = jnp.promote_types(jnp.result_type(inputs, scale, bias), jnp.float32)
    rows, scale, bias = varying(rows, scale.astype(wide), bias.astype(wide))
    return _normalised(epsilon, given, rows, scale, bias).reshape(inputs.shape)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _normalised(epsilon: float, dtype: Any, rows: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Of [N, D], computed in the dtype of scale and bias."""
    return _forward(epsilon, dtype, rows, scale, bias)[0]


def _forward(epsilon: float, dtype: Any, rows: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, Kept]:
    x = rows.astype(scale.dtype)
    mean = x.mean(-1)
    deviation = jax.lax.rsqrt(jnp.maximum(jnp.square(x).mean(-1) - jnp.square(mean), 0) + epsilon)
    y = (x - mean[:, None]) * deviation[:, None] * scale[None] + bias[None]
    return y.astype(dtype), (rows, scale, mean, deviation)


def _backward(epsilon: float, dtype: Any, kept: Kept, gradient: jax.Array) -> Kept:
    rows, scale, mean, deviation = kept
    x, dy = rows.astype(scale.dtype), gradient.astype(scale.dtype)
    normal = lambda: (x - mean[:, None]) * deviation[:, None]  # noqa: E731  # computed where it is read
    product = dy * normal()
    mean_dy, mean_product = (_weighted(array, scale)[:, None] / x.shape[-1] for array in (dy, product))
    dx = deviation[:, None] * (dy * scale[None] - mean_dy - normal() * mean_product)
    return dx.astype(rows.dtype), product.sum(0), dy.sum(0)


_normalised.defvjp(_forward, _backward)


def _weighted(rows: jax.Array, weights: jax.Array) -> jax.Array:
    """`sum_d w_d x_nd`; for a sum of products XLA:CPU would write the weights out once for each row."""
    if jax.default_backend() == "cpu":
        return jnp.matmul(rows, weights, precision=jax.lax.Precision.HIGHEST)
    return (rows * weights[None]).sum(-1)


@jax.custom_jvp
def relu(inputs: Array) -> jax.Array:
    """`max(x, 0)`, with a slope of 0 at 0; its gradient is read off its outputs, so that nobody keeps x.

    Args:
        inputs: x, any shape.
    """
    outputs = jnp.maximum(inputs, 0)
    # Or XLA:CPU computes them once more from inputs that it keeps. On others they melt into the products around them.
    return jax.lax.optimization_barrier(outputs) if jax.default_backend() == "cpu" else outputs


@relu.defjvp
def _relu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    outputs = relu(*primals)
    return outputs, _where_positive(outputs, *tangents)


@partial(jax.checkpoint, prevent_cse=False)
def _where_positive(outputs: jax.Array, tangents: jax.Array) -> jax.Array:
    """The tangents there; going back the outputs are compared again, which a loop would else keep as bytes."""
    return jnp.where(outputs > 0, tangents, 0)
