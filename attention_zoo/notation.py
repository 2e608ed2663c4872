"""The axis letters and array aliases of the zoo; every floor may import this file.

`B` batch, `T` query or target steps, `S` key or source positions, `H` heads, `D` width, `K` key
width, `V` value width, `N` vocabulary. Leading axes are written `*b`; `*#b` broadcasts.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import jax
import numpy as np
from beartype import beartype
from jaxtyping import Bool, Float, Int, Key, Shaped, jaxtyped

__all__ = ["Array", "ArrayLike", "Bool", "Float", "Int", "Key", "PyTree", "Shaped", "checked"]

ArrayLike: TypeAlias = jax.Array | np.ndarray
if TYPE_CHECKING:
    Array: TypeAlias = jax.Array
else:
    Array = ArrayLike  # NumPy's arrays are taken wherever JAX takes them; results are JAX's
PyTree: TypeAlias = object

_Function = TypeVar("_Function", bound=Callable[..., Any])


def checked(function: _Function) -> _Function:
    """Checks the shapes and dtypes a function's annotations promise, at call (= trace) time.

    A compiled function pays nothing: the check runs while it is traced.

    Raises (when the decorated function is called):
        jaxtyping.TypeCheckError: an argument's shape or dtype is not the annotated one; the message
            names the argument, what it got and what was wanted.
    """
    return jaxtyped(typechecker=beartype)(function)
