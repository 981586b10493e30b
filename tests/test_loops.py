"""What training runs on a GPU and on a TPU gives the numbers that it gives on a CPU, where these tests run it."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import lenient_optax, mlp_vae

from vae_jax import guard
from vae_jax.config import Config
from vae_jax.core import Examples
from vae_jax.objectives import negative_elbo
from vae_jax.run import ensemble
from vae_jax.update import init_state, make_train, make_update
from vae_jax.xla import loops

pytestmark = pytest.mark.robust

SMALL_VAE = mlp_vae((4,))
NUM, BATCH_SIZE = 160, 2


@pytest.fixture
def on(monkeypatch):
    """on(platform): the loops are those of this platform from here on."""

    def choose(platform):
        def pick(*args, default, **others):
            return others.get(platform, default)(*args)

        monkeypatch.setattr(loops, "lax", SimpleNamespace(**vars(jax.lax) | {"platform_dependent": pick}))

    return choose


def examples():
    return Examples(jax.random.bernoulli(jax.random.key(1), 0.4, (NUM, 4)).astype(jnp.float32), None)


def trained(steps, optimizer=None, objective=negative_elbo):
    optimizer = optimizer or lenient_optax(optax.adam(0.01))
    train = jax.jit(make_train(make_update(SMALL_VAE, objective, optimizer, ema_decay=0.9), BATCH_SIZE))
    state = init_state(SMALL_VAE, optimizer, jax.random.key(0), examples().x, ema=True)
    return train(state, examples(), jnp.int32(steps))


def assert_same(ours, others, rtol=2e-5):
    def same(a, b):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, rtol, 1e-6)

    jax.tree.map(same, ours, others)


@pytest.mark.parametrize("most", (1, 7, 1000))
def test_a_loop_in_chunks_is_a_loop(on, most):
    carry = (
        jnp.int32(5),
        {
            "whole": jnp.array([2**31 - 1, -(2**31), -1, 65_535, 65_536], jnp.int32),
            "float": jnp.array([1e-42, jnp.inf, -0.0, jnp.nan]),
            "number": jnp.float32(0.5),
            "narrow": jnp.ones(2, jnp.bfloat16),
            "matrix": jnp.ones((2, 3)),
            "long": jnp.zeros(loops.SMALL + 1),
            "key": jax.random.key(3),
            "no": None,
        },
    )

    def body(i, carry):
        step, rest = carry
        number = rest["number"] * 0.5 + i.astype(jnp.float32)
        return step + i, {**rest, "whole": rest["whole"][::-1], "number": number, "matrix": rest["matrix"] + number}

    def run(platform):
        on(platform)
        run = jax.jit(lambda count: loops.repeat(body, count, carry, most))
        return [run(jnp.int32(count)) for count in (0, 1, 31, 32, 33, 100) if count <= most]

    def bits(a):
        return np.asarray(jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a).tobytes()

    plain, chunks = run("cpu"), run("cuda")
    assert jax.tree.structure(plain) == jax.tree.structure(chunks)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(chunks), strict=True):
        assert a.dtype == b.dtype and bits(a) == bits(b)


@pytest.mark.parametrize("platform", ("cuda", "tpu"))
def test_training_gives_the_numbers_of_a_cpu(on, platform):
    expected = trained(100)
    on(platform)
    assert_same(trained(100), expected)


@pytest.mark.parametrize("term", ("kl", "gradient"))
def test_the_guard_skips_and_remembers_the_same(on, term):
    def objective(params, key, x, vae):
        loss, metrics = negative_elbo(params, key, x, vae)
        bad = jnp.where(x.sum() > 5, jnp.nan, 0.0)
        if term == "gradient":
            return _bad_gradient(loss, bad), metrics
        metrics = {**metrics, **({term: metrics[term] + bad} if term in metrics else {})}
        return loss + (bad if term == "loss" else 0.0), metrics

    expected = trained(70, objective=objective)
    assert 0 < expected[0].guard.skipped < 70 and guard.TERMS[expected[0].guard.term] == term
    on("cuda")
    assert_same(trained(70, objective=objective), expected)


@jax.custom_jvp
def _bad_gradient(loss, bad):
    return loss


_bad_gradient.defjvp(lambda primals, tangents: (primals[0], tangents[0] + tangents[0] * primals[1]))


def test_a_derivative_of_the_training_is_that_of_a_cpu(on):
    def loss(rate):
        state, sums = trained(40, optimizer=lenient_optax(optax.sgd(rate)))
        return sums["loss"], state.params

    derivative = lambda: jax.jvp(loss, (jnp.float32(0.01),), (jnp.float32(1.0),))[1]  # noqa: E731
    expected = derivative()
    assert abs(expected[0]) > 1
    on("cuda")
    assert_same(derivative(), expected, 1e-3)


def test_members_of_a_sweep_train_at_once(on):
    config = replace(Config(), batch_size=BATCH_SIZE, num_epochs=2, likelihood="bernoulli")
    members = [replace(config, seed=seed, learning_rate=0.01 * (seed + 1)) for seed in range(2)]

    def run():
        states = ensemble.init_states(SMALL_VAE, members, NUM // BATCH_SIZE, examples().x)
        train = ensemble.make_train(SMALL_VAE, config, NUM // BATCH_SIZE, batched=True)
        with jax.numpy_dtype_promotion("standard"):
            return train(states, ensemble.varied_of(members), examples(), jnp.int32(70))

    expected = run()
    on("cuda")
    assert_same(run(), expected)
