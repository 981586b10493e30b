"""The objective and the learning step take the networks and distributions of other libraries as they are."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import affine, dense, lenient, standard_normal

from vae_jax.core import VAE
from vae_jax.distributions import Bernoulli, DiagonalGaussian, kl_monte_carlo
from vae_jax.objectives import negative_elbo
from vae_jax.update import init_state, make_update

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import equinox as eqx
    import haiku as hk
    import numpyro.distributions as dist
    from flax import linen, nnx

SIZE, LATENTS, HIDDEN, BATCH = 6, 2, 8, 16

# A network of each library: (key, sizes of input and output) -> (params, apply(params, x)).


def plain_dicts(key, num_in, num_out):
    first, second = jax.random.split(key)
    params = {"first": dense(first, num_in, HIDDEN), "second": dense(second, HIDDEN, num_out)}
    return params, lambda params, x: affine(params["second"], jnp.tanh(affine(params["first"], x)))


def flax_linen(key, num_in, num_out):
    module = linen.Sequential([linen.Dense(HIDDEN), jnp.tanh, linen.Dense(num_out)])
    return module.init(key, jnp.zeros((1, num_in))), module.apply


def flax_nnx(key, num_in, num_out):
    rngs = nnx.Rngs(params=key)
    model = nnx.Sequential(nnx.Linear(num_in, HIDDEN, rngs=rngs), jnp.tanh, nnx.Linear(HIDDEN, num_out, rngs=rngs))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return params, lambda params, x: nnx.merge(graph, params, rest)(x)


def haiku(key, num_in, num_out):
    network = hk.without_apply_rng(
        hk.transform(lambda x: hk.Sequential([hk.Linear(HIDDEN), jnp.tanh, hk.Linear(num_out)])(x))
    )
    return network.init(key, jnp.zeros((1, num_in))), network.apply


def equinox(key, num_in, num_out):
    model = eqx.nn.MLP(num_in, num_out, HIDDEN, depth=1, activation=jnp.tanh, key=key)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return params, lambda params, x: jax.vmap(eqx.combine(params, static))(x)


NETWORKS = (plain_dicts, flax_linen, flax_nnx, haiku, equinox)

# The three distributions of each library, from the outputs of the networks.


class Own:
    def posterior(outputs):
        return DiagonalGaussian(*jnp.split(outputs, 2, -1))

    def likelihood(outputs):
        return Bernoulli(outputs)

    def prior():
        return standard_normal(LATENTS)


class NumPyro:
    def posterior(outputs):
        mean, log_var = jnp.split(outputs, 2, -1)
        return dist.Normal(mean, jnp.exp(0.5 * log_var)).to_event(1)

    def likelihood(outputs):
        return dist.Bernoulli(logits=outputs).to_event(1)

    def prior():
        return dist.Normal(jnp.zeros(LATENTS), jnp.ones(LATENTS)).to_event(1)


def build(network, posterior=Own, likelihood=Own, prior=Own):
    encoder, encode = network(jax.random.key(1), SIZE, 2 * LATENTS)
    decoder, decode = network(jax.random.key(2), LATENTS, SIZE)
    return VAE(
        init=lambda key, x: {"encoder": encoder, "decoder": decoder},
        encode=lambda params, x: posterior.posterior(encode(params["encoder"], x)),
        decode=lambda params, z: likelihood.likelihood(decode(params["decoder"], z)),
        prior=lambda params: prior.prior(),
    )


@pytest.fixture
def x():
    return jax.random.bernoulli(jax.random.key(3), 0.2, (BATCH, SIZE)).astype(jnp.float32)


def on_fixed_noise(params, key, x, vae):
    return negative_elbo(params, jax.random.key(4), x, vae, num_samples=2)


def check(vae, x):
    """The loss is finite, its gradient is not zero, and one step down it lowers the loss."""
    loss_and_grad = jax.jit(jax.value_and_grad(lambda params: on_fixed_noise(params, None, x, vae)[0]))
    optimizer = optax.sgd(1e-2)
    state = init_state(vae, optimizer, jax.random.key(0), x, ema=False)
    loss, grads = loss_and_grad(state.params)
    assert np.isfinite(loss)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(grads))
    after, metrics = jax.jit(make_update(vae, on_fixed_noise, optimizer))(state, x)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    assert loss_and_grad(after.params)[0] < loss


@pytest.mark.parametrize("network", NETWORKS, ids=lambda f: f.__name__)
def test_a_network_of_any_library_trains(network, x):
    check(build(network), x)


@pytest.mark.parametrize("parts", (("posterior",), ("likelihood", "prior"), ("posterior", "likelihood", "prior")))
def test_a_distribution_of_numpyro_trains(parts, x):
    with lenient():
        check(build(plain_dicts, **dict.fromkeys(parts, NumPyro)), x)


def test_numpyros_distributions_give_the_same_bound(x, key):
    """With the same samples and an estimated KL."""
    losses = []
    for library in (Own, NumPyro):
        vae = build(plain_dicts, library, library, library)
        objective = partial(negative_elbo, vae=vae, num_samples=500, kl=kl_monte_carlo)
        with lenient():
            losses.append(jax.jit(objective)(vae.init(None, x), jax.random.clone(key), x)[0])
    np.testing.assert_allclose(*losses, rtol=1e-3)
