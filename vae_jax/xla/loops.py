"""Loops, branches and sums that cost little on every backend.

XLA:GPU starts one kernel after the other, and each start costs some microseconds. A branch, and a loop whose number of
turns is not a constant of the program, each wait until the host has read a number. XLA:CPU has neither cost.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

T = TypeVar("T")  # a pytree of arrays
A = TypeVar("A")

TURNS = 32  # of a loop between two numbers that the host reads
SMALL = 1024  # a copy of so many numbers costs less than the start of a kernel


def repeat(
    body: Callable[[Array, tuple[A, T]], tuple[A, T]], count: Array, carry: tuple[A, T], most: int
) -> tuple[A, T]:
    """`lax.fori_loop(0, count, body, carry)`, where count is int32 [] and at most `most`.

    On GPU the host reads a number after each chunk of min(TURNS, most) turns, and in each of the turns that are left
    over. So XLA:GPU compiles `body` twice. There the small arrays of carry[1] are one array within the loop, which one
    kernel writes. Under `vmap` they all get an axis if one of them has it; carry[0] keeps what is to have none.
    """
    turns = max(1, min(TURNS, most))

    def plain(count: Array, carry: tuple[A, T]) -> tuple[A, T]:
        return lax.fori_loop(0, count, body, carry)

    def in_chunks(count: Array, carry: tuple[A, T]) -> tuple[A, T]:
        leaves, structure = jax.tree.flatten(carry[1])
        shapes = [jax.typeof(leaf) for leaf in leaves]

        def turn(i: Array, packed: tuple[A, list[Array]]) -> tuple[A, list[Array]]:
            apart, rest = body(i, (packed[0], jax.tree.unflatten(structure, _unpack(packed[1], shapes))))
            return apart, _pack(jax.tree.leaves(rest), shapes)

        def chunk(n: Array, packed: tuple[A, list[Array]]) -> tuple[A, list[Array]]:
            return lax.fori_loop(0, turns, lambda i, packed: turn(n * turns + i, packed), packed)

        packed = carry[0], _pack(leaves, shapes)
        packed = lax.fori_loop(0, count // turns, chunk, packed)
        packed = lax.fori_loop(count // turns * turns, count, turn, packed)
        return packed[0], jax.tree.unflatten(structure, _unpack(packed[1], shapes))

    return lax.platform_dependent(count, carry, cpu=plain, tpu=plain, default=in_chunks)


def traced_once(function: Callable[..., T]) -> Callable[..., T]:
    """`function`, which JAX traces once for all its calls with the same shapes. It leaves no trace in the program."""
    return jax.jit(function, inline=True)


def replace_if(condition: Array, new: Callable[[], T], old: T) -> T:
    """new() if `condition`, a bool [], else `old`: a branch on CPU, and a selection elsewhere."""

    def branch(condition: Array, old: T) -> T:
        return lax.cond(condition, new, lambda: old)

    def select(condition: Array, old: T) -> T:
        return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new(), old)

    # On CPU a branch costs no time, and selecting between old and new weights takes a tenth of a step.
    return lax.platform_dependent(condition, old, cpu=branch, default=select)


def all_finite(values: list[Array], tree: Any) -> Array:
    """Whether `values`, numbers [], and the sum of the squares of all numbers of a tree are finite, as a bool []."""

    def by_array(values: list[Array], leaves: list[Array]) -> Array:
        squares = jnp.asarray(sum(jnp.sum(a * a) for a in leaves))
        return reduce(jnp.logical_and, [jnp.isfinite(a) for a in (*values, squares)])

    def at_once(values: list[Array], leaves: list[Array]) -> Array:
        # A product with zero is zero or NaN. XLA would take apart a sum of joined arrays, but not of their squares.
        dtype = leaves[0].dtype if leaves else jnp.float32
        a = jnp.concatenate([a.ravel() for a in (*leaves, *((0 * value).astype(dtype) for value in values))])
        return jnp.isfinite(jnp.sum(a * a))

    return lax.platform_dependent(values, jax.tree.leaves(tree), cpu=by_array, tpu=by_array, default=at_once)


def _is_small(shape: Any) -> bool:
    return shape.dtype in (jnp.float32, jnp.int32) and shape.ndim <= 1 and shape.size <= SMALL


def _pack(leaves: list[Any], shapes: list[Any]) -> list[Array]:
    """The small arrays as one float32 vector, and then the others. A whole number becomes two floats, of 16 bits each.

    So they are exact, and a derivative by a float passes, unlike through an array of bits.
    """

    def floats(a: Array) -> Array:
        return a if a.dtype == jnp.float32 else jnp.stack([a >> 16, a & 0xFFFF]).astype(jnp.float32)

    pairs = list(zip(leaves, shapes, strict=True))
    small = [floats(leaf).ravel() for leaf, shape in pairs if _is_small(shape)]
    others = [leaf for leaf, shape in pairs if not _is_small(shape)]
    return [jnp.concatenate(small), *others] if small else others


def _unpack(packed: list[Array], shapes: list[Any]) -> list[Array]:
    """The inverse of `_pack`: the arrays of `shapes`."""
    others, start = list(packed), 0
    vector = others.pop(0) if any(map(_is_small, shapes)) else jnp.zeros(0)

    def take(shape: Any) -> Array:
        nonlocal start
        start += shape.size
        return vector[start - shape.size : start].reshape(shape.shape)

    def one(shape: Any) -> Array:
        if not _is_small(shape):
            return others.pop(0)
        if shape.dtype == jnp.float32:
            return take(shape)
        high, low = (take(shape).astype(jnp.int32) for _ in range(2))
        return high << 16 | low

    return [one(shape) for shape in shapes]
