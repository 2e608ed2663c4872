"""Scaled dot-product attention by outside kernels: cuDNN's, through jax.nn, and tokamax's."""

from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp

from attention_zoo.functional.batching import fold
from attention_zoo.functional.tiles import Call, allowed, everywhere, merge_heads
from attention_zoo.notation import Array


def modern_gpu() -> bool:
    """Whether JAX's default device is NVIDIA's, Ampere or later: cuDNN's attention and Triton's kernels run there."""
    device = getattr(jax.config, "jax_default_device", None)  # its type does not tell of it
    return _is_modern(jax.devices(device)[0] if device is None or isinstance(device, str) else device)


@cache
def _is_modern(device: Any) -> bool:
    capability = str(getattr(device, "compute_capability", ""))
    return capability.replace(".", "", 1).isdigit() and float(capability) >= 8


def refusal(implementation: str, call: Call) -> str | None:
    """What an implementation lacks for this call, as `wants ...; got ...`."""
    width, depth = call.queries.shape[-1], call.values.shape[-1]
    if implementation in ("cudnn", "tokamax") and call.settings.dropout:
        return f"no dropout; got {call.settings.dropout}"
    if implementation == "tokamax" and call.settings.soft_cap and not (call.laid.bias is None is call.settings.bias):
        return "no soft cap beside a bias, which it would cap too; got both"
    if implementation != "cudnn":
        return None
    if call.queries.dtype not in (jnp.float16, jnp.bfloat16):
        return f"float16 or bfloat16; got {call.queries.dtype}"
    if width != depth or width % 8 or width > 128:
        return f"keys and values of one width, a multiple of 8 up to 128; got {width} and {depth}"
    if call.settings.soft_cap:
        return f"no soft cap; got {call.settings.soft_cap}"
    sizes = call.queries.shape[3], call.keys.shape[2]
    if sizes[0] % 2 or sizes[1] % 2:  # With a gradient jax takes its empty stand-in for a bias, which wants even ones.
        return f"even T and S; got {sizes[0]} and {sizes[1]}"
    return None


def _native(call: Call) -> bool:
    """The kernels' own causal mask says the same: T = S, the first query stands at the first key."""
    settings = call.settings
    aligned = call.queries.shape[3] == call.keys.shape[2] and settings.offset == 0
    return (settings.left is None and settings.right is None) or (aligned and settings.right == 0)


def kernel(implementation: str, call: Call) -> Array:
    """The call in an outside function's terms: [B, T, H, D], and what its own arguments do not say as one mask."""
    native, places = _native(call), everywhere(call)
    rest = call.settings._replace(left=None, right=None) if native else call.settings
    # A kernel keeps to lengths by itself where nothing else wants a mask. Not beside a window: there queries far behind
    # the last real key see nothing, and only a mask keeps them finite.
    unsaid = allowed(rest, places, call.laid._replace(real=None))
    lengths = call.lengths if unsaid is None and call.settings.left is None else None
    shown = allowed(rest, places, call.laid) if lengths is None else None
    own: dict[str, Any] = {"scale": call.settings.scale}
    arrays = {} if lengths is None else _lengths(implementation, call, lengths)
    if shown is not None:
        mask = merge_heads(shown)
        arrays["mask"] = mask if implementation == "tokamax" and mask.shape[2] == 1 else _whole(call, mask)
    if native and call.settings.right == 0:
        own["is_causal"] = True
        own["local_window_size"] = None if call.settings.left is None else (call.settings.left, 0)
    if call.laid.bias is not None:
        arrays["bias"] = _whole(call, merge_heads(call.laid.bias)).astype(call.queries.dtype)
    if call.settings.bias is not None:
        bias = call.settings.bias(call.loose.arrays, call.loose.constants, *places)
        arrays["bias"] = bias[None].astype(call.queries.dtype)
    if call.settings.soft_cap:
        own["logits_soft_cap"] = call.settings.soft_cap
    for name, array in (("query", merge_heads(call.queries)), ("key", call.keys), ("value", call.values)):
        arrays[name] = jnp.swapaxes(array, 1, 2)
    context = jnp.swapaxes(_function(implementation, own)(**arrays), 1, 2)
    # Of a query with nothing to attend to they make the mean of all values, or NaN.
    if lengths is not None:  # The first key is seen by every query, where it is real.
        return context if implementation == "cudnn" else jnp.where((lengths > 0)[:, None, None, None], context, 0)
    seen = None if shown is None else allowed(call.settings, places, call.laid)
    return context if seen is None else jnp.where(jnp.any(merge_heads(seen), axis=-1, keepdims=True), context, 0)


def _lengths(implementation: str, call: Call, lengths: Array) -> dict[str, Array]:
    """Those of the keys, one at least; for cuDNN those of the queries too, beyond which it makes zeros by itself."""
    keys = jnp.clip(lengths.astype(jnp.int32), 1, call.keys.shape[2]) + _zeros(call)
    if implementation != "cudnn":
        return {"key_value_seq_lengths": keys}
    queries = jnp.where(lengths > 0, call.queries.shape[3], 0).astype(jnp.int32) + _zeros(call)
    return {"key_value_seq_lengths": keys, "query_seq_lengths": queries}


def _whole(call: Call, array: Array) -> Array:
    """A mask or bias [B or 1, H or 1, ...] for every pair [T, S], split over devices as the queries are."""
    array = jnp.broadcast_to(array, (*array.shape[:2], call.queries.shape[3], call.keys.shape[2]))
    if array.shape[0] == 1:
        return array
    zeros = _zeros(call)[:, None, None, None]
    return array & (zeros == 0) if array.dtype == jnp.bool_ else array + zeros.astype(array.dtype)


def _zeros(call: Call) -> Array:
    """Zeros [B] that are split over devices as the queries are.

    How jax splits cuDNN's call it reads off queries, keys and values alone: another argument that is not split in the
    same way would lie whole beside a part of the batch, and be read from its first row on.
    """
    return jnp.where(call.queries[:, 0, 0, 0, 0] == 0, 0, 0)


def _function(implementation: str, own: dict[str, Any]) -> Callable[..., Array]:
    """The outside function of arrays by name. jax's vmap of cuDNN's call wants a mask of its own for every head."""
    if implementation == "cudnn":
        function = partial(jax.nn.dot_product_attention, implementation="cudnn", **own)
        return fold(function, shared=("mask", "bias"))
    try:
        return partial(import_module("tokamax").dot_product_attention, **own)
    except ImportError as error:
        raise ValueError(
            f"dot_product_attention: implementation 'tokamax' wants the package tokamax; got {error}"
        ) from error
