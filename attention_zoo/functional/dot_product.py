"""Scaled dot-product attention with all that a Transformer needs: whole, in chunks, or by an outside kernel."""

from collections.abc import Callable
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from attention_zoo.functional import chunked
from attention_zoo.functional.alignment import softmax
from attention_zoo.functional.arrays import like, varying
from attention_zoo.functional.kernels import kernel, modern_gpu, refusal
from attention_zoo.functional.masks import within
from attention_zoo.functional.tiles import (
    Call,
    Laid,
    Loose,
    Places,
    Settings,
    allowed,
    bias_at,
    everywhere,
    hide,
    merge_heads,
    score,
)
from attention_zoo.functional.weighing import whole
from attention_zoo.notation import Array, Bool, Float, Int, checked

IMPLEMENTATIONS = ("plain", "chunked", "cudnn", "tokamax")
Bias = Callable[[Array, Array], Array]
_NAME = "dot_product_attention"
_SHORT = 2**14  # the largest T S that is built whole by default


@checked
def dot_product_attention(
    queries: Float[Array, "*b H T D"],
    keys: Float[Array, "*b G S D"],
    values: Float[Array, "*b G S V"],
    mask: Bool[Array, "..."] | None = None,
    *,
    lengths: Int[Array, "*b"] | None = None,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    offset: int | Int[Array, ""] = 0,
    segments: tuple[Int[Array, "*b T"], Int[Array, "*b S"]] | None = None,
    bias: Float[Array, "..."] | Bias | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    key: jax.Array | None = None,
    implementation: str | None = None,
    chunk: int | None = None,
) -> Float[Array, "*b H T V"]:
    """Attention of many heads, `softmax(Q K^T / sqrt(D)) V` (Vaswani 2017, eq. 1).

    Each key head serves H / G query heads in a row: grouped heads (Ainslie 2023), multi-query attention for G = 1.

    Args:
        queries, keys, values: [..., H, T, D], [..., G, S, D], [..., G, S, V]; H is a multiple of G.
        mask: True = may attend; broadcasts against [..., H, T, S].
        lengths: how many of the keys are real, [...]; the others are hidden from all queries. An outside kernel skips
            them, unless a mask, segments or a window stand beside: then they become a part of its mask.
        causal, window: as `masks.causal` and `masks.window` (left, right); query t stands at position t + offset.
        segments: numbers of the packed sequences, of queries [..., T] and of keys [..., S]; 0 marks padding.
        bias: added to the scores; an array that broadcasts against [..., H, T, S], or a function of query positions
            t + offset and key positions, [t] and [s], giving [H or 1, t, s]: called for a chunk at a time.
            Neither infinite (but -infinity) nor NaN, also where a score is hidden.
        soft_cap: scores become `c tanh(scores / c)`, before the bias.
        scale: of the products; 1 / sqrt(D) by default.
        dropout: share of the weights that become zero, each by itself, drawn with `key`; the others are divided by
            1 - dropout. Other implementations, chunks and machines draw other weights.
        implementation: "plain" builds [..., H, T, S]; "chunked" never does (`chunked.py`); "cudnn" is
            jax.nn.dot_product_attention's, "tokamax" the package's. By default what `choose` says.
        chunk: the most queries at a time, for "chunked"; by default what suits the backend, the bounds and the sizes.

    Returns:
        context [..., H, T, V]; zeros where a query may attend to nothing.

    Raises:
        ValueError: an argument does not fit the others, or the implementation cannot honour it.
    """
    call = _call(
        queries, keys, values, mask, lengths, causal, window, offset, segments, bias, soft_cap, scale, dropout, key
    )
    if chunk is not None and (chunk < 1 or implementation not in (None, "chunked")):
        raise ValueError(f"{_NAME}: chunk is at least 1, and for implementation 'chunked'; got {chunk}")
    if implementation is None:
        free = refusal("cudnn", call) is None and modern_gpu()
        size = (queries.shape[-2], keys.shape[-2])
        implementation = "chunked" if chunk else choose(jax.default_backend(), call.queries.dtype, *size, cudnn=free)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"{_NAME}: implementation is one of {', '.join(IMPLEMENTATIONS)}; got {implementation!r}")
    refused = refusal(implementation, call)
    if refused:
        raise ValueError(f"{_NAME}: implementation {implementation!r} wants {refused}")
    if implementation in ("cudnn", "tokamax"):
        context = kernel(implementation, call)
    elif implementation == "chunked" and queries.size and keys.size:
        context = chunked.attention(call, chunk)
    else:
        context = whole(call)
    return context.reshape(*queries.shape[:-1], values.shape[-1])


def choose(backend: str, dtype: Any, queries: int, keys: int, *, cudnn: bool) -> str:
    """The default implementation: cuDNN on a GPU where it can, whole while short, in chunks beyond.

    Args:
        backend: as `jax.default_backend()` says.
        dtype: of the queries; cuDNN takes float16 and bfloat16.
        queries, keys: T and S; up to T S = 2**14 the scores are built whole.
        cudnn: cuDNN can honour every argument of the call.

    >>> choose("cpu", "float32", 128, 128, cudnn=False), choose("cpu", "float32", 512, 512, cudnn=False)
    ('plain', 'chunked')
    """
    if backend == "gpu" and cudnn and jnp.dtype(dtype) in (jnp.float16, jnp.bfloat16):
        return "cudnn"
    return "plain" if queries * keys <= _SHORT else "chunked"


@checked
def attention_rows(
    queries: Float[Array, "*b H T D"],
    keys: Float[Array, "*b G S D"],
    mask: Bool[Array, "..."] | None = None,
    *,
    heads: Int[Array, " h"],
    rows: Int[Array, " r"],
    lengths: Int[Array, "*b"] | None = None,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    offset: int | Int[Array, ""] = 0,
    segments: tuple[Int[Array, "*b T"], Int[Array, "*b S"]] | None = None,
    bias: Float[Array, "..."] | Bias | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
) -> Float[Array, "*b h r S"]:
    """Weights of chosen heads and queries, before dropout, as `dot_product_attention` weighs them; cost h r S.

    A fused path returns no weights: these are computed beside it, exactly, for those who ask.

    Args:
        heads: numbers of query heads, [h].
        rows: numbers of queries, [r].
        The others are those of `dot_product_attention`, for all heads and queries.

    Raises:
        ValueError: an argument does not fit the others; a number of `heads` or `rows` is not below H or T.
    """
    _check_numbers("heads", heads, queries.shape[-3])
    _check_numbers("rows", rows, queries.shape[-2])
    call = _call(queries, keys, keys, mask, lengths, causal, window, offset, segments, bias, soft_cap, scale, 0.0, None)
    standing, columns = everywhere(call)

    def chosen(array: Array) -> Array:
        array = merge_heads(array)
        array = array if array.shape[1] == 1 else jnp.take(array, heads, axis=1)
        return (array if array.shape[2] == 1 else jnp.take(array, rows, axis=2))[:, :, None]

    def of_heads(*arguments: Any) -> Array:
        assert call.settings.bias is not None
        bias = call.settings.bias(*arguments)
        return bias if bias.shape[0] == 1 else jnp.take(bias, heads, axis=0)

    few = call._replace(
        settings=call.settings if call.settings.bias is None else call.settings._replace(bias=of_heads),
        queries=jnp.take(jnp.take(merge_heads(call.queries), heads, axis=1), rows, axis=2)[:, :, None],
        keys=jnp.take(call.keys, heads // (queries.shape[-3] // keys.shape[-3]), axis=1),
        laid=jax.tree.map(chosen, call.laid),
    )
    weights = _weights(few, (jnp.take(standing, rows), columns)).astype(call.queries.dtype)
    return weights.reshape(*queries.shape[:-3], len(heads), len(rows), keys.shape[-2])


def _call(
    queries: Array, keys: Array, values: Array, mask: Any, lengths: Any, causal: bool, window: Any, offset: Any,
    segments: Any, bias: Any, soft_cap: float | None, scale: float | None, dropout: float, key: Any,
) -> Call:  # fmt: skip
    queries, keys, values = jnp.asarray(queries), jnp.asarray(keys), jnp.asarray(values)
    *lead, heads, size, width = queries.shape
    groups = keys.shape[-3]
    _check(queries, keys, values, window, soft_cap, dropout, key)
    full, split = (*lead, heads, size, keys.shape[-2]), (groups, heads // groups)
    left, right = (None, None) if window is None else window
    right = 0 if causal else right
    scale = width**-0.5 if scale is None else scale
    static = None if isinstance(offset, jax.Array) else int(offset)
    left, right = _needed(left, right, static, size, keys.shape[-2])
    settings = Settings(scale, soft_cap, left, right, static, dropout)
    loose = Loose(offset if static is None else None, key=key)
    lengths = None if lengths is None else jnp.asarray(lengths).reshape(-1)
    real = None if lengths is None else within(lengths, keys.shape[-2])[:, None, None, None]
    laid = Laid(_lay("mask", mask, full, split), real)
    if segments is not None:
        of_queries, of_keys = (jnp.asarray(numbers) for numbers in segments)
        laid = laid._replace(
            query_segments=_lay("segments", of_queries[..., None, :, None], full, split),
            key_segments=_lay("segments", of_keys[..., None, None, :], full, split),
        )
    if callable(bias):
        function, arrays, constants = _apart(bias, heads, (queries, keys, values, laid, loose.offset))
        settings, loose = settings._replace(bias=function), loose._replace(arrays=arrays, constants=constants)
    else:
        laid = laid._replace(bias=_lay("bias", bias, full, split))
    queries = queries.reshape(prod(lead), *split, size, width)
    keys, values = (array.reshape(prod(lead), *array.shape[-3:]) for array in (keys, values))
    return Call(settings, queries, keys, values, laid, loose, lengths)


def _needed(
    left: int | None, right: int | None, first: int | None, queries: Any, keys: Any
) -> tuple[int | None, int | None]:
    """The bounds, without those that are known to hide no key from any query: they would only cost."""
    if first is None or not isinstance(queries, int) or not isinstance(keys, int):
        return left, right
    free_left = left is not None and first + queries - 1 <= left
    free_right = right is not None and keys - 1 - first <= right
    return None if free_left else left, None if free_right else right


def _check(queries: Array, keys: Array, values: Array, window: Any, soft_cap: Any, dropout: float, key: Any) -> None:
    heads, groups, dtypes = queries.shape[-3], keys.shape[-3], [str(array.dtype) for array in (queries, keys, values)]
    rules = (
        (groups and heads % groups == 0, f"H is a multiple of G; got {heads} query heads and {groups} key heads"),
        (len(set(dtypes)) == 1, f"queries, keys and values have one dtype; got {', '.join(dtypes)}"),
        (window is None or min(window) >= 0, f"window is (left, right), both at least 0; got {window}"),
        (soft_cap is None or soft_cap > 0, f"soft_cap is above 0; got {soft_cap}"),
        (0 <= dropout < 1, f"dropout is in [0, 1); got {dropout}"),
        (dropout == 0 or key is not None, f"dropout wants a key; got none for dropout {dropout}"),
    )
    for holds, sentence in rules:
        if not holds:
            raise ValueError(f"{_NAME}: {sentence}")


def _lay(name: str, array: Any, full: tuple[int, ...], split: tuple[int, int]) -> Array | None:
    """An array that broadcasts against [..., H, T, S] in five axes, without growing but in leading axes."""
    if array is None:
        return None
    array = jnp.asarray(array)
    shape = (1,) * (len(full) - array.ndim) + array.shape
    if len(shape) != len(full) or any(size not in (1, whole) for size, whole in zip(shape, full, strict=True)):
        raise ValueError(f"{_NAME}: {name} broadcasts against {list(full)}, [..., H, T, S]; got {list(array.shape)}")
    lead, heads = shape[:-3], (1, 1) if shape[-3] == 1 else split
    if max(lead, default=1) > 1:
        lead = full[:-3]
    return jnp.broadcast_to(array.reshape(shape), (*lead, *shape[-3:])).reshape(prod(lead), *heads, *shape[-2:])


def _apart(bias: Bias, heads: int, beside: Any) -> tuple[Callable[..., Array], list[Array], list[Array]]:
    """A bias function as a pure one of the arrays it closes over: those with a gradient, and the others.

    A custom gradient gives none to what its function closes over, so the function is traced, for one pair of
    positions, and its arrays become arguments.
    """
    one, _ = varying(jnp.zeros(1, jnp.int32), beside)
    known = like(one, one.shape)
    traced = jax.make_jaxpr(bias)(one, one)
    if [output.shape not in ((1, 1, 1), (heads, 1, 1)) for output in traced.out_avals] != [False]:
        got = ", ".join(str(list(output.shape)) for output in traced.out_avals)
        raise ValueError(
            f"{_NAME}: a bias function gives [H or 1, t, s] of positions [t], [s]; got {got} for t = s = 1"
        )
    smooth = [jnp.issubdtype(jnp.result_type(array), jnp.inexact) for array in traced.consts]

    def function(arrays: list[Array], constants: list[Array], rows: Array, columns: Array) -> Array:
        sources = (iter(constants), iter(arrays))
        rows, columns, _ = varying(rows, columns, known)  # as where it was traced
        closed = ClosedJaxpr(traced.jaxpr, [next(sources[is_smooth]) for is_smooth in smooth])
        at = lambda row, column: jaxpr_as_fun(closed)(row[None], column[None])[0][:, 0, 0]  # noqa: E731
        return jax.vmap(jax.vmap(at, (None, 0), -1), (0, None), -2)(rows, columns)

    pairs = list(zip(traced.consts, smooth, strict=True))
    return (
        function,
        [array for array, is_smooth in pairs if is_smooth],
        [array for array, is_smooth in pairs if not is_smooth],
    )


def _weights(call: Call, places: Places) -> Array:
    """Weights [B, G, R, T, S] in float32 at least."""
    wide = jnp.promote_types(call.queries.dtype, jnp.float32)
    products = jnp.einsum("bgrtd,bgsd->bgrts", call.queries, call.keys, preferred_element_type=wide)
    shown = allowed(call.settings, places, call.laid)
    if call.settings.soft_cap:
        products = hide(shown, products, 0)  # the slope of tanh at NaN is NaN
    scores = score(call.settings, products, bias_at(call, places, call.laid.bias, call.loose.arrays))
    return softmax(scores, None if shown is None else jnp.broadcast_to(shown, scores.shape))


def _check_numbers(name: str, numbers: Array, size: int) -> None:
    if not isinstance(numbers, jax.core.Tracer) and numbers.size and not 0 <= np.min(numbers) <= np.max(numbers) < size:
        raise ValueError(f"attention_rows: {name} are numbers from 0 to {size - 1}; got {np.asarray(numbers).tolist()}")
