"""Skips and counts the updates whose loss or gradient is not finite, and remembers the first of these updates."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from vae_jax.progress import plural
from vae_jax.xla import loops

MAX_IN_A_ROW = 100  # a run stops after this many skipped updates in a row
TERMS = ("log_likelihood", "kl", "loss", "gradient")  # in the order in which they are computed


class Guard(NamedTuple):
    """What has been skipped so far. Each field is an int32 scalar."""

    skipped: Array  # the number of skipped updates
    in_a_row: Array  # how many of the latest updates were skipped; from MAX_IN_A_ROW on, every update is skipped
    step: Array  # the step of the first skipped update; -1 if there is none
    term: Array  # what was not finite in that step, as an index of TERMS


def init() -> Guard:
    return Guard(*(jnp.array(value, jnp.int32) for value in (0, 0, -1, 0)))


def check(guard: Guard, step: Array, metrics: Mapping[str, Array], grads: Any) -> tuple[Array, Guard]:
    """Whether to take the update, a bool [], and the guard after it.

    metrics: the objective's metrics and its `loss`. The squared norm of the gradient must be finite too, because an
    infinite one would ruin the second moments of an optimiser.
    """
    values = [metrics.get(name, jnp.zeros(())) for name in TERMS[:-1]]
    taken = loops.all_finite(values, grads) & (guard.in_a_row < MAX_IN_A_ROW)
    term = jnp.array(TERMS.index("gradient"), jnp.int32)  # if no other one is to blame
    for n, value in reversed(list(enumerate(values))):
        term = jnp.where(jnp.isfinite(value), term, n)
    first = ~taken & (guard.skipped == 0)
    return taken, Guard(
        guard.skipped + jnp.where(taken, 0, 1),
        jnp.where(taken, 0, jnp.minimum(guard.in_a_row + 1, MAX_IN_A_ROW)),
        jnp.where(first, step, guard.step),
        jnp.where(first, term, guard.term),
    )


def describe(guard: Guard) -> str:
    """One line that tells a person what was skipped. The guard must have skipped at least one update."""
    first = f"the first at step {guard.step}, where its {TERMS[guard.term]} was not finite"
    return f"{plural(int(guard.skipped), 'update')} skipped so far, {first}"


def is_lost(guard: Guard, step: int, num_steps: int) -> bool:
    """Whether a run has failed: it skipped MAX_IN_A_ROW updates in a row, or it has ended and skipped its last half."""
    ended_so = step >= num_steps and 2 * guard.in_a_row >= num_steps
    return bool(guard.in_a_row >= MAX_IN_A_ROW or ended_so)
