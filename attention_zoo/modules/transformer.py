"""The Transformer's blocks: feed-forward layers, encoder and decoder blocks, and stacks of them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from attention_zoo.functional.arrays import varying
from attention_zoo.functional.norms import relu
from attention_zoo.functional.ragged import of_real_rows, pays
from attention_zoo.modules.dense import Dense
from attention_zoo.modules.multihead import Asked, Heads, MultiHeadAttention, Sight, append
from attention_zoo.notation import Array, Bool, Float, checked

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": relu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
    "swiglu": jax.nn.silu,
}


class Seen(NamedTuple):
    """The weights that were asked for: of self-attention and of attention to the memory, [B, h, r, S] each or None."""

    own: jax.Array | None
    cross: jax.Array | None


class FeedForward(nn.Module):
    """`W_2 f(W_1 x + b_1) + b_2` at every position (Vaswani 2017, eq. 2); "swiglu" is `W_2 (silu(W_1 x) * V x)`.

    hidden: width between. width: of what comes out. activation: a name of `ACTIVATIONS`; SwiGLU is Shazeer 2020.
    dropout: of the hidden units.
    """

    hidden: int
    width: int
    activation: str = "relu"
    use_bias: bool = True
    dropout: float = 0.0
    dtype: Dtype | None = None

    def setup(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is one of {', '.join(ACTIVATIONS)}; got {self.activation!r}")
        dense = partial(Dense, use_bias=self.use_bias, dtype=self.dtype)
        self.enter, self.leave, self.drop = dense(self.hidden), dense(self.width), nn.Dropout(self.dropout)
        if self.activation == "swiglu":
            self.gate = dense(self.hidden)

    @checked
    def __call__(
        self, inputs: Float[Array, "*b D"], deterministic: bool = True, real: Bool[Array, "*b"] | None = None
    ) -> Float[jax.Array, "*b W"]:
        """Vectors [..., D] to vectors [..., width].

        Args:
            real: whose results are read, [...]; what comes of others means nothing. With one CPU as JAX's only device,
                large layers leave those out, and what is captured or sown inside is lost then; see
                `functional.ragged.of_real_rows`, also for what is differentiated twice.
        """
        if real is None or self.is_initializing() or not pays(real.size, inputs.shape[-1] * self.hidden):
            return self.of_each(inputs, deterministic)
        rows: dict[str, Any] = {"inputs": inputs.reshape(-1, inputs.shape[-1])}
        constants: dict[str, Any] = {"params": self.variables.get("params", {})}
        if self.dropout and not deterministic:
            rows["numbers"], constants["key"] = jnp.arange(real.size), self.make_rng("dropout")
        outputs = of_real_rows(partial(_of_rows, self.clone(parent=None)), constants, rows, real.reshape(-1))
        return outputs.reshape(*inputs.shape[:-1], self.width)

    def of_each(self, inputs: jax.Array, deterministic: bool = True) -> jax.Array:
        """The call, for all of them."""
        hidden = ACTIVATIONS[self.activation](self.enter(inputs))
        if self.activation == "swiglu":
            hidden *= self.gate(inputs)
        return self.leave(self.drop(hidden, deterministic=deterministic))


def _of_rows(module: FeedForward, constants: Any, rows: Any) -> Any:
    """Vectors [n, D] to vectors [n, width], with dropout where there is a key, another for each part of the rows."""
    options: dict[str, Any] = {"method": "of_each", "deterministic": "key" not in constants}
    if "key" in constants:
        options["rngs"] = {"dropout": jax.random.fold_in(constants["key"], rows["numbers"][0])}
    return module.apply({"params": constants["params"]}, rows["inputs"], **options)


class TransformerBlock(nn.Module):
    """Self-attention, attention to a memory where there is one, and a feed-forward layer, each `x + f(x)`.

    attention, cross_attention, feed_forward, norm: make the parts, such as `partial(MultiHeadAttention, 8, 512)`;
        cross_attention is None in an encoder.
    norm_first: `x + f(norm(x))` (pre-norm, Xiong 2020) instead of `norm(x + f(x))` (post-norm, Vaswani 2017).
    causal: no query sees what comes after it. dropout: of each f's result.
    """

    attention: Callable[[], MultiHeadAttention]
    feed_forward: Callable[[], FeedForward]
    norm: Callable[[], nn.Module]
    cross_attention: Callable[[], MultiHeadAttention] | None = None
    causal: bool = False
    norm_first: bool = True
    dropout: float = 0.0

    def setup(self) -> None:
        self.own, self.own_norm = self.attention(), self.norm()
        if self.cross_attention is not None:
            self.cross, self.cross_norm = self.cross_attention(), self.norm()
        self.forward, self.forward_norm = self.feed_forward(), self.norm()
        self.drop = nn.Dropout(self.dropout)

    def remember(self, source: jax.Array) -> Heads:
        """Projects what cross-attention looks at, once: keys and values of the source [B, S, E]."""
        return self.cross.remember(source)

    def __call__(
        self,
        inputs: jax.Array,
        sight: Sight,
        cache: Heads | None = None,
        memory: Heads | None = None,
        cross_sight: Sight | None = None,
        asked: Asked | None = None,
        deterministic: bool = True,
        real: jax.Array | None = None,
    ) -> tuple[jax.Array, Heads | None, Seen]:
        """Inputs [B, T, D] to outputs [B, T, D].

        Args:
            sight: of self-attention. cache: keys and values of what was read before, [B, G, S, D], where the inputs go
                on from `sight.positions`; None where they are the whole sequence.
            memory: from `remember`. cross_sight: of attention to it.
            asked: whose weights are wanted.
            real: whose outputs are read, [B, T], see `FeedForward`; all by default.

        Returns:
            outputs, the cache with the inputs in it, and the weights that were asked for.
        """
        seen: dict[str, jax.Array | None] = {"own": None, "cross": None}

        def own(x: jax.Array) -> jax.Array:
            nonlocal cache
            new = self.own.remember(x, sight.positions)
            if cache is not None:
                assert sight.positions is not None
                new = cache = append(cache, new, sight.positions)
            options: Any = {"causal": self.causal, "cached": cache is not None, "asked": asked}
            context, seen["own"] = self.own(x, new, sight, deterministic=deterministic, **options)
            return context

        def cross(x: jax.Array) -> jax.Array:
            assert memory is not None
            where = Sight() if cross_sight is None else cross_sight
            context, seen["cross"] = self.cross(x, memory, where, asked=asked, deterministic=deterministic)
            return context

        outputs = self._sublayer(inputs, own, self.own_norm, deterministic)
        if self.cross_attention is not None:
            outputs = self._sublayer(outputs, cross, self.cross_norm, deterministic)
        forward = partial(self.forward, deterministic=deterministic, real=real)
        return self._sublayer(outputs, forward, self.forward_norm, deterministic), cache, Seen(**seen)

    def _sublayer(
        self, inputs: jax.Array, part: Callable[[jax.Array], jax.Array], norm: Any, deterministic: bool
    ) -> jax.Array:
        changed = part(norm(inputs) if self.norm_first else inputs)
        outputs = inputs + self.drop(changed, deterministic=deterministic)
        return outputs if self.norm_first else norm(outputs)


class Stack(nn.Module):
    """Blocks one after the other, and for pre-norm blocks a norm after the last.

    layers: how many. block: makes one. norm: makes the last norm; None for none. rematerialise: in the backward pass
    each block is computed again instead of kept. scan: one compiled block for all layers (its parameters are stacked
    along a first axis): quicker to compile, and the layers' caches are stacked along axis 1.
    """

    layers: int
    block: Callable[[], TransformerBlock]
    norm: Callable[[], nn.Module] | None = None
    rematerialise: bool = False
    scan: bool = False

    def setup(self) -> None:
        kind: Any = _Layer
        if self.rematerialise:
            kind = nn.remat(kind, static_argnums=(5,), prevent_cse=not self.scan, methods=["__call__"])
        if self.scan:
            self.together = _scanned(kind, self.layers)(self.block)
        else:
            self.each = [kind(self.block) for _ in range(self.layers)]
        if self.norm is not None:
            self.last_norm = self.norm()

    def remember(self, source: jax.Array) -> Any:
        """What every block's cross-attention remembers of the source [B, S, E]."""
        if self.scan:
            return self.together.remember(None, source)[1]
        return [layer.remember(None, source)[1] for layer in self.each]

    @checked
    def __call__(
        self,
        inputs: Float[Array, "B T D"],
        sight: Sight = Sight(),  # noqa: B008
        cache: Any = None,
        memory: Any = None,
        cross_sight: Sight | None = None,
        asked: Asked | None = None,
        deterministic: bool = True,
        real: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[jax.Array, "B T D"], Any, list[Seen]]:
        """All blocks: outputs [B, T, D], the cache, and what was asked for, layer by layer.

        Args:
            cache: of `start`, or from the last call; None where the inputs are the whole sequence.
            memory: from `remember`. The other arguments are those of a block.
        """
        if self.scan:  # which carries what must not begin to vary on the way
            inputs, cache, memory, real = varying(inputs, cache, memory, real)
        shared = (sight, cross_sight, asked, real)
        if self.scan:
            outputs, (cache, seen) = self.together(inputs, cache, memory, shared, deterministic)
            layers = [jax.tree.map(lambda leaf, n=number: leaf[n], seen) for number in range(self.layers)]
        else:
            outputs, caches, layers = inputs, [], []
            for number, layer in enumerate(self.each):
                own = (None if part is None else part[number] for part in (cache, memory))
                outputs, (kept, seen) = layer(outputs, *own, shared, deterministic)
                caches.append(kept)
                layers.append(seen)
            cache = None if cache is None else caches
        return self.last_norm(outputs) if self.norm is not None else outputs, cache, layers

    def start(self, batch: int, size: int, heads: int, width: int, dtype: Dtype = jnp.float32) -> Any:
        """An empty cache for `size` positions: heads of keys and values, and their width."""
        if self.scan:
            return Heads(*(jnp.zeros((batch, self.layers, heads, size, width), dtype) for _ in range(2)))
        return [Heads(*(jnp.zeros((batch, heads, size, width), dtype) for _ in range(2))) for _ in range(self.layers)]


class _Layer(nn.Module):
    """A block in the form that `nn.scan` wants: what goes through, then what each layer has of its own."""

    block: Callable[[], TransformerBlock]

    def setup(self) -> None:
        self.made = self.block()

    def remember(self, nothing: None, source: jax.Array) -> tuple[None, Heads]:
        return nothing, self.made.remember(source)

    def __call__(
        self, inputs: jax.Array, cache: Any, memory: Any, shared: tuple[Any, ...], deterministic: bool
    ) -> tuple[jax.Array, tuple[Any, Seen]]:
        sight, cross_sight, asked, real = shared
        outputs, cache, seen = self.made(inputs, sight, cache, memory, cross_sight, asked, deterministic, real)
        return outputs, (cache, seen)


def _scanned(kind: Any, layers: int) -> Any:
    """All layers as one scan; caches and memories of the layers lie along axis 1, behind the batch."""
    own = {"variable_axes": {"params": 0}, "split_rngs": {"params": True, "dropout": True}, "length": layers}
    each = {"in_axes": (1, 1, nn.broadcast, nn.broadcast), "out_axes": (1, 0)}
    once = {"in_axes": (nn.broadcast,), "out_axes": 1}
    return nn.scan(kind, methods={"__call__": {**own, **each}, "remember": {**own, **once}})
