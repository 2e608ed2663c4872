"""vmap that makes the batch larger, for kernels whose own rules for it do not know every argument."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from attention_zoo.functional.arrays import varying
from attention_zoo.notation import Array

Arrays = dict[str, Array]


def fold(function: Callable[..., Array], shared: tuple[str, ...]) -> Callable[..., Array]:
    """The function, under vmap called once, on arrays [n B, ...] with the mapped axis in front of their own.

    So it is in the gradient as well, which goes on from what the forward pass has saved. There no array that has a
    gradient stays shared: each example has its own of it.

    Args:
        function: of arrays by name, [B, ...]: gives [B, ...], of each example by itself. What it closes over has no
            gradient and is not mapped.
        shared: names of those that may be [1, ...] too, one for all examples.
    """
    merged = partial(_merged, shared)

    def pulled(arrays: Arrays) -> tuple[Array, Any]:
        fixed = {name: array for name, array in arrays.items() if not _smooth(array)}
        smooth = {name: array for name, array in arrays.items() if _smooth(array)}
        return jax.vjp(lambda smooth: function(**smooth, **fixed), smooth)

    def forward(arrays: Arrays) -> tuple[Array, list[Array]]:
        context, pull = pulled(arrays)
        return context, jax.tree.leaves(pull)

    def backward(arrays: Arrays, saved: list[Array], cotangent: Array) -> Arrays:
        shapes = jax.eval_shape(lambda arrays: pulled(arrays)[1], arrays)
        return jax.tree.unflatten(jax.tree.structure(shapes), saved)(cotangent)[0]

    mapped_backward = custom_vmap(backward)

    @mapped_backward.def_vmap
    def of_gradients(size: int, mapped: Any, arrays: Arrays, saved: list[Array], cotangent: Array) -> Any:
        whole = {name: mapped[0][name] or _smooth(array) for name, array in arrays.items()}
        larger = merged(size, mapped[0], arrays, whole)
        context, shapes = jax.eval_shape(forward, larger)
        saved = [_fit(size, *leaf) for leaf in zip(saved, mapped[1], shapes, strict=True)]
        gradients = mapped_backward(larger, saved, _fit(size, cotangent, mapped[2], context))
        alone = _alone(arrays, mapped[0])

        def part(name: str) -> Array:
            gradient = gradients[name].reshape(size, -1, *gradients[name].shape[1:])
            return gradient if gradient.shape[1] == alone[name].shape[0] else jnp.sum(gradient, axis=1, keepdims=True)

        return {name: part(name) for name in gradients}, dict.fromkeys(gradients, True)

    primal, saving = _mapped(lambda arrays: function(**arrays), merged), _mapped(forward, merged)

    @jax.custom_vjp
    def folded(arrays: Arrays) -> Array:
        return primal(arrays)

    def given(arrays: Arrays) -> list[str | None]:
        """Which of what is saved is an array that was given: a loop around this need not keep it again."""
        jaxpr = jax.make_jaxpr(forward)(arrays).jaxpr
        names = list(zip(jaxpr.invars, sorted(arrays), strict=True))
        return [next((name for var, name in names if var is leaf), None) for leaf in jaxpr.outvars[1:]]

    def forwards(arrays: Arrays) -> tuple[Array, Any]:
        context, saved = saving(arrays)
        return context, (arrays, [leaf for leaf, name in zip(saved, given(arrays), strict=True) if name is None])

    def backwards(residuals: Any, cotangent: Array) -> tuple[dict[str, Array | None]]:
        arrays, rest = residuals[0], iter(residuals[1])
        saved = [next(rest) if name is None else arrays[name] for name in given(arrays)]
        gradients = mapped_backward(arrays, saved, cotangent)
        return ({name: gradients.get(name) for name in arrays},)

    folded.defvjp(forwards, backwards)
    return lambda **arrays: folded(*varying(arrays))


def _mapped(run: Callable[[Arrays], Any], merged: Callable[..., Arrays]) -> Callable[[Arrays], Any]:
    """A function of arrays that gives arrays, with vmap as `fold` has it."""
    mapped_run = custom_vmap(run)

    @mapped_run.def_vmap
    def rule(size: int, mapped: Any, arrays: Arrays) -> Any:
        found = mapped_run(merged(size, mapped[0], arrays, mapped[0]))
        shapes = jax.eval_shape(run, _alone(arrays, mapped[0]))
        # What did not grow with the batch is of shared arrays alone: the same for every example.
        grown = jax.tree.map(lambda array, shape: array.shape != shape.shape, found, shapes)

        def split(array: Array, grown: bool, shape: Any) -> Array:
            if not grown:
                return array
            axis = _batch_axis(array.shape, shape.shape)
            parts = array.reshape(*array.shape[:axis], size, -1, *array.shape[axis + 1 :])
            # Of a shared array that was mapped there are B copies.
            return jnp.moveaxis(jax.lax.slice_in_dim(parts, 0, shape.shape[axis], axis=axis + 1), axis, 0)

        return jax.tree.map(split, found, grown, shapes), grown

    return mapped_run


def _smooth(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.inexact))


def _alone(arrays: Arrays, mapped: dict[str, bool]) -> dict[str, jax.ShapeDtypeStruct]:
    """What one example has of them."""
    shape = lambda name, array: array.shape[1:] if mapped[name] else array.shape  # noqa: E731
    return {name: jax.ShapeDtypeStruct(shape(name, array), array.dtype) for name, array in arrays.items()}


def _merged(
    shared: tuple[str, ...], size: int, mapped: dict[str, bool], arrays: Arrays, whole: dict[str, bool]
) -> Arrays:
    """All as [n B, ...], but what is [1, ...] for all examples and not wanted whole."""
    alone = _alone(arrays, mapped)
    batch = next(shape.shape[0] for name, shape in alone.items() if name not in shared)

    def merge(name: str, array: Array) -> Array:
        stays = name in shared and alone[name].shape[0] == 1 and not whole[name]
        shape = (1 if stays else size * batch, *alone[name].shape[1:])
        return _fit(size, array, mapped[name], jax.ShapeDtypeStruct(shape, array.dtype))

    return {name: merge(name, array) for name, array in arrays.items()}


def _fit(size: int, array: Array, mapped: bool, shape: Any) -> Array:
    """What examples have, [..., b, ...] with n in front where mapped, as [..., n B, ...]; or the same for all."""
    one = array.shape[1:] if mapped else array.shape
    if one == shape.shape:
        return array[0] if mapped else array
    axis = _batch_axis(one, shape.shape)
    array = jnp.moveaxis(array, 0, axis) if mapped else jnp.expand_dims(array, axis)
    before, after = one[:axis], one[axis + 1 :]
    return jnp.broadcast_to(array, (*before, size, shape.shape[axis] // size, *after)).reshape(shape.shape)


def _batch_axis(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return next(axis for axis, sizes in enumerate(zip(one, other, strict=True)) if sizes[0] != sizes[1])
