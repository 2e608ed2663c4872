"""What XLA:CPU makes of the gradient of chunked attention: nothing copied whole, nothing turned while it is written."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from attention_zoo.functional import blocks, chunked
from attention_zoo.functional.arrays import stays_apart
from attention_zoo.functional.dot_product import dot_product_attention

pytestmark = pytest.mark.skipif(not stays_apart(), reason="barriers end before XLA fuses")


@pytest.fixture
def program(monkeypatch):
    monkeypatch.setattr(chunked, "few", lambda: 1)  # a block for each head
    monkeypatch.setattr(blocks, "cores", lambda: 1)

    def gradients(q, k, v, by):
        work = partial(dot_product_attention, implementation="chunked", chunk=8)
        return jax.vjp(work, q, k, v)[1](by)

    return jax.jit(gradients).lower(*[jnp.ones((3, 2, 16, 4))] * 4).compile().as_text()


def test_neither_queries_nor_the_gradient_that_comes_in_are_copied(program):
    assert "f32[3,2,1,16,4]" in program and not re.search(r"f32\[3,2,1,16,4\]\S* copy\(", program)


def test_gradients_of_keys_and_values_are_turned_before_they_are_written(program):
    writing = [one for one in program.split("\n\n") if re.search(r"ROOT .* dynamic-update-slice\(", one)]
    assert writing and not [one for one in writing if re.search(r" (copy|transpose)\(", one)]
