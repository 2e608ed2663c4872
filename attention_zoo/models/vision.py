"""The Vision Transformer: an image as a sentence of patches."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from attention_zoo.functional.positions import sinusoidal_2d
from attention_zoo.models.layers import Layers
from attention_zoo.modules.dense import Dense
from attention_zoo.modules.multihead import Asked, Sight
from attention_zoo.modules.positions import LearnedPositions
from attention_zoo.notation import Array, Float, checked

POOLING = ("first", "mean")
GRID_POSITIONS = ("learned", "sinusoidal_2d", "none")


class ViT(Layers):
    """Vision Transformer (Dosovitskiy 2021): patches, a class token, pre-norm blocks, one layer on top.

    classes: C. patch: side of a patch; image: height and width of the images, multiples of it. pooling: "first" reads
        the class token, "mean" the mean of all patches (and there is none). grid: positions "learned" as in the paper,
        "sinusoidal_2d", which needs no parameters, or "none". `positions` is not for images.
    """

    classes: int = 10
    patch: int = 16
    image: tuple[int, int] = (224, 224)
    pooling: str = "first"
    grid: str = "learned"

    def setup(self) -> None:
        _check(self)
        self.embedding = Dense(self.width, dtype=self.dtype)
        if self.pooling == "first":
            self.class_token = self.param("class_token", nn.initializers.normal(0.02), (self.width,))
        if self.grid == "learned":
            self.learned = LearnedPositions(self._patches() + (self.pooling == "first"), self.width, self.dtype)
        self.blocks = self.stack(self.layers)
        self.drop = nn.Dropout(self.dropout)
        self.output = Dense(self.classes, dtype=self.dtype)

    @checked
    def __call__(
        self, images: Float[Array, "B Y X C"], deterministic: bool = True, asked: Asked | None = None
    ) -> tuple[Float[jax.Array, "B N"], list[Any]]:
        """Logits of the classes [B, N] of images [B, height, width, channels], and the weights that were asked for.

        The weights are over the class token, if there is one, and then the patches, row by row.

        Raises:
            ValueError: the images have another size than `image`.
        """
        if images.shape[1:3] != tuple(self.image):
            raise ValueError(f"ViT: images are {self.image[0]} x {self.image[1]}; got {images.shape[1:3]}")
        vectors = self._placed(self.embedding(patches(jnp.asarray(images), self.patch)))
        vectors = self.drop(vectors, deterministic=deterministic)
        outputs, _, seen = self.blocks(vectors, Sight(), asked=asked, deterministic=deterministic)
        pooled = outputs[:, 0] if self.pooling == "first" else outputs.mean(1)
        return self.output(pooled), seen

    def _patches(self) -> int:
        return (self.image[0] // self.patch) * (self.image[1] // self.patch)

    def _placed(self, vectors: jax.Array) -> jax.Array:
        """Patches [B, S, D] with their positions, behind the class token if there is one."""
        if self.grid == "sinusoidal_2d":
            rows, columns = (side // self.patch for side in self.image)
            vectors = vectors + sinusoidal_2d(rows, columns, self.width, dtype=vectors.dtype)[None]
        if self.pooling == "first":
            token = self.class_token.astype(vectors.dtype)
            vectors = jnp.concatenate([jnp.broadcast_to(token, (len(vectors), 1, self.width)), vectors], 1)
        return vectors + self.learned(jnp.arange(vectors.shape[1])[None]) if self.grid == "learned" else vectors


@checked
def patches(images: Float[Array, "B Y X C"], side: int) -> Float[Array, "B S D"]:
    """Images [B, Y, X, C] cut into squares, row by row: [B, S, side * side * C], a patch row by row, channels last.

    Raises:
        ValueError: height and width are no multiples of the side.

    >>> patches(jnp.arange(8.0).reshape(1, 2, 4, 1), 2).astype(int).tolist()
    [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    """
    batch, height, width, channels = images.shape
    if side < 1 or height % side or width % side:
        raise ValueError(f"patches: height and width are multiples of the side {side}; got {height} x {width}")
    rows, columns = height // side, width // side
    grid = images.reshape(batch, rows, side, columns, side, channels)
    return jnp.swapaxes(grid, 2, 3).reshape(batch, rows * columns, side * side * channels)


def _check(model: ViT) -> None:
    if model.pooling not in POOLING:
        raise ValueError(f"pooling is one of {', '.join(POOLING)}; got {model.pooling!r}")
    if model.grid not in GRID_POSITIONS:
        raise ValueError(f"grid is one of {', '.join(GRID_POSITIONS)}; got {model.grid!r}")
    if model.positions in ("rotary", "alibi", "relative"):
        raise ValueError(f"positions {model.positions!r} are of a line; for patches there is `grid`")
