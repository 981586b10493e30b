"""Where the time of a small step goes: 784-200-200-50 at batch 20, the IWAE paper's one-layer network, on one core.

    python tests/benchmarks/small_step.py [--repeats=5] [--only=PATTERN]

Each row leaves out, or replaces, one part of the step. Times are CPU seconds of the process, so that other work on the
machine counts little. The rows take turns.
"""

import os
import time
from dataclasses import replace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from measure import alternate, check_some, images, parse, print_header, print_machine, print_row, spread
from ours import TANH

from vae_jax import build, guard, update
from vae_jax.core import Examples, to_float
from vae_jax.data.inputs import DataInfo, make_prepare
from vae_jax.optimizers import make_optimizer

CONFIG = replace(TANH, batch_size=20, optimizer_options={"eps": 1e-4})
STEPS = 300
SIZES = ((784, 200), (200, 200), (200, 100), (50, 200), (200, 200), (200, 784))


def adam_in_one_factor(learning_rate=1e-3, b1=0.9, b2=0.999, eps=1e-4):
    """Adam as at the end of section 2 of Kingma & Ba 2015: the corrections of both moments in the step size."""

    def init(params):
        return jnp.zeros((), jnp.int32), *(jax.tree.map(jnp.zeros_like, params) for _ in range(2))

    def step(grads, state, params=None):
        count, m, v = state[0] + 1, *state[1:]
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, grads)
        v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, v, grads)
        root = jnp.sqrt(1 - b2 ** count.astype(jnp.float32))
        rate = -learning_rate * root / (1 - b1 ** count.astype(jnp.float32))
        return jax.tree.map(lambda m, v: rate * (m / (jnp.sqrt(v) + eps * root)), m, v), (count, m, v)

    return optax.GradientTransformation(init, step)


def training(x, optimizer=None, prepare=None):
    """A function that takes STEPS steps of train.py's own loop."""
    data = DataInfo((28, 28, 1), (), (0.0, 1.0), len(x), 0, 0, "", None)
    vae = build.make_vae(CONFIG, data)
    optimizer, prepare = optimizer or make_optimizer(CONFIG, STEPS), prepare or make_prepare(CONFIG)
    init, step = update.make_training(vae, build.make_objective(CONFIG), optimizer, prepare=prepare)
    state, examples = init(jax.random.key(0), to_float(jnp.asarray(x))), Examples(jnp.asarray(x), None)
    train = jax.jit(update.make_train(step, CONFIG.batch_size)).lower(state, examples, STEPS).compile()
    return lambda: train(state, examples, STEPS)


def without_guard(x):
    with mock.patch.object(guard, "check", lambda state, *_: (jnp.bool_(True), state)):
        return training(x)


def products(x):
    """STEPS steps of gradient descent on the layers' matrix products, and nothing else."""
    weights = [jnp.full(size, size[0] ** -0.5, jnp.float32) for size in SIZES]
    batch = to_float(jnp.asarray(x[: CONFIG.batch_size].reshape(-1, 784)))

    def loss(weights):
        hidden = batch
        for w in weights:
            hidden = hidden[:, : w.shape[0]] @ w
        return jnp.sum(hidden)

    def step(_, weights):
        return jax.tree.map(lambda w, g: w - 1e-6 * g, weights, jax.grad(loss)(weights))

    train = jax.jit(lambda weights: jax.lax.fori_loop(0, STEPS, step, weights))
    return lambda: train(weights)


ROWS = {
    "the step": training,
    "without binarisation": lambda x: training(x, prepare=lambda key, x: to_float(x)),
    "without the guard": without_guard,
    "gradient descent in place of Adam": lambda x: training(x, optimizer=optax.sgd(1e-3)),
    "Adam with one division": lambda x: training(x, optimizer=adam_in_one_factor()),
    "products and gradient descent alone": products,
}


def milliseconds(run):
    def measured():
        start = time.process_time()
        jax.block_until_ready(run())
        return (time.process_time() - start) / STEPS * 1e3

    jax.block_until_ready(run())
    return measured


if __name__ == "__main__":
    options = parse(__doc__)
    check_some(ROWS, options)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print_machine(options)
    x = np.asarray(images(6000))
    runs = {"the step": ROWS["the step"]} | {name: row for name, row in ROWS.items() if options.only in name}
    times = alternate({name: milliseconds(row(x)) for name, row in runs.items()}, options.repeats)
    print_header("784-200-200-50, batch 20, one core", "CPU ms", "the step / this")
    for name, each in times.items():
        print_row(name, spread(each), spread([a / b for a, b in zip(times["the step"], each, strict=True)]))
