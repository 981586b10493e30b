"""How many samples of a conditional VAE of MNIST a classifier takes for the digit that was asked for.

    python tests/benchmarks/conditional_samples.py checkpoints/conditional [--data_dir=DIR]

The classifier, 784-512-256-10, is trained on the train split alone; its test accuracy is printed beside the result.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import optax

from vae_jax import condition, generate, load
from vae_jax.core import to_float
from vae_jax.data import datasets
from vae_jax.networks import mlp

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run_dir")
parser.add_argument("--data_dir")
parser.add_argument("--num", type=int, default=1000, help="samples, each class in turn (%(default)s)")
parser.add_argument("--num_epochs", type=int, default=8)
options = parser.parse_args()

data = datasets.load("mnist", data_dir=options.data_dir)
x, labels = to_float(jax.device_put(data.train.x)), jax.device_put(data.train.label)
classifier = mlp(x.shape[1:], 10, 1, hidden_sizes=(512, 256)).encoder
batch_size = 200
num_steps = options.num_epochs * len(x) // batch_size
optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, num_steps))


def loss(params, x, labels):
    logits = classifier.apply(params, x, None)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


@jax.jit
def train(key):
    params = classifier.init(key, x[:1], None)

    def step(i, carry):
        params, state = carry
        rows = jax.random.randint(jax.random.fold_in(key, i), (batch_size,), 0, len(x))
        updates, state = optimizer.update(jax.grad(loss)(params, x[rows], labels[rows]), state)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, num_steps, step, (params, optimizer.init(params)))[0]


params = train(jax.random.key(0))
recognise = jax.jit(lambda x: jnp.argmax(classifier.apply(params, x, None), -1))
run = load(options.run_dir)
asked = jnp.arange(options.num) % 10
drawn = generate.sample(run.params, jax.random.key(0), condition(run.vae, jax.nn.one_hot(asked, 10)), options.num)
test_x = to_float(jax.device_put(data.test.x))
print(
    json.dumps(
        {
            "recognised": float(jnp.mean(recognise(drawn.mean) == asked)),
            "num": options.num,
            "test_accuracy": float(jnp.mean(recognise(test_x) == data.test.label)),
        }
    )
)
