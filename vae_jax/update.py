"""The learning step, and the loops that take many learning steps in one call."""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from vae_jax import guard
from vae_jax.core import VAE, Examples, Params, condition
from vae_jax.data.streaming import Stream, make_batches, read_ahead, steps_per_chunk
from vae_jax.guard import Guard
from vae_jax.xla import devices, loops

_ORDER = 0xFFFFFFFF  # what the run's key folds in for the order of examples; no step is so large


class TrainState(NamedTuple):
    step: Array  # int32
    params: Params
    opt_state: optax.OptState
    ema: Params | None  # the moving average of the weights; None if there is none
    key: Array  # of the run; each draw folds the step into it, so that a resumed run repeats an unbroken run
    guard: Guard  # what was skipped because it was not finite

    @property
    def averaged(self) -> Params:
        """The weights to evaluate: their average if the run keeps one."""
        return self.params if self.ema is None else self.ema


Objective = Callable[..., tuple[Array, dict[str, Array]]]  # (params, key, x, vae) -> (loss, metrics)
Update = Callable[..., tuple[TrainState, dict[str, Array]]]  # (state, x, context=None) -> (state, metrics)


class Training(NamedTuple):
    """A pure function for the first state and one for a learning step: `init, update = make_training(...)`."""

    init: Callable[[Array, Array], TrainState]  # (key, training examples x [N, *shape]) -> state
    update: Update


def make_training(
    vae: VAE, objective: Objective, optimizer: optax.GradientTransformation, *, ema_decay: float = 0.0, **options: Any
) -> Training:
    """The functions for the first state and for a learning step, so that the state holds what the step needs.

    ema_decay: the decay of the moving average of the weights; 0: none is kept. options: arguments of `make_update`.
    """
    init = partial(init_state, vae, optimizer, ema=ema_decay > 0)
    return Training(init, make_update(vae, objective, optimizer, ema_decay=ema_decay, **options))


def init_state(vae: VAE, optimizer: optax.GradientTransformation, key: Array, x: Array, *, ema: bool) -> TrainState:
    """The state before the first step. x: the training examples, [N, *shape] in float32."""
    init_key, run_key = jax.random.split(key)
    params = vae.init(init_key, x)
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average, run_key, guard.init())


def make_update(
    vae: VAE,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Callable[[Array, Array], Array] = lambda key, x: x,
    ema_decay: float = 0.0,
    schedules: Mapping[str, optax.Schedule] = MappingProxyType({}),
    after: Callable[..., tuple[Params, Params | None]] | None = None,
) -> Update:
    """The learning step: update(state, x, context=None) -> (state, metrics), a pure function to jit or to scan.

    `prepare(key, x)` turns a stored batch into the model's input, for example by `to_float` and a random binarisation.
    The metrics are the objective's metrics, its `loss`, and `skipped`: 1 if the update was left out because the loss or
    the gradient was not finite, else 0. `schedules` maps arguments of the objective, such as beta, to optax schedules.
    `after(key, q, before, params, average)` gives the parameters and their average in place of those after the update,
    where q is q(z | x) with the parameters `before` it.
    """

    def update(state: TrainState, x: Array, context: Array | None = None) -> tuple[TrainState, dict[str, Array]]:
        if (state.ema is None) != (ema_decay == 0):
            kept = "keeps no" if state.ema is None else "keeps an"
            raise ValueError(
                f"ema_decay is {ema_decay}, and the state {kept} average of the weights. Use make_training."
            )
        prepare_key, objective_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        x = prepare(prepare_key, x)
        scheduled = {name: schedule(state.step) for name, schedule in schedules.items()}
        (loss, metrics), grads = jax.value_and_grad(objective, has_aux=True)(
            state.params, objective_key, x, condition(vae, context), **scheduled
        )
        metrics = {"loss": loss, **metrics}
        taken, seen = guard.check(state.guard, state.step, metrics, grads)
        # Outside of the branch below, it shares its computation with the objective.
        q = condition(vae, context).encode(state.params, x) if after else None

        def improve():
            with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
                updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            average = None
            if state.ema is not None:
                # The decay rises to `ema_decay`, so that the average forgets the first weights.
                decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step)).astype(jnp.float32)
                average = optax.incremental_update(params, state.ema, 1 - decay)
            if after:
                after_key = jax.random.fold_in(jax.random.clone(objective_key), _ORDER)
                params, average = after(after_key, q, state.params, params, average)
            return params, opt_state, average

        params, opt_state, ema = loops.replace_if(taken, improve, (state.params, state.opt_state, state.ema))
        metrics["skipped"] = 1 - taken.astype(jnp.float32)
        return TrainState(state.step + 1, params, opt_state, ema, state.key, seen), metrics

    return update


def make_train(
    update: Update, batch_size: int, mesh: Mesh | None = None
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """train(state, examples, num_steps) -> (state, sums of the metrics): many updates in one call. Jit it.

    The order of examples is a pure function of the run's key and the epoch, so a call may begin and end anywhere in an
    epoch. An epoch takes every example once, except the last ones that are too few for a batch. `num_steps` may be
    traced, so that one compilation serves every call. If `mesh` is given, each batch is split over its devices, while
    every device holds the whole state and all examples. Raises ValueError if there are too few examples for a batch.
    """

    update = loops.traced_once(update)

    def train(state: TrainState, examples: Examples, num_steps: Array) -> tuple[TrainState, dict[str, Array]]:
        num_examples = examples.x.shape[0]
        if batch_size > num_examples:
            raise ValueError(f"batch_size is {batch_size}; expected at most the {num_examples} examples.")
        steps_per_epoch = num_examples // batch_size

        def batches(state: TrainState) -> tuple[Callable[[Array], Examples], Array]:
            """batch(i), the i-th batch from the state's step on in its epoch, and the number of batches left in it."""
            epoch, first = state.step // steps_per_epoch, state.step % steps_per_epoch
            order_key = jax.random.fold_in(jax.random.fold_in(state.key, _ORDER), epoch)
            order = jax.random.permutation(order_key, num_examples)

            def batch(i: Array) -> Examples:
                rows = jax.lax.dynamic_slice(order, ((first + i) * batch_size,), (batch_size,))
                examples_i = jax.tree.map(lambda a: jnp.take(a, rows, axis=0), examples)
                return (
                    examples_i
                    if mesh is None
                    else jax.lax.with_sharding_constraint(examples_i, devices.batch_sharded(mesh))
                )

            return batch, steps_per_epoch - first

        def epoch(carry: tuple[TrainState, dict[str, Array], Array]):
            state, sums, left = carry
            batch, in_epoch = batches(state)
            count = jnp.minimum(left, in_epoch)
            return *_steps(update, state, sums, batch, count, steps_per_epoch), left - count

        sums = _no_sums(update, state, lambda i: batches(state)[0](i))
        left = jnp.asarray(num_steps, jnp.int32)
        state, sums, _ = jax.lax.while_loop(lambda carry: carry[-1] > 0, epoch, (state, sums, left))
        return state, sums

    return train


def make_stream_train(
    update: Update, batch_size: int, mesh: Mesh | None = None
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """train(state, stream, num_steps) -> (state, sums of the metrics): like `make_train`, with examples from a file.

    Do not jit `train`: it calls a jitted function, compiled once, on batches that a thread has read ahead. It remembers
    only these batches between calls, so its results depend on nothing but its arguments. `streaming.make_batches`
    decides the order of examples.
    """

    update = loops.traced_once(update)

    def to_device(batches: np.ndarray) -> Array:
        return devices.place(batches, devices.batch_sharded(mesh, 1)) if mesh else jax.device_put(batches)

    def some(state: TrainState, batches: Examples, first: Array, num_steps: Array):
        def batch(i: Array) -> Examples:
            return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, first + i, keepdims=False), batches)

        return _steps(update, state, _no_sums(update, state, batch), batch, num_steps, batches.x.shape[0])

    jit = partial(jax.jit, donate_argnums=0)
    jitted = jit(some, out_shardings=devices.replicated(mesh)) if mesh else jit(some)

    @lru_cache(maxsize=1)
    def chunks(stream: Stream, key: tuple[int, ...]) -> tuple[int, Callable[[int], Examples]]:
        """(size, chunk): the number of steps in a chunk, and chunk(n), the batches of the steps from n * size on."""
        size, batches = steps_per_chunk(stream, batch_size), make_batches(stream, batch_size, key)
        return size, read_ahead(lambda n: Examples(to_device(batches(n * size, size)), None))

    def train(state: TrainState, stream: Stream, num_steps: Array | int) -> tuple[TrainState, dict[str, Array]]:
        size, chunk = chunks(stream, tuple(np.asarray(jax.random.key_data(state.key)).tolist()))
        step, left, total = int(state.step), int(num_steps), None
        while left or total is None:
            number, first = divmod(step, size)
            count = min(left, size - first)
            state, sums = jitted(state, chunk(number), *jax.device_put((np.int32(first), np.int32(count))))
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
            step, left = step + count, left - count
        return state, total

    return train


def _no_sums(update: Update, state: TrainState, batch: Callable[[Array], Examples]) -> dict[str, Array]:
    """The sums of the metrics before any step: zeros."""
    _, shapes = jax.eval_shape(lambda state: update(state, *batch(jnp.int32(0))), state)
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)


def _steps(
    update: Update,
    state: TrainState,
    sums: dict[str, Array],
    batch: Callable[[Array], Examples],
    num_steps: Array,
    most: int,
) -> tuple[TrainState, dict[str, Array]]:
    """The state after updates on batch(0), batch(1), ..., and `sums` plus the metrics of the updates.

    A skipped update adds only to the sum of `skipped`. There are `num_steps` updates, at most `most`.
    """

    def step(i: Array, carry: tuple[Array, tuple[Any, dict[str, Array]]]):
        number, (rest, sums) = carry
        state, metrics = update(TrainState(number, *rest), *batch(i))
        skipped = metrics.get("skipped", jnp.zeros(()))
        counted = {
            name: value if name == "skipped" else jnp.where(skipped > 0, jnp.zeros_like(value), value)
            for name, value in metrics.items()
        }
        return state.step, (state[1:], jax.tree.map(jnp.add, sums, counted))

    number, (rest, sums) = loops.repeat(step, num_steps, (state.step, (state[1:], sums)), most)
    return TrainState(number, *rest), sums
