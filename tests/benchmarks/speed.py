"""Training and evaluation speed on random images of MNIST's size, with and without XLA's library fusion on CPU.

    python tests/benchmarks/speed.py [--repeats=5]

The two are run in turn; each row is the median of the repeats, with their range, and the ratio of the medians.
Training is train.py's own jitted loop with the data on the device, without evaluation.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import compiling, evaluate, inputs, models, objectives, update
from vae_jax.config import load_recipe

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DATA = inputs.DataInfo((28, 28, 1), 10, (0.0, 1.0), 60_000, 0, 10_000, "", None)
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--repeats", type=int, default=5)
options = parser.parse_args()
pixels = (np.random.default_rng(0).random((60_000, 28, 28, 1)) < 0.13).astype(np.uint8) * 255


def training(recipe, batch_size, steps):
    """A function that runs `steps` steps and gives the images a second."""
    config = replace(load_recipe(CONFIGS / f"{recipe}.py"), batch_size=batch_size)
    vae, examples = models.build(config, DATA), inputs.Examples(jax.device_put(pixels), None)
    optimizer = update.make_optimizer(config, len(pixels) // batch_size)
    one = update.make_update(
        vae, objectives.build(config), optimizer, prepare=inputs.make_prepare(config), ema_decay=config.ema_decay
    )
    train = compiling.jit(update.make_train(one, batch_size), donate_argnums=0)
    start = jax.jit(lambda key, x: update.init_state(vae, optimizer, key, x, ema=config.ema_decay > 0))
    state, count = start(jax.random.key(0), examples.x), jax.device_put(np.int32(steps))

    def run():
        nonlocal state
        began = time.perf_counter()
        state, _ = train(state, examples, count)
        jax.block_until_ready(state.params)
        return steps * batch_size / (time.perf_counter() - began)

    return run


def evaluation(recipe, num_samples):
    """A function that evaluates 400 images and gives the posterior samples a second."""
    vae = models.build(load_recipe(CONFIGS / f"{recipe}.py"), DATA)
    examples = inputs.Examples(jnp.asarray(pixels[:400] > 0, jnp.float32), None)
    params, own = vae.init(jax.random.key(0), examples.x), evaluate.make_evaluate(vae, num_samples=num_samples)

    def run():
        began = time.perf_counter()
        own(params, jax.random.key(0), examples)
        return 400 * num_samples / (time.perf_counter() - began)

    return run


ROWS = {
    "train 784-400-20, batch 128, images/s": lambda: training("pytorch_example", 128, 200),
    "train 784-512-512-50, batch 128, images/s": lambda: training("mnist", 128, 100),
    "train convolutional, batch 128, images/s": lambda: training("conv", 128, 30),
    "train convolutional, batch 16, images/s": lambda: training("conv", 16, 200),
    "evaluate 784-512-512-50, samples/s": lambda: evaluation("mnist", 200),
}
ours = compiling._options
print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, medians of {options.repeats} (range)")
for name, make in ROWS.items():
    pair = []
    for settings in (ours, dict):
        compiling._options = settings
        pair.append(make())
        pair[-1]()
    rates = [[run() for run in pair] for _ in range(options.repeats)]
    columns = list(zip(*rates, strict=True))
    here, default = (statistics.median(column) for column in columns)
    spread = [f"{min(column):,.0f}-{max(column):,.0f}" for column in columns]
    print(f"{name:44s} {here:>9,.0f} ({spread[0]})  XLA's default {default:>9,.0f} ({spread[1]})  {here / default:.2f}")
