"""Writes keras_gru.npz: keras.layers.GRU(reset_after=False), outputs and gradients, in float64.

Run with `python tests/golden/keras_gru.py`; made with Python 3.12.1, keras 3.15.1 on its JAX backend, jax 0.11.2.

Arrays, with sizes B 5, S 7, I 2, D 3:

    inputs [B, S, I], initial [B, D], outputs [B, S, D]; kernel [I, 3D], recurrent_kernel [D, 3D] and bias [3D] with the
        gates z, r, h of Keras
    cotangents [B, S, D]: C in the loss sum(C * outputs); gradients/NAME: of that loss, for all but the outputs
"""

import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
import numpy as np

BATCH, STEPS, INPUT, WIDTH = 5, 7, 2, 3
WEIGHTS = ("kernel", "recurrent_kernel", "bias")

if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    draw = np.random.default_rng(0).normal
    # Keras's own tanh errs by 1e-7 in float64.
    layer = keras.layers.GRU(WIDTH, jnp.tanh, reset_after=False, return_sequences=True, dtype="float64")
    layer.build((BATCH, STEPS, INPUT))
    given = {"inputs": draw(size=(BATCH, STEPS, INPUT)), "initial": draw(size=(BATCH, WIDTH))}
    given |= {name: draw(size=weight.shape) for name, weight in zip(WEIGHTS, layer.trainable_weights, strict=True)}
    fixed = [weight.value for weight in layer.non_trainable_variables]

    def run(given: dict) -> jax.Array:
        weights = [given[name] for name in WEIGHTS]
        return layer.stateless_call(weights, fixed, given["inputs"], initial_state=[given["initial"]])[0]

    outputs, pull_back = jax.vjp(run, given)
    cotangents = draw(size=outputs.shape)
    gradients = {f"gradients/{name}": value for name, value in pull_back(cotangents)[0].items()}
    arrays = {"outputs": outputs, "cotangents": cotangents, **given, **gradients}
    assert all(np.asarray(array).dtype == np.float64 for array in arrays.values())
    np.savez_compressed(
        Path(__file__).with_suffix(".npz"), **{f"gru/{name}": np.asarray(array) for name, array in arrays.items()}
    )
