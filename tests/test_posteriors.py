"""Every posterior is a normalised distribution that learns from all the outputs of the encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_within_errors, members

from vae_jax import posteriors

POSTERIORS = {  # options, or a function of the number of dimensions that gives them
    "categorical": lambda latent_dim: {"num_categories": latent_dim, "straight_through": True},
    "delta": {},
    "diagonal": {},
    "flow": {"num_couplings": 2, "hidden_size": 8, "context_size": 3},
    "fsq": {"levels": (4,)},
    "full_covariance": {},
    "vq": {"num_codes": 5, "code_dim": 1},
}
CODED = {"categorical", "fsq", "vq"}
every = pytest.mark.parametrize("name", POSTERIORS)
with_density = pytest.mark.parametrize("name", [name for name in POSTERIORS if name not in ("delta", "fsq", "vq")])
batches = pytest.mark.parametrize("batch", ((), (4,), (2, 3)), ids=str)


def make(name, latent_dim, batch=()):
    """A posterior, its parameters, moved from where they begin, and outputs of an encoder."""
    rng = np.random.default_rng(0)
    options = POSTERIORS[name]
    posterior = getattr(posteriors, name)(latent_dim, **(options(latent_dim) if callable(options) else options))
    noisy = lambda a: a + 0.3 * rng.normal(size=a.shape).astype(np.float32)  # noqa: E731
    params = jax.tree.map(noisy, posterior.init(jax.random.key(1)))
    return posterior, params, noisy(jnp.zeros((*batch, posterior.num_outputs)))


def test_every_posterior_of_the_module_is_tested_here():
    assert members(posteriors, "Posterior") == set(POSTERIORS)


@every
@batches
@pytest.mark.parametrize("latent_dim", (2, 3))
def test_shapes(name, latent_dim, batch, key):
    posterior, params, outputs = make(name, latent_dim, batch)

    def pass_through(params, outputs, key):
        q = posterior.build(params, outputs)
        z = q.sample(key, (5,))
        return q.mean, z, q.log_prob(z)

    mean, z, log_prob = jax.eval_shape(pass_through, params, outputs, key)
    assert mean.shape == (*batch, latent_dim)
    assert z.shape == (5, *batch, latent_dim)
    assert log_prob.shape == (5, *batch)


@every
def test_gradients_reach_every_output(name, key):
    posterior, params, outputs = make(name, 3, (2,))
    z_of = lambda outputs: posterior.build(params, outputs).sample(jax.random.clone(key))  # noqa: E731
    assert np.all(jax.jit(jax.grad(lambda outputs: jnp.sum((z_of(outputs) + 2) ** 3)))(outputs) != 0)


@with_density
def test_gradients_of_the_density_reach_every_output(name):
    posterior, params, outputs = make(name, 3, (2,))
    z = jnp.asarray([[0.3, -0.2, 0.9], [1.1, 0.4, -0.6]])
    log_prob = lambda outputs: jnp.sum(posterior.build(params, outputs).log_prob(z))  # noqa: E731
    assert np.all(jax.jit(jax.grad(log_prob))(outputs) != 0)


@pytest.mark.parametrize(
    "name, latent_dim",
    [*((name, 2) for name in POSTERIORS if name not in {"delta", *CODED}), ("diagonal", 1), ("full_covariance", 1)],
)
def test_densities_integrate_to_one(name, latent_dim):
    posterior, params, outputs = make(name, latent_dim)
    axis = np.linspace(-15, 15, 601, dtype=np.float32)
    z = np.stack(np.meshgrid(*[axis] * latent_dim), -1)
    density = np.exp(np.asarray(posterior.build(params, outputs).log_prob(z), np.float64))
    np.testing.assert_allclose(density.sum() * (axis[1] - axis[0]) ** latent_dim, 1, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in POSTERIORS if name not in ("flow", "categorical")])
def test_samples_have_the_mean(name, key):
    posterior, params, outputs = make(name, 3, (2,))
    q = posterior.build(params, outputs)
    assert_within_errors(q.sample(key, (20_000,)), q.mean)


def test_a_flow_needs_two_dimensions_to_couple():
    with pytest.raises(ValueError, match="needs at least 1 coupling and 2 dimensions; got 4 and 1"):
        posteriors.flow(1)


def test_diagonal_splits_the_outputs_into_mean_and_log_variance():
    q = posteriors.diagonal(2).build({}, jnp.array([1.0, 2.0, -1.0, 0.5]))
    np.testing.assert_array_equal(q.mean, [1, 2])
    np.testing.assert_array_equal(q.log_var, [-1, 0.5])


def test_full_covariance_uses_each_output_once_below_and_on_the_diagonal():
    q = posteriors.full_covariance(3).build({}, jnp.arange(9.0))
    np.testing.assert_array_equal(q.mean, [0, 1, 2])
    tril = np.asarray(q.scale_tril)
    np.testing.assert_allclose(np.diag(tril), np.exp([3, 4, 5]), rtol=1e-6)
    assert sorted(tril[np.tril_indices(3, -1)]) == [6, 7, 8]
    assert not np.triu(tril, 1).any()
