"""Matrix products of float32 arrays whose factors may be rounded to a narrower type first."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

DTYPES = ("float32", "bfloat16")


def product(x: Array, w: Array, compute_dtype: str = "float32") -> Array:
    """x @ w for x [..., I] and w [I, O]. Factors are rounded to `compute_dtype`, and sums are in float32.

    The same holds for the products in its gradients. These exist in reverse mode only, unless the type is float32.
    """
    if compute_dtype == "float32":
        return x @ w
    return _narrow(x, w, compute_dtype)


def with_vmap(function: Callable[..., Array], rule: Callable[..., tuple[Array, bool]]) -> Callable[..., Array]:
    """`function` with its own `rule` for vmap, which applies unless `function` is differentiated.

    rule: (axis size, for each argument whether it has the axis, *arguments) -> (result, whether it has the axis).
    """
    own = jax.custom_batching.custom_vmap(function)
    own.def_vmap(rule)
    either = jax.custom_vjp(lambda *args: own(*args))
    either.defvjp(lambda *args: jax.vjp(function, *args), lambda back, y_bar: back(y_bar))
    return either


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def moved(move: Callable[[Array], Array], x: Array) -> Array:
    """move(x), where `move` copies numbers and adds zeros. It copies bfloat16 as integers: XLA:CPU would widen it."""
    if x.dtype != jnp.bfloat16:
        return move(x)
    return lax.bitcast_convert_type(move(lax.bitcast_convert_type(x, jnp.uint16)), x.dtype)


moved.defvjp(lambda move, x: jax.vjp(move, x), lambda move, back, y_bar: back(y_bar))


# The gradients are written by hand, because JAX's own would multiply with the cotangent in float32.


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _narrow(x: Array, w: Array, dtype: str) -> Array:
    return _forward(x, w, dtype)[0]


def _forward(x: Array, w: Array, dtype: str) -> tuple[Array, tuple[Array, Array]]:
    x, w = x.astype(dtype), w.astype(dtype)
    return _dot(x, w, (x.ndim - 1,), (0,)), (x, w)


def _backward(dtype: str, saved: tuple[Array, Array], y_bar: Array) -> tuple[Array, Array]:
    (x, w), y_bar = saved, y_bar.astype(dtype)
    return _dot(y_bar, w, (y_bar.ndim - 1,), (1,)), outer(x, y_bar)


def _outer(x: Array, y_bar: Array) -> Array:
    return lax.platform_dependent(*_matrices(x, y_bar), cpu=_outer_by_rows, default=_outer_by_columns)


def _outer_by_columns(x: Array, y_bar: Array) -> Array:
    return _dot(x, y_bar, (0,), (0,))


def _outer_by_rows(x: Array, y_bar: Array) -> Array:
    # To multiply columns of bfloat16 matrices, XLA:CPU (jax 0.10 to 0.12) widens them, which takes twice the time. So x
    # is transposed first, in two halves because XLA would undo a plain transpose. Without the barrier, XLA would swap
    # the factors of a result that is transposed, and then fail.
    half = len(x) // 2
    rows = moved(lambda x: jnp.concatenate([x[:half].T, x[half:].T], 1), x)
    return lax.optimization_barrier(_dot(rows, y_bar, (1,), (0,)))


def _outer_by_vmap(size: int, batched: list[bool], x: Array, y_bar: Array) -> tuple[Array, bool]:
    if not batched[0]:  # XLA:CPU cannot multiply a bfloat16 matrix's columns with a stack of matrices
        x = jnp.broadcast_to(x, (size, *x.shape))
    own = jax.vmap(lambda x, y_bar: _outer_by_columns(*_matrices(x, y_bar)), (0, 0 if batched[1] else None))
    return own(x, y_bar), True


def _matrices(*factors: Array) -> list[Array]:
    return [a.reshape(-1, a.shape[-1]) for a in factors]


def _dot(a: Array, b: Array, a_axes: tuple[int, ...], b_axes: tuple[int, ...]) -> Array:
    return lax.dot_general(a, b, ((a_axes, b_axes), ((), ())), preferred_element_type=jnp.float32)


_narrow.defvjp(_forward, _backward)
outer = with_vmap(_outer, _outer_by_vmap)  # (x [..., I], y_bar [..., O]) -> w's gradient in `product(x, w)`, [I, O]
