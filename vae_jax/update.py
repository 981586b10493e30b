"""The one learning step, and the jitted loop of many of them with the data on the device."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from vae_jax.config import Config, unknown
from vae_jax.core import VAE, Params, condition
from vae_jax.errors import UserError
from vae_jax.inputs import Examples

_ORDER = 0xFFFFFFFF  # the fold_in of the order of examples; a step never counts so far


class TrainState(NamedTuple):
    step: Array  # int32
    params: Params
    opt_state: optax.OptState
    ema: Params | None  # the average of the weights, None without one
    key: Array  # the run's key: every draw is a fold_in of it and the step, so a resumed run repeats the unbroken one

    @property
    def averaged(self) -> Params:
        """The weights to evaluate: their average if the run keeps one."""
        return self.params if self.ema is None else self.ema


Objective = Callable[..., tuple[Array, dict[str, Array]]]  # (params, key, x, vae) -> (loss, metrics)
Update = Callable[..., tuple[TrainState, dict[str, Array]]]  # (state, x, context=None) -> (state, metrics)


def init_state(vae: VAE, optimizer: optax.GradientTransformation, key: Array, x: Array, *, ema: bool) -> TrainState:
    """The state before the first step. x: training examples, [N, *shape] in float32."""
    init_key, run_key = jax.random.split(key)
    params = vae.init(init_key, x)
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average, run_key)


def make_update(
    vae: VAE,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Callable[[Array, Array], Array] = lambda key, x: x,
    ema_decay: float = 0.0,
    schedules: Mapping[str, optax.Schedule] = MappingProxyType({}),
) -> Update:
    """The learning step: update(state, x, context=None) -> (state, metrics), a pure function to jit or to scan.

    `prepare(key, x)` turns a stored batch into the model's input, by `to_float` and a fresh binarisation, say. The
    metrics are the objective's and its `loss`. `schedules` give keyword arguments of the objective by step: beta, say.
    """

    def update(state: TrainState, x: Array, context: Array | None = None) -> tuple[TrainState, dict[str, Array]]:
        prepare_key, objective_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        x = prepare(prepare_key, x)
        scheduled = {name: schedule(state.step) for name, schedule in schedules.items()}
        (loss, metrics), grads = jax.value_and_grad(objective, has_aux=True)(
            state.params, objective_key, x, condition(vae, context), **scheduled
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            # The decay rises to its value, so that the average forgets the first weights.
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            ema = optax.incremental_update(params, ema, 1 - decay)
        return TrainState(state.step + 1, params, opt_state, ema, state.key), {"loss": loss, **metrics}

    return update


def make_train(update: Update, batch_size: int) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """train(state, examples, num_steps) -> (state, sums of the metrics), to jit: many updates in one call.

    The order of examples is a pure function of the run's key and the epoch, so a call may begin anywhere in an epoch
    but must not go past its end. `num_steps` may be traced: one compilation then serves every call.
    """

    def train(state: TrainState, examples: Examples, num_steps: Array) -> tuple[TrainState, dict[str, Array]]:
        num_examples = examples.x.shape[0]
        steps_per_epoch = num_examples // batch_size
        epoch, first = state.step // steps_per_epoch, state.step % steps_per_epoch
        order_key = jax.random.fold_in(jax.random.fold_in(state.key, _ORDER), epoch)
        order = jax.random.permutation(order_key, num_examples)

        def step(i, carry):
            state, sums = carry
            rows = jax.lax.dynamic_slice(order, ((first + i) * batch_size,), (batch_size,))
            batch = jax.tree.map(lambda a: jnp.take(a, rows, axis=0), examples)
            state, metrics = update(state, *batch)
            return state, jax.tree.map(jnp.add, sums, metrics)

        _, shapes = jax.eval_shape(update, state, *jax.tree.map(lambda a: a[:batch_size], examples))
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        return jax.lax.fori_loop(0, num_steps, step, (state, zeros))

    return train


def make_optimizer(config: Config, steps_per_epoch: int) -> optax.GradientTransformation:
    """The optax optimiser, schedule and clipping that `config` names."""
    functions = {name: f for name, f in vars(optax).items() if inspect.isfunction(f)}
    choices = {name for name, f in functions.items() if "learning_rate" in inspect.signature(f).parameters}
    if config.optimizer not in choices:
        raise unknown("optimizer", config.optimizer, tuple(sorted(choices)))
    schedule = make_schedule(config, steps_per_epoch)
    try:
        optimizer = functions[config.optimizer](learning_rate=schedule, **config.optimizer_options)
        weights = jnp.zeros(2)  # an optimiser may accept what its first step cannot use
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            jax.eval_shape(lambda w: optimizer.update(w, optimizer.init(w), w), weights)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer {config.optimizer!r} with {config.optimizer_options}: {error}") from None
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer) if config.clip_norm else optimizer


def make_schedules(config: Config) -> dict[str, optax.Schedule]:
    """What of the objective varies during a run: `beta`, which may rise from 0 (Bowman et al. 2016)."""
    if not config.beta_warmup_steps:
        return {}
    return {"beta": optax.linear_schedule(0.0, config.beta, config.beta_warmup_steps)}


def make_schedule(config: Config, steps_per_epoch: int) -> optax.Schedule:
    """Step -> learning rate: a linear rise over `warmup_steps`, then constant or a cosine to 0 at the run's end."""
    total = config.num_epochs * steps_per_epoch
    if config.warmup_steps >= total:
        raise UserError(f"warmup_steps is {config.warmup_steps}; expected less than the run's {total} steps.")
    rest: optax.Schedule = {
        "constant": optax.constant_schedule(config.learning_rate),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, total - config.warmup_steps),
    }[config.schedule]
    if not config.warmup_steps:
        return rest
    rise = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([rise, rest], [config.warmup_steps])
