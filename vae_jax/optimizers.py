"""Turns a config into the optimiser and the schedules of its learning rate and of beta."""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from vae_jax import names
from vae_jax.config import MAX_STEPS, Config, unknown
from vae_jax.errors import UserError


def make_optimizer(
    config: Config, steps_per_epoch: int, learning_rate: Array | float | None = None
) -> optax.GradientTransformation:
    """The optax optimiser with the schedule and the clipping that `config` names.

    learning_rate: the peak, in place of the config's; it may be traced, and the first state does not depend on it.
    """
    schedule = make_schedule(config, steps_per_epoch, learning_rate)
    function = _optimizer_function(config.optimizer)
    try:
        optimizer = function(learning_rate=schedule, **config.optimizer_options)
        weights = jnp.zeros((2, 2))  # an optimiser may accept options with which its first step fails
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            jax.eval_shape(lambda w: optimizer.update(w, optimizer.init(w), w), weights)
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"optimizer {config.optimizer!r} with {config.optimizer_options}: {reason}. Set other options."
        ) from None
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer) if config.clip_norm else optimizer


def _optimizer_function(name: str) -> Callable[..., optax.GradientTransformation]:
    if ":" in name:
        return names.find(name)
    functions = {name: f for name, f in vars(optax).items() if inspect.isfunction(f) and name[0] != "_"}
    choices = {name for name, f in functions.items() if "learning_rate" in inspect.signature(f).parameters}
    if name not in choices:
        raise unknown("optimizer", name, tuple(sorted(choices)))
    return functions[name]


def make_schedules(config: Config, beta: Array | float | None = None) -> dict[str, optax.Schedule]:
    """The objective's arguments that change over the steps: `beta`, or `capacity`, which may rise from 0.

    See Bowman et al. 2016 for beta, and Burgess et al. 2018 for the capacity.
    beta: its final value, in place of the config's; it may be traced.
    """
    options = config.objective_options
    if config.objective == "capacity" and "capacity_warmup_steps" in options:
        return {"capacity": optax.linear_schedule(0.0, options["capacity"], options["capacity_warmup_steps"])}
    if config.beta_warmup_steps:
        return {"beta": optax.linear_schedule(0.0, config.beta if beta is None else beta, config.beta_warmup_steps)}
    return {} if beta is None else {"beta": optax.constant_schedule(beta)}


def make_schedule(config: Config, steps_per_epoch: int, learning_rate: Array | float | None = None) -> optax.Schedule:
    """Step -> learning rate: a linear rise over `warmup_steps`, then constant, a cosine to 0 at the end, or `burda`.

    `burda` takes 3^i epochs at 10^(-i/7) times the peak, for i = 0, 1, ... (Burda et al. 2016, arXiv:1509.00519,
    section 5, who end with i = 7, after 3,280 epochs).
    learning_rate: the peak, in place of the config's; it may be traced.
    """
    total = config.num_epochs * steps_per_epoch
    if total > MAX_STEPS:
        raise UserError(f"num_epochs is {config.num_epochs}; expected at most {MAX_STEPS // steps_per_epoch}.")
    peak = config.learning_rate if learning_rate is None else learning_rate
    if config.warmup_steps >= total:
        raise UserError(f"warmup_steps is {config.warmup_steps}; expected less than the run's {total} steps.")
    stages = [s for i in range(1, 21) if (s := (3**i - 1) // 2 * steps_per_epoch) < total]
    rest: optax.Schedule = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, total - config.warmup_steps),
        "burda": optax.piecewise_constant_schedule(peak, dict.fromkeys(stages, 10 ** (-1 / 7))),
    }[config.schedule]
    if not config.warmup_steps:
        return rest
    rise = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([rise, rest], [config.warmup_steps])
