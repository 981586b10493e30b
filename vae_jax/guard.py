"""Updates whose loss or gradient is no finite number: skipped, counted, and the first one named."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.config import Config
from vae_jax.errors import UserError

MAX_IN_A_ROW = 100  # skipped updates after which the run stops
LARGE = 30.0  # data beyond it is worth a word where a loss is not finite: standardised data hardly goes so far
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


def is_lost(guard: Guard, num_steps: int) -> bool:
    """Whether a run of `num_steps` steps has skipped so many updates in a row, or all, that it has failed."""
    return bool(guard.in_a_row >= MAX_IN_A_ROW or guard.skipped >= num_steps)


def lost(guard: Guard, config: Config, value_range: tuple[float, float], num_steps: int, saved: bool) -> UserError:
    """The error of a run that is lost, and what to do. value_range: of its data; saved: whether it has a checkpoint."""
    advice = []
    if max(map(abs, value_range)) > LARGE:
        low, high = value_range
        advice.append(
            f"The data goes from {low:g} to {high:g}. Save it standardised: (x - x.mean(0)) / x.std(0).clip(1e-6)."
        )
    if guard.step:
        settings = [f"a learning rate below {config.learning_rate:g}"]
        if not 0 < config.clip_norm <= 1:
            settings.append("--config.clip_norm=1")
        if config.warmup_steps < num_steps // 10:
            settings.append(f"--config.warmup_steps={num_steps // 10}")
        advice.append(f"Give {' or '.join(settings)}.")
    elif not advice:
        advice.append("No update had been made. Choose another likelihood, other options of it, or other data.")
    if saved:
        advice.append("Give --restart too, which moves this run aside.")
    return UserError(f"The run is lost: {describe(guard)}. {' '.join(advice)}")
