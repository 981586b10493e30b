"""Contenders of vae_jax: training, evaluation, several models at once, and the matrix products of each by themselves.

Each function prepares one and gives a `measure.Prepared` whose run gives a rate.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from measure import Prepared, images

from vae_jax import build, core, evaluate, networks, update
from vae_jax.config import Config, load_recipe
from vae_jax.data import inputs
from vae_jax.xla import compiling

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# The network of the IWAE paper's one-layer model.
TANH = Config(dataset="mnist", hidden_sizes=(200, 200), activation="tanh", latent_dim=50, binarization="dynamic")


def training(*, steps: int, num_examples: int = 60_000, side: int = 28, x: np.ndarray | None = None, **fields: Any):
    """Images a second of train.py's own jitted loop on a recipe, with the data on the device.

    x: the images, [N, side, side, 1], uint8; by default random ones.
    """
    config = recipe_config(fields)
    one, start, examples = parts(config, images(num_examples, side) if x is None else x)
    train = jax.jit(update.make_train(one, config.batch_size), donate_argnums=0)
    state = start(jax.random.key(0))
    num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))

    def run() -> None:
        nonlocal state
        state, _ = train(state._replace(step=jnp.zeros_like(state.step)), examples, np.int32(steps))
        jax.block_until_ready(state.params)

    return Prepared(_rate(run, steps * config.batch_size), num_params)


def several(*, steps: int, num_models: int, together: bool, **fields: Any):
    """Images a second of `num_models` models: one program with a leading axis of models, or one after the other."""
    config = recipe_config(fields)
    one, start, examples = parts(config, images(60_000))
    train = update.make_train(one, config.batch_size)
    keys, count = jax.random.split(jax.random.key(0), num_models), np.int32(steps)
    if together:
        train = jax.jit(jax.vmap(train, (0, None, None)), donate_argnums=0)
        states = [jax.vmap(start)(keys)]
    else:
        train = jax.jit(train, donate_argnums=0)
        states = [start(key) for key in keys]

    def run() -> None:
        for i, state in enumerate(states):
            states[i], _ = train(state._replace(step=jnp.zeros_like(state.step)), examples, count)
        jax.block_until_ready(states)

    return Prepared(_rate(run, num_models * steps * config.batch_size))


def evaluation(*, num: int, num_samples: int, recipe: str = "", xla_default: bool = False, **fields: Any):
    """Posterior samples a second of the importance bound of `num` images; by default of the network TANH."""
    _set_options(xla_default)
    config = replace(recipe_config({"recipe": recipe}) if recipe else TANH, **fields)
    vae = build.make_vae(config, info(num))
    examples = core.Examples(jnp.asarray(images(num) > 127, jnp.float32), None)
    params = vae.init(jax.random.key(0), examples.x)
    bound = evaluate.make_evaluate(vae, num_samples=num_samples, **build.evaluation_options(config))
    return Prepared(_rate(lambda: bound(params, jax.random.key(0), examples), num * num_samples))


def network_products(*, steps: int, **fields: Any):
    """Images a second of the products alone of a training step: those of the recipe's network, made linear.

    Forward, and the gradients of the weights, without activations, noise, loss and optimiser.
    """
    config = recipe_config(fields)
    params, gradients = linear(config)
    x = jnp.asarray(images(4 * config.batch_size), jnp.float32) / 255

    def step(i: Array, carry: Any):
        return gradients(params, jax.lax.dynamic_slice_in_dim(x, i % 4 * config.batch_size, config.batch_size))

    loop = jax.jit(lambda params: jax.lax.fori_loop(0, steps, step, params))
    return Prepared(_rate(lambda: jax.block_until_ready(loop(params)), steps * config.batch_size))


def linear(config: Config) -> tuple[Any, Callable[[Any, Array], Any]]:
    """The parameters of the config's network without activations, and (params, x) -> the gradients of half |y|^2."""
    encoder, decoder, _ = getattr(networks, config.network)(
        (28, 28, 1),
        2 * config.latent_dim,
        1,
        hidden_sizes=config.hidden_sizes,
        activation="identity",
        compute_dtype=config.compute_dtype,
        **config.network_options,
    )
    keys = jax.random.split(jax.random.key(0))
    x, z = jnp.zeros((1, 28, 28, 1)), jnp.zeros((1, config.latent_dim))
    params = (encoder.init(keys[0], x, None), decoder.init(keys[1], z, None))

    def outputs(params: Any, x: Array) -> Array:
        return decoder.apply(params[1], encoder.apply(params[0], x, None)[:, : config.latent_dim], None)

    def gradients(params: Any, x: Array) -> Any:
        y, back = jax.vjp(lambda params: outputs(params, x), params)
        return back(y)[0]

    return params, gradients


def square_products(*, steps: int, size: int, dtype: str):
    """TFLOP a second of products of two square matrices."""
    w, y = (jax.random.normal(key, (size, size), dtype) for key in jax.random.split(jax.random.key(0)))
    loop = jax.jit(lambda w, y: jax.lax.fori_loop(0, steps, lambda i, y: (y @ w) * size**-0.5, y))
    return Prepared(_rate(lambda: jax.block_until_ready(loop(w, y)), 2e-12 * size**3 * steps))


def training_products(*, steps: int, batch_size: int = 128):
    """Images a second of the matrix products alone of a training step of 784-400-20.

    Forward and, for each layer, the gradients of its weights and of its input, but for the images.
    """
    weights = _weights((784, 400), (400, 40), (20, 400), (400, 784))
    data = jax.random.uniform(jax.random.key(1), (4 * batch_size, 784))

    def products(weights: list[Array], x: Array) -> list[Array]:
        w1, w2, w3, w4 = weights
        h1 = x @ w1
        outputs = h1 @ w2
        z = outputs[:, :20]
        h2 = z @ w3
        logits = h2 @ w4
        dh2 = logits @ w4.T
        dz = dh2 @ w3.T
        doutputs = jnp.concatenate([dz, dz], 1)
        dh1 = doutputs @ w2.T
        return [x.T @ dh1, h1.T @ doutputs, z.T @ dh2, h2.T @ logits]

    def step(i: Array, carry: Any):
        x = jax.lax.dynamic_slice_in_dim(data, i % 4 * batch_size, batch_size)
        weights = [w.at[0, 0].set(x[0, i % 784]) for w in carry[0]]  # so that no product is the same in every step
        return weights, products(weights, x)

    loop = jax.jit(lambda weights: jax.lax.fori_loop(0, steps, step, (weights, weights)))
    return Prepared(_rate(lambda: jax.block_until_ready(loop(weights)), steps * batch_size))


def evaluation_products(*, num: int, num_samples: int, rows: int = 4000):
    """Posterior samples a second of the decoder's matrix products alone, for the network TANH."""
    weights = _weights((50, 200), (200, 200), (200, 784))
    steps = num * num_samples // rows

    def step(i: Array, carry: tuple[Array, Array]):
        z = carry[0].at[0, 0].set(i.astype(jnp.float32))
        w1, w2, w3 = weights
        return z, z @ w1 @ w2 @ w3

    start = (jax.random.normal(jax.random.key(1), (rows, 50)), jnp.zeros((rows, 784)))
    loop = jax.jit(lambda start: jax.lax.fori_loop(0, steps, step, start))
    return Prepared(_rate(lambda: jax.block_until_ready(loop(start)), steps * rows))


def _rate(run: Callable[[], Any], amount: int) -> Callable[[], float]:
    def timed() -> float:
        start = time.perf_counter()
        run()
        return amount / (time.perf_counter() - start)

    return timed


def _set_options(xla_default: bool) -> None:
    if xla_default:
        compiling._options = lambda fusions: {}


def recipe_config(fields: dict[str, Any]) -> Config:
    """The config of the recipe that `fields` names, with its other fields."""
    fields = dict(fields)
    return replace(load_recipe(CONFIGS / f"{fields.pop('recipe')}.py"), **fields)


def info(num_examples: int, side: int = 28) -> inputs.DataInfo:
    """What a model needs to know of grey images."""
    return inputs.DataInfo((side, side, 1), tuple(range(10)), (0.0, 1.0), num_examples, 0, 10_000, "", None)


def parts(config: Config, x: np.ndarray) -> tuple[update.Update, Callable[..., Any], Any]:
    """The learning step, key -> the state before it, and the examples x, [N, side, side, 1] in uint8."""
    vae = build.make_vae(config, info(*x.shape[:2]))
    init, one = build.make_training(config, vae, len(x) // config.batch_size)
    examples = core.Examples(jax.device_put(x), None)
    return one, jax.jit(lambda key: init(key, examples.x)), examples


def _weights(*shapes: tuple[int, int]) -> list[Array]:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape) / shape[0] ** 0.5 for key, shape in zip(keys, shapes, strict=True)]
