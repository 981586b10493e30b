"""Every prior is a normalised distribution over the latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_within_errors, members
from scipy import stats

from vae_jax import priors
from vae_jax.codes import Codes
from vae_jax.distributions import DiagonalGaussian

PRIORS = {
    "factorized_codes": {},
    "mixture": {"num_components": 5},
    "real_nvp": {"num_couplings": 2, "hidden_size": 8},
    "standard_normal": {},
    "uniform_codes": {},
    "vamp": {"num_components": 5},
}
CONTINUOUS = [name for name in PRIORS if name not in priors.OF_CODES]
every = pytest.mark.parametrize("name", PRIORS)


def make(name, latent_dim):
    """A prior, its parameters, moved from where they begin, and an encoder that keeps the first elements of x."""
    rng = np.random.default_rng(0)
    what = Codes((3, 4, 2)[:latent_dim], one_hot=False) if name in priors.OF_CODES else latent_dim
    prior = getattr(priors, name)(what, **PRIORS[name])
    params = prior.init(jax.random.key(1), jnp.asarray(rng.uniform(size=(50, 4)), jnp.float32))
    params = jax.tree.map(lambda a: a + 0.1 * rng.normal(size=a.shape).astype(np.float32), params)
    encode = lambda x: DiagonalGaussian(3 * x[..., :latent_dim], x[..., :latent_dim])  # noqa: E731
    return prior, params, encode


def build(name, latent_dim):
    prior, params, encode = make(name, latent_dim)
    return prior.build(params, encode)


def test_every_prior_of_the_module_is_tested_here():
    assert members(priors, "Prior") == set(PRIORS)


@every
@pytest.mark.parametrize("latent_dim", (2, 3))
def test_shapes(name, latent_dim, key):
    def pass_through(key):
        p = build(name, latent_dim)
        z = p.sample(key, (2, 5))
        return p.mean, z, p.log_prob(z)

    mean, z, log_prob = jax.eval_shape(pass_through, key)
    assert mean.shape == (latent_dim,) and z.shape == (2, 5, latent_dim) and log_prob.shape == (2, 5)


@pytest.mark.parametrize(
    "name, latent_dim", [*((name, 2) for name in CONTINUOUS), *((name, 1) for name in CONTINUOUS if name != "real_nvp")]
)
def test_densities_integrate_to_one(name, latent_dim):
    axis = np.linspace(-15, 15, 601, dtype=np.float32)
    z = np.stack(np.meshgrid(*[axis] * latent_dim), -1)
    density = np.exp(np.asarray(build(name, latent_dim).log_prob(z), np.float64))
    np.testing.assert_allclose(density.sum() * (axis[1] - axis[0]) ** latent_dim, 1, rtol=1e-4)


@every
def test_gradients_reach_every_parameter(name):
    prior, params, encode = make(name, 2)
    z = jnp.asarray(np.random.default_rng(1).normal(size=(20, 2)).astype(np.float32))
    grads = jax.jit(jax.grad(lambda params: jnp.sum(prior.build(params, encode).log_prob(z))))(params)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", [name for name in CONTINUOUS if name != "real_nvp"])
def test_samples_have_the_mean(name, key):
    p = build(name, 3)
    assert_within_errors(p.sample(key, (20_000,)), p.mean)


def test_standard_normal_is_scipys():
    z = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    expected = stats.norm.logpdf(z.astype(np.float64)).sum(-1)
    np.testing.assert_allclose(build("standard_normal", 3).log_prob(z), expected, rtol=1e-5)


def test_the_vamp_prior_is_the_mixture_of_the_posteriors_of_its_pseudo_inputs():
    prior, params, encode = make("vamp", 2)
    z = np.random.default_rng(1).normal(size=(20, 2)).astype(np.float32)
    inputs = np.clip(params["pseudo_inputs"], 0, 1)
    assert inputs.shape == (5, 4)
    each = [np.asarray(encode(u).log_prob(z), np.float64) for u in inputs]
    expected = np.log(np.mean(np.exp(each), axis=0))
    np.testing.assert_allclose(prior.build(params, encode).log_prob(z), expected, rtol=1e-5)


def test_pseudo_inputs_begin_as_training_examples():
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(3, 4)), jnp.float32)
    for num_components in (2, 7):
        params = priors.vamp(2, num_components=num_components).init(jax.random.key(0), x)
        rows = {tuple(row) for row in np.asarray(params["pseudo_inputs"]).tolist()}
        assert params["pseudo_inputs"].shape == (num_components, 4) and rows <= set(map(tuple, x.tolist()))
