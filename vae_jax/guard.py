"""Updates whose loss or gradient is not a finite number: skipped, counted, and the first one named."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

MAX_IN_A_ROW = 100  # skipped updates after which the run stops
TERMS = ("log_likelihood", "kl", "loss", "gradient")  # in the order in which they are computed


class Guard(NamedTuple):
    """What was skipped so far, int32 each."""

    skipped: Array  # updates
    in_a_row: Array  # of them the last ones; from MAX_IN_A_ROW on every update is skipped
    step: Array  # of the first one; -1 without one
    term: Array  # what was not finite there, an index of TERMS


def init() -> Guard:
    return Guard(*(jnp.array(value, jnp.int32) for value in (0, 0, -1, 0)))


def check(guard: Guard, step: Array, metrics: Mapping[str, Array], grads: Any) -> tuple[Array, Guard]:
    """Whether to take the update, bool [], and the guard after it. metrics: the objective's, with its `loss`.

    The gradient counts as its squared norm: one that overflows would ruin the second moments of an optimiser.
    """
    squares = sum(jnp.sum(g * g) for g in jax.tree.leaves(grads))
    values = [squares if name == "gradient" else metrics.get(name, jnp.zeros(())) for name in TERMS]
    finite = jnp.stack([jnp.isfinite(value) for value in values])
    taken = jnp.all(finite) & (guard.in_a_row < MAX_IN_A_ROW)
    first = ~taken & (guard.skipped == 0)
    return taken, Guard(
        guard.skipped + jnp.where(taken, 0, 1),
        jnp.where(taken, 0, jnp.minimum(guard.in_a_row + 1, MAX_IN_A_ROW)),
        jnp.where(first, step, guard.step),
        jnp.where(first, jnp.argmin(finite).astype(jnp.int32), guard.term),
    )


def describe(guard: Guard) -> str:
    """One line for a person, of a guard that has skipped something."""
    first = f"the first at step {guard.step}, where its {TERMS[guard.term]} was not finite"
    return f"{guard.skipped} updates skipped so far, {first}"


def is_lost(guard: Guard, step: int, num_steps: int) -> bool:
    """Whether a run at `step` of `num_steps` has failed: too many updates in a row were skipped, or its last half."""
    ended_so = step >= num_steps and 2 * guard.in_a_row >= num_steps
    return bool(guard.in_a_row >= MAX_IN_A_ROW or ended_so)
