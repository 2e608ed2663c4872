"""The Recurrent Attention Model: an image of any size, looked at through a few small glimpses."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from attention_zoo.functional.retina import retina
from attention_zoo.modules.alignment import NOISE
from attention_zoo.modules.dense import Dense
from attention_zoo.modules.recurrent import RecurrentLayer
from attention_zoo.notation import Array, Float, checked

LOCATIONS = ("policy", "random")
FIRST = ("random", "centre")


class Glimpses(NamedTuple):
    """What a model saw in T glimpses and said after each; B counts the rollouts, not the pictures.

    logits: of the classes, after each glimpse, [B, T, N]. locations: the centres of the glimpses, (y, x) in [-1, 1],
    see `functional.retina.to_pixels`, [B, T, 2]. means: of the Gaussian that each was drawn from, [B, T, 2]; pre: the
    same before the tanh. log_probs: log-density of what was drawn, in nats, given the glimpses before, [B, T].
    baselines: what the reward of each location was expected to be before it was drawn, [B, T]; zeros without a learned
    baseline. A location that no policy chose (the first; all random ones) is its own mean, with pre and log_probs 0.
    """

    logits: jax.Array
    locations: jax.Array
    means: jax.Array
    pre: jax.Array
    log_probs: jax.Array
    baselines: jax.Array


class RecurrentAttention(nn.Module):
    """Recurrent Attention Model (Mnih 2014, section 3), with an LSTM and an answer after every glimpse.

    From glimpse to glimpse: `l_t ~ N(tanh(W h_{t-1} + b), std^2)`, `g_t = relu(W [relu(W retina(l_t)); relu(W l_t)])`,
    `h_t = LSTM(g_t, h_{t-1})`, logits `W h_t`. Only what glimpses cover is read of the image, so that neither the work
    nor the parameters depend on its size. Locations have no gradient but that of their log-density.

    classes: N. units: D, of the LSTM and of g; hidden: width of the two halves of the glimpse network. glimpses: T.
    size, scales: see `functional.retina.retina`. locations: "policy", or "random" for a control whose locations are
    uniform, in training and after. first: where the first glimpse of training is: "random", uniform as in the paper and
    the same for all rollouts of a picture, or "centre"; at inference it is the centre. detached: no gradient from the
    location network into the LSTM, as in the paper. learned_baseline: a linear head on h_{t-1}, which gets none either.

    Raises:
        ValueError: `locations` or `first` has an unknown name, or there is no glimpse.
    """

    classes: int
    units: int = 256
    hidden: int = 128
    glimpses: int = 6
    size: int = 12
    scales: int = 3
    locations: str = "policy"
    first: str = "random"
    detached: bool = False
    learned_baseline: bool = False
    dtype: Dtype | None = None

    def setup(self) -> None:
        _check(self)
        self.what, self.where = (Dense(self.hidden, dtype=self.dtype) for _ in range(2))
        self.glimpse = Dense(self.units, dtype=self.dtype)
        self.core = RecurrentLayer(self.units, "lstm", dtype=self.dtype)
        self.output = Dense(self.classes, dtype=self.dtype)
        if self.locations == "policy":
            self.locator = Dense(2, dtype=self.dtype)
        if self.learned_baseline:
            self.baseline = Dense(1, dtype=self.dtype)

    @checked
    def __call__(
        self,
        images: Float[Array, "B Y X C"],
        deterministic: bool = True,
        std: Float[Array, ""] | float | int = 0.15,
        rollouts: int = 1,
    ) -> Glimpses:
        """Looks at images [B, height, width, channels]; row b K + k of the results is rollout k of K of image b.

        Args:
            deterministic: look at the means, from the centre on; else draw, from the rng stream "alignment". Random
                locations are drawn in any case; where there is no such stream from a fixed key, so that row r of every
                batch of a shape looks at the same places.
            std: of the Gaussian in each direction, above 0, in halves of the image's side; what is drawn beyond the
                border is moved to it.
            rollouts: K; the images themselves are not repeated.

        Raises:
            ValueError: there is no rollout, or a standard deviation of 0 or less (a traced one is not looked at).
        """
        if rollouts < 1:
            raise ValueError(f"RecurrentAttention: rollouts is at least 1; got {rollouts}")
        if isinstance(std, float | int) and std <= 0:
            raise ValueError(f"RecurrentAttention: std is above 0; got {std}")
        images = jnp.asarray(images)
        given, noise = self._draws(deterministic, len(images), rollouts)
        state = self.core.zeros(given.shape[1:2], self.dtype or images.dtype)
        steps = []
        # Written out, as the steps are few: XLA would optimise a loop's body alone, and the CPU would feel it.
        for step in range(self.glimpses):
            policy = step > 0 and self.locations == "policy"
            place = self._drawn(state.hidden, noise[step], std) if policy else _undrawn(given[step])
            state = self.core.step(self.core.project(self._seen(images, place[0])), state)
            steps.append((state.hidden, *place))
        hidden, *places = (jnp.stack(part, 1) for part in zip(*steps, strict=True))  # [B, T, ...]
        locations, means, pre, log_probs = places
        return Glimpses(self.output(hidden), locations, means, pre, log_probs, self._baselines(hidden))

    def _drawn(self, hidden: jax.Array, noise: jax.Array, std: jax.Array | float | int) -> tuple[jax.Array, ...]:
        """Where the policy looks next, from h [B, D] and noise [B, 2]: location, mean, pre and log-density."""
        pre = self.locator(jax.lax.stop_gradient(hidden) if self.detached else hidden).astype(jnp.float32)
        mean = jnp.tanh(pre)
        drawn = jax.lax.stop_gradient(mean + std * noise)
        return jnp.clip(drawn, -1, 1), mean, pre, log_density(drawn, mean, std)

    def _seen(self, images: jax.Array, locations: jax.Array) -> jax.Array:
        """The glimpse network: g [B, D] of what is at locations [B, 2]."""
        places = locations.reshape(len(images), -1, 2)  # [pictures, K, 2]
        look = jax.vmap(lambda one: retina(images, one, self.size, self.scales), 1, 1)
        patches = look(places).reshape(len(locations), -1)
        parts = nn.relu(self.what(patches)), nn.relu(self.where(locations.astype(patches.dtype)))
        return nn.relu(self.glimpse(jnp.concatenate(parts, -1)))

    def _draws(self, deterministic: bool, images: int, rollouts: int) -> tuple[jax.Array, jax.Array]:
        """Locations that no policy chooses, and the noise of those that it does; both [T, B, 2], float32."""
        shape = self.glimpses, images, rollouts, 2
        drawing = not deterministic or self.locations == "random"
        fixed = deterministic and not self.has_rng(NOISE)
        key = jax.random.key(0) if fixed or not drawing else self.make_rng(NOISE)
        given, noise = jnp.zeros(shape), jnp.zeros(shape)
        if self.locations == "random":
            given = jax.random.uniform(key, shape, minval=-1.0)
        elif drawing:
            noise = jax.random.normal(key, shape)
            if self.first == "random":
                first = jax.random.uniform(jax.random.fold_in(key, 1), (1, images, 1, 2), minval=-1.0)
                given = jnp.broadcast_to(first, shape)
        return given.reshape(self.glimpses, -1, 2), noise.reshape(self.glimpses, -1, 2)

    def _baselines(self, hidden: jax.Array) -> jax.Array:
        """From states [B, T, D], each expectation from the state before its location; float32 [B, T]."""
        if not self.learned_baseline:
            return jnp.zeros(hidden.shape[:2])
        before = jnp.pad(jax.lax.stop_gradient(hidden)[:, :-1], ((0, 0), (1, 0), (0, 0)))
        return self.baseline(before)[..., 0].astype(jnp.float32)


@checked
def log_density(
    points: Float[Array, "*b 2"], means: Float[Array, "*b 2"], std: Float[Array, ""] | float | int
) -> Float[Array, "*b"]:
    """Of a Gaussian with one standard deviation in both directions, `-|x - m|^2 / (2 s^2) - 2 log s - log 2 pi`.

    >>> log_density(jnp.array([1.0, 0.0]), jnp.zeros(2), 1.0).round(4)
    Array(-2.3379, dtype=float32)
    """
    squared = jnp.sum(jnp.square((points - means) / std), -1)
    return -squared / 2 - 2 * jnp.log(std) - jnp.log(2 * jnp.pi)


def _undrawn(locations: jax.Array) -> tuple[jax.Array, ...]:
    """What `RecurrentAttention._drawn` gives, for locations [B, 2] that no policy chose."""
    return locations, locations, jnp.zeros_like(locations), jnp.zeros_like(locations[:, 0])


def _check(model: Any) -> None:
    if model.locations not in LOCATIONS:
        raise ValueError(f"locations is one of {', '.join(LOCATIONS)}; got {model.locations!r}")
    if model.first not in FIRST:
        raise ValueError(f"first is one of {', '.join(FIRST)}; got {model.first!r}")
    if model.glimpses < 1:
        raise ValueError(f"glimpses is at least 1; got {model.glimpses}")
