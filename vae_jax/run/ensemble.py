"""Train runs (the members) that differ only in seed, beta and learning rate, side by side in one program.

The states of M members are one state with a leading axis M, and each member computes what it would compute alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from vae_jax import build, evaluate, update
from vae_jax.config import Config
from vae_jax.core import VAE, Examples, Params
from vae_jax.update import Objective, TrainState


class Varied(NamedTuple):
    """What may differ between members besides the seed, float32 [M], or [] for one member; None if it is the same."""

    beta: Array | None
    learning_rate: Array | None


def varied_of(members: Sequence[Config]) -> Varied:
    values = [[getattr(member, name) for member in members] for name in Varied._fields]
    return Varied(*(jnp.array(each, jnp.float32) if len(set(each)) > 1 else None for each in values))


def init_states(vae: VAE, members: Sequence[Config], steps_per_epoch: int, x: ArrayLike) -> TrainState:
    """The states of all members before the first step, on a leading axis M. x: training examples, [N, *shape]."""
    init, _ = build.make_training(members[0], vae, steps_per_epoch)
    keys = jax.vmap(jax.random.key)(jnp.array([member.seed for member in members], jnp.uint32))
    return jax.jit(jax.vmap(init, (0, None)))(keys, x)


def make_train(vae: VAE, config: Config, steps_per_epoch: int, *, batched: bool | None = None) -> Callable[..., Any]:
    """Make train(states, varied, examples, num_steps) -> (states, sums of the metrics, [M]) from `update.make_train`.

    The function is jitted. config: the config of any member; one compilation serves all members. batched: if true,
    `jax.vmap` computes all members at once; if false, they take turns in a loop. The default is false on CPU and true
    elsewhere.
    """
    if batched is None:
        # On CPU a batched product of M matrices is slower than M products, and rounds differently from a single run.
        batched = jax.default_backend() != "cpu"

    def one(state: TrainState, varied: Varied, examples: Examples, num_steps: Array):
        num_examples = examples.x.shape[0]
        _, update_one = build.make_training(
            config, vae, steps_per_epoch, varied.learning_rate, varied.beta, num_examples=num_examples
        )
        return update.make_train(update_one, config.batch_size)(state, examples, num_steps)

    def at_once(states: TrainState, varied: Varied, examples: Examples, num_steps: Array):
        # All members are at one step. As one number it leaves the loops as they are: their ends do not differ.
        axes = jax.tree.map(lambda _: 0, states)._replace(step=None)
        states, sums = jax.vmap(one, (axes, 0, None, None), (axes, 0))(
            states._replace(step=states.step[0]), varied, examples, num_steps
        )
        return states._replace(step=jnp.full(states.key.shape, states.step)), sums

    def in_turn(states: TrainState, varied: Varied, examples: Examples, num_steps: Array):
        return jax.lax.map(lambda own: one(own[0], own[1], examples, num_steps), (states, varied))

    return jax.jit(at_once if batched else in_turn, donate_argnums=0)


def make_evaluate(vae: VAE, objective: Objective) -> Callable[..., Any]:
    """`evaluate.make_evaluate_objective` for (params, beta) instead of params: one compilation serves every beta."""
    of_pair = VAE(vae.init, *(lambda pair, *args, f=f: f(pair[0], *args) for f in vae[1:]))

    def weighted(pair: tuple[Params, Array | None], key: Array, x: Array, vae: VAE):
        return objective(pair, key, x, vae, **({} if pair[1] is None else {"beta": pair[1]}))

    return evaluate.make_evaluate_objective(of_pair, weighted)


@jax.jit
def take(tree: Any, i: int) -> Any:
    """Take member i out of a tree whose arrays have a leading axis M."""
    return jax.tree.map(lambda a: a[i], tree)
