"""Scaled dot-product attention by outside kernels: cuDNN's, through jax.nn, and tokamax's."""

from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp

from attention_zoo.functional.tiles import Call, allowed, everywhere, merge_heads, padded
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
    sizes = (call.queries.shape[3], call.keys.shape[2])
    whole = lambda array: jnp.broadcast_to(array, (*array.shape[:2], *sizes))  # noqa: E731
    arguments: dict[str, Any] = {"scale": call.settings.scale}
    shown = allowed(rest, places, call.laid)
    if call.lengths is not None and (shown is not None or call.settings.left is not None):
        shown = allowed(rest, places, padded(call).laid)
    elif call.lengths is not None:  # Without any mask: a kernel reads that much more quickly. Of no keys it makes NaN.
        arguments["key_value_seq_lengths"] = jnp.maximum(call.lengths, 1).astype(jnp.int32)
    if shown is not None:
        mask = merge_heads(shown)
        arguments["mask"] = mask if implementation == "tokamax" and mask.shape[2] == 1 else whole(mask)
    if native and call.settings.right == 0:
        arguments["is_causal"] = True
        arguments["local_window_size"] = None if call.settings.left is None else (call.settings.left, 0)
    if call.laid.bias is not None:
        arguments["bias"] = whole(merge_heads(call.laid.bias)).astype(call.queries.dtype)
    if call.settings.bias is not None:
        bias = call.settings.bias(call.loose.arrays, call.loose.constants, *places)
        arguments["bias"] = bias[None].astype(call.queries.dtype)
    if call.settings.soft_cap:
        arguments["logits_soft_cap"] = call.settings.soft_cap
    run = _tokamax() if implementation == "tokamax" else partial(jax.nn.dot_product_attention, implementation="cudnn")
    queries, keys, values = (jnp.swapaxes(array, 1, 2) for array in (merge_heads(call.queries), call.keys, call.values))
    context = jnp.swapaxes(run(queries, keys, values, **arguments), 1, 2)
    full = None if shown is None and call.lengths is None else allowed(call.settings, places, padded(call).laid)
    # Both give a row with nothing to attend to the mean of all values.
    return context if full is None else jnp.where(jnp.any(merge_heads(full), axis=-1, keepdims=True), context, 0)


def _tokamax() -> Callable[..., Array]:
    try:
        return import_module("tokamax").dot_product_attention
    except ImportError as error:
        raise ValueError(
            f"dot_product_attention: implementation 'tokamax' wants the package tokamax; got {error}"
        ) from error
