"""Matrix products of float32 arrays whose factors may be rounded to a narrower type first."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

DTYPES = ("float32", "bfloat16")


def product(x: Array, w: Array, compute_dtype: str = "float32") -> Array:
    """x @ w for x [..., I] and w [I, O], in float32: factors rounded to `compute_dtype`, sums not.

    So are those of its gradients (reverse mode only, unless float32).
    """
    if compute_dtype == "float32":
        return x @ w
    return _narrow(x, w, compute_dtype)


# The gradients are by hand because JAX's own take products with the cotangent in float32.


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _narrow(x: Array, w: Array, dtype: str) -> Array:
    return _forward(x, w, dtype)[0]


def _forward(x: Array, w: Array, dtype: str) -> tuple[Array, tuple[Array, Array]]:
    x, w = x.astype(dtype), w.astype(dtype)
    return _dot(x, w, (x.ndim - 1,), (0,)), (x, w)


def _backward(dtype: str, saved: tuple[Array, Array], y_bar: Array) -> tuple[Array, Array]:
    (x, w), y_bar = saved, y_bar.astype(dtype)
    batch = tuple(range(x.ndim - 1))
    return _dot(y_bar, w, (y_bar.ndim - 1,), (1,)), _dot(x, y_bar, batch, batch)


def _dot(a: Array, b: Array, a_axes: tuple[int, ...], b_axes: tuple[int, ...]) -> Array:
    return lax.dot_general(a, b, ((a_axes, b_axes), ((), ())), preferred_element_type=jnp.float32)


_narrow.defvjp(_forward, _backward)
