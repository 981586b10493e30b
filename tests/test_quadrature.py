"""Every prior with every posterior, against log p(x), the ELBO and the KL by quadrature over z."""

from functools import cache
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mostly_slow
from helpers import CODED, assert_within_errors, jit, members
from scipy.special import logsumexp, softmax

from vae_jax import build, posteriors, priors
from vae_jax.annealing import annealed_log_weights
from vae_jax.bounds import renyi_bound, thermodynamic_bound
from vae_jax.config import Config
from vae_jax.data.inputs import DataInfo
from vae_jax.distributions import kl_divergence
from vae_jax.objectives import importance_bound, log_weights

OPTIONS = {  # a member that is not here has its own defaults
    "mixture": {"num_components": 5},
    "vamp": {"num_components": 5},
    "real_nvp": {"num_couplings": 2, "hidden_size": 8},
    "flow": {"num_couplings": 2, "hidden_size": 8, "context_size": 3},
}
FLOWS = {"real_nvp", "flow"}
NUM_SAMPLES = 20_000  # a multiple of each K
X = np.array([[1, 0, 0, 1, 0, 1], [1, 1, 1, 1, 1, 1], [0, 0, 1, 0, 0, 0]], np.float32)
AXIS = np.linspace(-12, 12, 241)


class Figures(NamedTuple):
    """Log densities and the sampled terms of the bounds, in float64."""

    log_prior: np.ndarray  # [G, B], on the grid, as the next two
    log_q: np.ndarray
    log_likelihood: np.ndarray
    log_w: np.ndarray  # [K, B], as the next
    kl: np.ndarray
    cell: float  # the volume of a point of the grid

    def integrate(self, log_f, value=1.0):
        """The integral of exp(log_f) * value over z: [B]."""
        return np.sum(np.exp(log_f) * value, 0) * self.cell

    @property
    def log_px(self):
        return np.log(self.integrate(self.log_prior + self.log_likelihood))

    @property
    def elbo(self):
        return self.integrate(self.log_q, self.log_prior + self.log_likelihood - self.log_q)


def fits(prior, posterior, latent_dim):
    """A VampPrior is a mixture of diagonal posteriors, and a flow couples two dimensions at least."""
    return (prior != "vamp" or posterior == "diagonal") and (latent_dim > 1 or not {prior, posterior} & FLOWS)


# `delta` has no density, and neither have codes: see test_codes.py.
NAMES = product(
    sorted(members(priors, "Prior") - {*priors.OF_CODES}),
    sorted(members(posteriors, "Posterior") - {"delta", *CODED}),
    (1, 2),
)
CASES = [names for names in NAMES if fits(*names)]


# Each prior and each posterior in every run of the tests; slow are the other pairs, and one dimension.
def is_fast(case):
    prior, posterior, latent_dim = case
    return latent_dim == 2 and (prior == "standard_normal" or posterior == "diagonal")


every = pytest.mark.parametrize("prior, posterior, latent_dim", mostly_slow(CASES, is_fast))


@cache
def model(prior, posterior, latent_dim):
    """A VAE of six binary pixels whose parameters are moved from where they begin.

    They are halved, which keeps q(z | x) wide: the weights of one much narrower than p(z | x) have no variance, and so
    no standard error.
    """
    config = Config(
        prior=prior,
        prior_options=OPTIONS.get(prior, {}),
        posterior=posterior,
        posterior_options=OPTIONS.get(posterior, {}),
        latent_dim=latent_dim,
        hidden_sizes=(8,),
        activation="tanh",
        batch_size=1,
    )
    vae = build.make_vae(config, DataInfo((6,), (), (0.0, 1.0), len(X), 0, 0, "", None))
    rng = np.random.default_rng(0)
    move = lambda a: 0.5 * a + 0.2 * rng.normal(size=a.shape).astype(np.float32)  # noqa: E731
    return vae, jax.tree.map(move, vae.init(jax.random.key(0), jnp.asarray(X)))


@cache
def figures(prior, posterior, latent_dim):
    vae, params = model(prior, posterior, latent_dim)

    @jax.jit
    def compute(params, key, grid):
        p, q = vae.prior(params), vae.encode(params, X)
        on_grid = jax.vmap(lambda z: (p.log_prob(z), q.log_prob(z), vae.decode(params, z).mean))(grid)
        w_key, z_key = jax.random.split(key)
        log_w = log_weights(params, w_key, X, vae, num_samples=NUM_SAMPLES)
        kl = jax.vmap(lambda z: kl_divergence(q, p, z))(q.sample(z_key, (NUM_SAMPLES,)))
        return *on_grid, log_w, kl

    points = np.stack(np.meshgrid(*[AXIS] * latent_dim), -1).reshape(-1, 1, latent_dim)
    grid = np.repeat(points, len(X), 1).astype(np.float32)
    computed = compute(params, jax.random.key(1), grid)
    log_prior, log_q, mean, log_w, kl = (np.asarray(a, np.float64) for a in computed)
    log_likelihood = np.log(np.where(X == 1, mean, 1 - mean)).sum(-1)
    return Figures(log_prior, log_q, log_likelihood, log_w, kl, (AXIS[1] - AXIS[0]) ** latent_dim)


@every
def test_densities_integrate_to_one(prior, posterior, latent_dim):
    f = figures(prior, posterior, latent_dim)
    for log_prob in (f.log_prior, f.log_q):
        np.testing.assert_allclose(f.integrate(log_prob), 1, rtol=1e-5)


@every
def test_the_importance_bound_of_many_samples_is_log_px(prior, posterior, latent_dim):
    f = figures(prior, posterior, latent_dim)
    w = np.exp(f.log_w - f.log_px)
    assert_within_errors(w, 1)
    assert np.max(w.std(0)) / np.sqrt(NUM_SAMPLES) < 0.03
    np.testing.assert_allclose(
        importance_bound(jnp.asarray(f.log_w, jnp.float32)), f.log_px + np.log(w.mean(0)), rtol=1e-5
    )


@pytest.mark.parametrize(
    "prior, posterior, latent_dim",
    mostly_slow([names for names in CASES if names[1] == "diagonal"], is_fast),
)
def test_chains_from_the_prior_agree(key, prior, posterior, latent_dim):
    """They know no q(z | x), and so one is enough."""
    vae, params = model(prior, posterior, latent_dim)
    options = {"num_chains": 5_000, "num_steps": 3, "num_leapfrog": 2, "step_size": 0.5}
    log_w = np.asarray(jit(annealed_log_weights, vae, **options)(params, key, X))
    assert_within_errors(np.exp(log_w - figures(prior, posterior, latent_dim).log_px), 1)


@every
def test_the_terms_of_the_elbo_are_integrals(prior, posterior, latent_dim):
    f = figures(prior, posterior, latent_dim)
    assert_within_errors(f.log_w, f.elbo)
    error = 5 * f.kl.std(0) / np.sqrt(NUM_SAMPLES) + 1e-5
    assert np.all(np.abs(f.kl.mean(0) - f.integrate(f.log_q, f.log_q - f.log_prior)) < error)


@every
def test_the_renyi_and_thermodynamic_bounds_of_many_samples_are_integrals(prior, posterior, latent_dim):
    f = figures(prior, posterior, latent_dim)
    on_grid, log_w = f.log_prior + f.log_likelihood - f.log_q, jnp.asarray(f.log_w, jnp.float32)
    exact = 2 * np.log(f.integrate(f.log_q + 0.5 * on_grid))
    power = np.exp(0.5 * (f.log_w - exact))
    assert_within_errors(power, 1)
    np.testing.assert_allclose(renyi_bound(log_w, 0.5), exact + 2 * np.log(power.mean(0)), rtol=1e-5)

    points = [0.0, 0.2, 0.5]
    means = [np.sum(softmax(f.log_q + point * on_grid, 0) * on_grid, 0) for point in points]
    blocks = jax.jit(jax.vmap(lambda block: thermodynamic_bound(block, points)))(log_w.reshape(10, -1, len(X)))
    error = 5 * np.std(blocks, axis=0) / 10**0.5 + 0.01  # each block has a bias too
    assert np.all(np.abs(np.mean(blocks, axis=0) - np.dot([0.2, 0.3, 0.5], means)) < error)


@every
def test_bounds_rise_from_the_elbo_to_log_px(prior, posterior, latent_dim):
    f = figures(prior, posterior, latent_dim)
    blocks = (f.log_w.reshape(-1, k, len(X)) for k in (1, 5, 50))
    bounds = [logsumexp(log_w, 1) - np.log(log_w.shape[1]) for log_w in blocks]
    means = [f.elbo, *(bound.mean(0) for bound in bounds), f.log_px]
    errors = [0, *(bound.std(0) / np.sqrt(len(bound)) for bound in bounds), 0]
    for i in range(4):
        assert np.all(means[i + 1] - means[i] > -5 * np.hypot(errors[i], errors[i + 1]))
    loosest = np.argmax(f.log_px - f.elbo)
    assert means[1][loosest] + 5 * errors[2][loosest] < means[2][loosest] < means[3][loosest] - 5 * errors[3][loosest]
