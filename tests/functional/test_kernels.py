"""What outside kernels are asked for, by stand-ins, and where they run; a GPU shows the rest: tests/test_on_gpu.py."""

import math
import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional import dot_product, kernels
from attention_zoo.functional.dot_product import dot_product_attention
from attention_zoo.functional.kernels import modern_gpu
from tests.quick import quick

B, H, G = 2, 6, 3


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).normal(size=shape)


def recorded(monkeypatch, name: str) -> list[dict]:
    """Puts jax.nn's own computation, or a module tokamax that does it, where a kernel would run; records the calls."""
    calls = []
    original = jax.nn.dot_product_attention

    def run(query, key, value, implementation=None, logits_soft_cap=None, **arguments):
        calls.append(arguments | {"implementation": implementation, "logits_soft_cap": logits_soft_cap})
        return original(query, key, value, **arguments)

    if name == "cudnn":
        monkeypatch.setattr(jax.nn, "dot_product_attention", run)
    else:
        monkeypatch.setitem(sys.modules, "tokamax", SimpleNamespace(dot_product_attention=run))
    return calls


KERNEL_CASES = {
    "nothing": {},
    "causal": {"causal": True},
    "causal window": {"causal": True, "window": (3, 2)},
    "window": {"window": (3, 2)},
    "late": {"causal": True, "offset": -3},
    "traced offset": {"window": (1, 0), "offset": jnp.array(2)},
    "mask": {"mask": ~np.eye(8, dtype=bool)},
    "all": {"causal": True, "mask": ~np.eye(8, dtype=bool), "scale": 0.3,
            "segments": (np.array([[1, 1, 1, 2, 2, 2, 0, 0]] * B),) * 2},
    "lengths": {"lengths": np.array([5, 0])},
    "lengths, causal": {"lengths": np.array([5, 0]), "causal": True},
    "lengths, causal window": {"lengths": np.array([5, 0]), "causal": True, "window": (3, 0)},
    "lengths, mask": {"lengths": np.array([5, 0]), "mask": ~np.eye(8, dtype=bool)},
    "bias": {"bias": jnp.float32(0.1 * draw(H, 8, 1)) * jnp.arange(8.0)[None, None]},
    "bias function": {"bias": lambda q, k: -0.5 * jnp.abs(q[:, None] - k[None, :])[None].astype(float), "offset": 2},
}  # fmt: skip


@pytest.mark.parametrize("case", KERNEL_CASES)
@pytest.mark.parametrize("name", ["cudnn", "tokamax"])
def test_kernels_are_asked_for_the_same(name, case, monkeypatch):
    dtype = jnp.bfloat16 if name == "cudnn" else jnp.float32
    arrays = [jnp.asarray(draw(B, heads, 8, 16, seed=heads), dtype) for heads in (H, G, G)]
    calls = recorded(monkeypatch, name)
    attend = partial(dot_product_attention, **KERNEL_CASES[case])
    found, expected = quick(lambda *arrays: [attend(*arrays, implementation=path) for path in (name, "plain")])(*arrays)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if name == "cudnn" else {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(np.float32(found), np.float32(expected), **tolerance)
    assert calls[0]["implementation"] == ("cudnn" if name == "cudnn" else None)
    assert ("is_causal" in calls[0]) == (case == "all" or "causal" in case)
    masked = ("window", "late", "traced offset", "mask", "all", "lengths, causal window", "lengths, mask")
    assert ("mask" in calls[0]) == (case in masked)
    assert ("key_value_seq_lengths" in calls[0]) == (case in ("lengths", "lengths, causal"))
    assert ("query_seq_lengths" in calls[0]) == (name == "cudnn" and "key_value_seq_lengths" in calls[0])


@pytest.mark.parametrize("name", ["cudnn", "tokamax"])
def test_a_kernel_is_told_lengths_that_it_can_read_and_an_empty_source_is_zero(name, monkeypatch):
    """Whatever the kernel makes of no keys: here, as it is told of one, the first value."""
    arrays = [jnp.asarray(draw(3, heads, 8, 16, seed=heads), jnp.bfloat16) for heads in (H, G, G)]
    calls = recorded(monkeypatch, name)
    monkeypatch.setattr(kernels, "fold", lambda function, shared: function)
    for lengths in (np.array([9, -1, 5]), np.array([100, 0, 5], np.int8)):

        def run(lengths, *arrays):
            attend = partial(dot_product_attention, lengths=lengths, causal=True, implementation=name)
            context, pull_back = jax.vjp(attend, *arrays)
            return context, pull_back(jnp.ones_like(context)), calls.pop()["key_value_seq_lengths"]

        context, gradients, told = jax.device_get(quick(run)(lengths, *arrays))
        assert told.dtype == jnp.int32 and told.tolist() == [8, 1, 5]
        assert all((part[1] == 0).all() and (part[0] != 0).any() for part in (context, *gradients[1:]))
        assert (gradients[0][1] == 0).all()
        assert all((part[2, :, 5:] == 0).all() and (part[2, :, :5] != 0).any() for part in gradients[1:])


def test_cudnn_is_told_of_an_empty_source_as_of_queries_without_length(monkeypatch):
    """So that it makes the zeros, in no pass of our own over the context."""
    arrays = [jnp.asarray(draw(B, heads, 8, 16, seed=heads), jnp.bfloat16) for heads in (H, G, G)]
    calls = recorded(monkeypatch, "cudnn")
    monkeypatch.setattr(kernels, "fold", lambda function, shared: function)

    def run(lengths, *arrays):
        return dot_product_attention(*arrays, lengths=lengths, implementation="cudnn"), calls[0]["query_seq_lengths"]

    context, told = jax.device_get(quick(run)(np.array([5, 0]), *arrays))
    assert told.tolist() == [8, 0]
    assert (context[1] == 0).all() and (context[0] != 0).any()


def test_lengths_are_handed_on_without_any_mask(monkeypatch):
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda query, **others: query)
    arrays = [jnp.zeros((2, heads, 256, 16), jnp.bfloat16) for heads in (H, G, G)]
    for causal in (False, True):
        attend = partial(dot_product_attention, lengths=jnp.array([5, 0]), causal=causal, implementation="cudnn")
        outs = [out for equation in jax.make_jaxpr(attend)(*arrays).eqns for out in equation.outvars]
        assert max(math.prod(out.aval.shape) for out in outs) == 2 * H * 256 * 16 < 256 * 256


def test_all_that_cudnn_is_told_of_each_example_goes_where_the_queries_go(monkeypatch):
    """jax reads off the queries how to split the call, and what else there is has to be split the same way."""
    told = {}
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda query, **others: told.update(others) or query)
    monkeypatch.setattr(kernels, "fold", lambda function, shared: function)
    queries, *others = (np.zeros((2, heads, 8, 16), jnp.bfloat16) for heads in (H, G, G))
    for names, options in (
        (["key_value_seq_lengths", "query_seq_lengths"], {"lengths": np.array([5, 8])}),
        (["mask", "bias"], {"mask": np.ones((2, 1, 1, 8), bool), "bias": np.zeros((2, 1, 8, 8), jnp.bfloat16)}),
    ):
        attend = partial(dot_product_attention, **options, implementation="cudnn")
        jax.vmap(lambda q, attend=attend: attend(q, *others))(queries[None])
        assert all(isinstance(told[name], jax.core.Tracer) for name in names)


def test_lengths_are_mapped_with_their_queries(monkeypatch):
    arrays = [np.float32(draw(3, 2, heads, 8, 16, seed=heads)) for heads in (H, G, G)]
    lengths = np.array([[8, 0], [3, 5], [1, 7]])
    recorded(monkeypatch, "tokamax")
    attend = lambda path: lambda q, k, v, n: dot_product_attention(q, k, v, lengths=n, implementation=path)  # noqa: E731
    expected = quick(attend("plain"))(*arrays, lengths)
    for path in ("plain", "chunked", "tokamax"):
        np.testing.assert_allclose(quick(jax.vmap(attend(path)))(*arrays, lengths), expected, rtol=1e-5, atol=1e-6)


def test_cudnn_is_called_once_for_all_that_is_mapped_and_the_mask_has_no_heads(monkeypatch):
    """jax's own rule for vmap wants a mask for every head, and fails where there is one for all."""
    arrays = [jnp.asarray(draw(3, B, heads, 8, 16, seed=heads), jnp.bfloat16) for heads in (H, G, G)]
    mask, bias = draw(3, B, 1, 8, 8) > -1, jnp.asarray(draw(H, 8, 8), jnp.bfloat16)
    calls = recorded(monkeypatch, "cudnn")

    def gradients(path):
        attend = lambda q, k, v, mask: dot_product_attention(q, k, v, mask, bias=bias, implementation=path)  # noqa: E731
        context, pull_back = jax.vjp(jax.vmap(attend), *arrays, mask)
        return context, *pull_back(jnp.ones_like(context))[:3]

    found = quick(lambda: gradients("cudnn"))()
    told = {(call["mask"].shape, call["bias"].shape[1:]) for call in calls}
    assert told == {((B, 1, 8, 8), (H, 8, 8)), ((3 * B, 1, 8, 8), (H, 8, 8))}
    for one, other in zip(found, quick(lambda: gradients("plain"))(), strict=True):
        np.testing.assert_allclose(np.float32(one), np.float32(other), rtol=2e-2, atol=3e-2)


def test_tokamax_gets_the_soft_cap_and_may_be_absent(monkeypatch):
    arrays = [np.float32(draw(B, heads, 8, 16)) for heads in (H, G, G)]
    monkeypatch.setitem(sys.modules, "tokamax", None)
    with pytest.raises(ValueError, match="implementation 'tokamax' wants the package tokamax; got "):
        dot_product_attention(*arrays, implementation="tokamax")
    calls = recorded(monkeypatch, "tokamax")
    jax.eval_shape(partial(dot_product_attention, soft_cap=3.0, implementation="tokamax"), *arrays)
    assert calls[0]["logits_soft_cap"] == 3


def test_the_choice_is_what_runs(monkeypatch):
    def attend(**options):
        """As far as the call of a kernel: the choice is made while tracing."""
        jax.eval_shape(partial(dot_product_attention, **options), *[jnp.ones((1, 8, 16), jnp.bfloat16)] * 3)

    calls = recorded(monkeypatch, "cudnn")
    attend()
    assert not calls
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    attend(soft_cap=2.0)
    attend()  # a GPU that cuDNN's attention does not run on
    assert not calls
    monkeypatch.setattr(dot_product, "modern_gpu", lambda: True)
    attend(soft_cap=2.0)
    assert not calls
    attend()
    assert calls


def test_the_default_device_decides_whether_there_is_a_modern_gpu(monkeypatch):
    class Device:
        def __init__(self, capability):
            self.compute_capability = capability

    cpu = jax.devices()[0]
    assert not modern_gpu()
    for capability, modern in (("9.0", True), ("8.0", True), ("7.5", False), ("gfx942", False)):
        monkeypatch.setattr(jax, "devices", lambda kind=None, capability=capability: [Device(capability)])
        assert modern_gpu() == modern
        with jax.default_device(cpu):
            assert not modern_gpu()
