"""What XLA:CPU makes of chunked attention: nothing is copied whole, nothing turned while it is written."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from attention_zoo.functional import blocks, chunked
from attention_zoo.functional.arrays import stays_apart
from attention_zoo.functional.dot_product import dot_product_attention

pytestmark = pytest.mark.skipif(not stays_apart(), reason="barriers end before XLA fuses")


WORK = partial(dot_product_attention, implementation="chunked", chunk=8)
COPIED = r"f32\[3,2,1,16,4\]\S* copy\("


@pytest.fixture(autouse=True)
def _a_block_for_each_head(monkeypatch):
    monkeypatch.setattr(chunked, "few", lambda: 1)
    monkeypatch.setattr(blocks, "cores", lambda: 1)


def compiled(function, count: int) -> str:
    """Its program for so many arrays."""
    return jax.jit(function).lower(*[jnp.ones((3, 2, 16, 4))] * count).compile().as_text()


@pytest.fixture
def program():
    return compiled(lambda q, k, v, by: jax.vjp(WORK, q, k, v)[1](by), 4)


def test_queries_are_not_copied():
    program = compiled(lambda q, k, v: WORK(q, k, v), 3)
    assert "f32[3,2,1,16,4]" in program and not re.search(COPIED, program)


def test_the_gradient_that_comes_in_is_not_copied(program):
    assert "f32[3,2,1,16,4]" in program and not re.search(COPIED, program)


def test_gradients_of_keys_and_values_are_turned_before_they_are_written(program):
    writing = [one for one in program.split("\n\n") if re.search(r"ROOT .* dynamic-update-slice\(", one)]
    assert writing and not [one for one in writing if re.search(r" (copy|transpose)\(", one)]
