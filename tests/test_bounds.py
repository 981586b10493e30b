"""Bounds of importance weights, against SciPy, NumPyro, integrals on a grid, and each other."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import assert_within_errors, jit, lenient, mlp_vae, pca_data, pca_params, pca_vae
from numpyro.infer import RenyiELBO
from scipy.special import logsumexp, softmax

from vae_jax import bounds
from vae_jax.core import VAE
from vae_jax.objectives import importance_bound, log_weights, negative_iwae, weights_at

PARAMS, X = pca_params(), pca_data()
LOG_W = np.random.default_rng(0).normal(size=(7, 3)) * 3 + np.array([-80.0, 0.0, 40.0])
FLOAT_W = jnp.asarray(LOG_W, jnp.float32)
SIGNIFICANT = np.float64(FLOAT_W)  # the same numbers


@pytest.fixture(scope="module")
def mlp():
    """A VAE whose encoder and decoder share no parameter, its parameters and a batch."""
    vae, x = mlp_vae((6,), latent_dim=3), jax.random.uniform(jax.random.key(1), (5, 6))
    return vae, jax.jit(vae.init)(jax.random.key(2), x), x


def value_and_grad(objective, vae, params, x, **options):
    """At one key, the same for all."""
    loss = lambda params: objective(params, jax.random.key(7), x, vae, **options)  # noqa: E731
    (value, metrics), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert set(metrics) == {"elbo", "log_likelihood", "kl"}
    return value, grads


def assert_same(a, b, rtol=1e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5), a, b)


# MIWAE, PIWAE, CIWAE


def test_one_group_is_the_iwae_and_groups_of_one_weight_are_the_elbo(mlp):
    vae, params, x = mlp
    iwae = value_and_grad(negative_iwae, vae, params, x, num_samples=6)
    assert_same(value_and_grad(bounds.negative_miwae, vae, params, x, num_groups=1, num_samples=6), iwae)
    assert_same(value_and_grad(bounds.negative_piwae, vae, params, x, num_groups=1, num_samples=6), iwae)

    def elbo(params, key, x, vae):
        log_w = log_weights(params, key, x, vae, num_samples=6)
        return -jnp.mean(log_w), dict.fromkeys(("elbo", "log_likelihood", "kl"), 0.0)

    averaged = value_and_grad(elbo, vae, params, x)
    assert_same(value_and_grad(bounds.negative_miwae, vae, params, x, num_groups=6, num_samples=1), averaged)
    assert_same(value_and_grad(bounds.negative_ciwae, vae, params, x, elbo_weight=1.0, num_samples=6), averaged)
    assert_same(value_and_grad(bounds.negative_ciwae, vae, params, x, elbo_weight=0.0, num_samples=6), iwae)
    mixed = value_and_grad(bounds.negative_ciwae, vae, params, x, elbo_weight=0.3, num_samples=6)
    assert_same(mixed, jax.tree.map(lambda a, b: 0.3 * a + 0.7 * b, averaged, iwae))


def test_groups_are_bounds_of_their_own():
    expected = np.mean([logsumexp(SIGNIFICANT[i : i + 2], 0) - np.log(2) for i in (0, 2, 4)], 0)
    np.testing.assert_allclose(bounds.grouped_bound(FLOAT_W[:6], 3), expected, rtol=1e-6)


def test_piwae_trains_the_decoder_by_the_iwae_and_the_encoder_by_miwae(mlp):
    vae, params, x = mlp
    value, grads = value_and_grad(bounds.negative_piwae, vae, params, x, num_groups=3, num_samples=4)
    iwae, of_iwae = value_and_grad(negative_iwae, vae, params, x, num_samples=12)
    _, of_miwae = value_and_grad(bounds.negative_miwae, vae, params, x, num_groups=3, num_samples=4)
    np.testing.assert_allclose(value, iwae, rtol=1e-6)
    assert_same(grads["decoder"], of_iwae["decoder"])
    assert_same(grads["encoder"], of_miwae["encoder"])
    for part, other in (("decoder", of_miwae), ("encoder", of_iwae)):
        assert np.max(np.abs(grads[part][0]["w"] - other[part][0]["w"])) > 1e-3


def test_piwae_adds_the_gradients_of_a_parameter_that_p_and_q_share():
    """q(z | x) of the linear-Gaussian model reads b, which p(x | z) holds too."""
    shared = pca_vae()
    apart = VAE(
        shared.init,
        lambda params, x: shared.encode(params["q"], x),
        lambda params, z: shared.decode(params["p"], z),
        lambda params: shared.prior(params["p"]),
    )
    options = {"num_groups": 3, "num_samples": 4}
    _, grads = value_and_grad(bounds.negative_piwae, shared, PARAMS, X, **options)
    _, of_iwae = value_and_grad(negative_iwae, apart, {"p": PARAMS, "q": PARAMS}, X, num_samples=12)
    _, of_miwae = value_and_grad(bounds.negative_miwae, apart, {"p": PARAMS, "q": PARAMS}, X, **options)
    assert np.min(np.abs(of_miwae["q"]["b"])) > 0
    assert_same(grads, jax.tree.map(jnp.add, of_iwae["p"], of_miwae["q"]), rtol=1e-3)


# Renyi


def renyi(log_w, order):
    """In float64, where the definition has digits left."""
    return (logsumexp((1 - order) * log_w, 0) - np.log(len(log_w))) / (1 - order)


@pytest.mark.parametrize("order", (-2.0, 0.0, 0.3, 0.5, 0.9, 0.99, 0.999, 1.001, 2.0, 30.0))
def test_the_renyi_bound_is_its_definition(order):
    np.testing.assert_allclose(bounds.renyi_bound(FLOAT_W, order), renyi(SIGNIFICANT, order), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("order", (1 - 1e-6, 1 - 1e-12, np.nextafter(1, 0), 1, np.nextafter(1, 2), 1 + 1e-9))
def test_the_renyi_bound_near_order_1_is_the_elbo_to_the_last_digits(order):
    mean, variance = SIGNIFICANT.mean(0), SIGNIFICANT.var(0)
    expected = mean + (1 - order) * variance / 2  # its first two terms
    np.testing.assert_allclose(bounds.renyi_bound(FLOAT_W, float(order)), expected, rtol=1e-6, atol=1e-5)
    gradient = jax.grad(lambda log_w: jnp.sum(bounds.renyi_bound(log_w, float(order))))(FLOAT_W)
    np.testing.assert_allclose(gradient, 1 / 7, rtol=1e-4)


@pytest.mark.parametrize("order", (-1.0, 0.0, 0.5, 0.9999, 3.0))
def test_the_gradient_of_the_renyi_bound_weighs_by_a_power(order):
    gradient = jax.grad(lambda log_w: jnp.sum(bounds.renyi_bound(log_w, order)))(FLOAT_W)
    np.testing.assert_allclose(gradient, softmax((1 - order) * SIGNIFICANT, 0), rtol=1e-3, atol=1e-6)


def test_the_renyi_bound_falls_with_its_order_from_far_weights_too():
    log_w = FLOAT_W * 1e3
    values = [bounds.renyi_bound(log_w, order) for order in (-1.0, 0.0, 0.5, 1 - 1e-6, 1.0, 1 + 1e-6, 2.0)]
    assert all(np.all(a >= b) for a, b in pairwise(values))
    np.testing.assert_allclose(values[1], importance_bound(log_w), rtol=1e-6)
    without = FLOAT_W.at[0].set(-jnp.inf)  # an impossible sample
    np.testing.assert_allclose(bounds.renyi_bound(without, 0.5), renyi(np.float64(without), 0.5), rtol=1e-6)


def test_renyi_is_that_of_numpyro():
    p, x = {name: np.asarray(value) for name, value in PARAMS.items()}, X[0]

    def model():
        z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(z @ p["w"] + p["b"], np.exp(p["log_var"] / 2)).to_event(1), obs=x)

    def guide():
        mean = (x - p["b"]) @ p["gain"]
        numpyro.sample("z", dist.Normal(mean, np.exp(p["log_var_q"] / 2)).to_event(1))

    keys, other_keys = (jax.random.split(jax.random.key(seed), 4000) for seed in (3, 4))
    own = partial(bounds.negative_renyi, PARAMS, x=X[:1], vae=pca_vae(), order=0.4, num_samples=5)
    ours = jax.jit(jax.vmap(lambda key: own(key)[0]))(keys)
    with lenient():
        theirs = jax.jit(jax.vmap(lambda key: RenyiELBO(0.4, 5).loss(key, {}, model, guide)))(other_keys)
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    error = np.hypot(np.std(ours), np.std(theirs)) / np.sqrt(len(keys))
    assert abs(np.mean(ours) - np.mean(theirs)) < 5 * error < 0.1


# the thermodynamic bound


def test_the_thermodynamic_bound_is_its_riemann_sum():
    points, expected = [0.0, 0.1, 0.7], 0.0
    for start, end in ((0.0, 0.1), (0.1, 0.7), (0.7, 1.0)):
        expected += (end - start) * np.sum(softmax(start * SIGNIFICANT, 0) * SIGNIFICANT, 0)
    np.testing.assert_allclose(bounds.thermodynamic_bound(FLOAT_W, points), expected, rtol=1e-5)


def test_the_thermodynamic_bound_rises_from_the_elbo_to_the_importance_bound():
    values = [bounds.thermodynamic_bound(FLOAT_W, np.linspace(0, 1, n + 1)[:-1].tolist()) for n in (1, 2, 10, 1000)]
    np.testing.assert_allclose(values[0], SIGNIFICANT.mean(0), rtol=1e-6)
    limit = importance_bound(FLOAT_W)
    assert all(np.all(a < b) for a, b in zip(values, [*values[1:], limit], strict=True))
    np.testing.assert_allclose(values[-1], limit, atol=0.02)


def test_log_uniform_points():
    assert bounds.partition(num_points=1) == (0.0,)
    np.testing.assert_allclose(bounds.partition(5, 0.01), [0, *np.geomspace(0.01, 1, 5)[:-1]])
    assert bounds.partition(points=[0, 0.25]) == (0.0, 0.25)


@pytest.mark.parametrize(
    "options",
    (
        {},
        {"num_points": 3},
        {"num_points": 3, "smallest": 1.0},
        {"num_points": 1, "smallest": 0.1},
        {"num_points": 2, "points": [0, 0.5]},
        {"smallest": 0.1, "points": [0, 0.5]},
        {"num_points": 1001, "smallest": 0.1},
        {"points": [0.1, 0.5]},
        {"points": [0, 0.5, 0.5]},
        {"points": [0, 1]},
        {"points": ["a"]},
    ),
    ids=str,
)
def test_points_that_are_none_are_refused(options):
    with pytest.raises(ValueError):
        bounds.partition(**options)


AXIS = np.linspace(-9, 9, 121)
GRID = np.stack(np.meshgrid(AXIS, AXIS), -1).reshape(-1, 1, 2).astype(np.float32)


def exact_thermodynamic(params, points):
    """The average over X of the bound by integrals over a grid of z, which jax.grad differentiates."""
    z = jnp.asarray(np.broadcast_to(GRID, (len(GRID), len(X), 2)))
    log_q, log_w = pca_vae().encode(params, X).log_prob(z), weights_at(params, params, X, pca_vae(), z)[1]
    total = 0.0
    for start, end in zip(points, [*points[1:], 1.0], strict=True):
        total += (end - start) * jnp.mean(jnp.sum(jax.nn.softmax(log_q + start * log_w, 0) * log_w, 0))
    return total


@pytest.mark.parametrize("estimator", ("pathwise", "covariance"))
@pytest.mark.parametrize(("points", "num_samples"), (([0.0], 4), ([0.0, 0.3, 0.6], 1000)))
def test_gradients_of_the_thermodynamic_bound_are_those_of_integrals(estimator, points, num_samples):
    """That of the ELBO is right with any number of samples, the others with many."""
    value, expected = jax.jit(jax.value_and_grad(partial(exact_thermodynamic, points=points)))(PARAMS)
    options = {"points": points, "num_samples": num_samples, "estimator": estimator}

    def draw(key):
        loss = lambda p: bounds.negative_thermodynamic(p, key, X, pca_vae(), **options)[0]  # noqa: E731
        return jax.value_and_grad(loss)(PARAMS)

    num_draws = 80_000 // num_samples
    values, grads = jax.jit(lambda keys: jax.lax.map(draw, keys, batch_size=500))(
        jax.random.split(jax.random.key(5), num_draws)
    )
    assert_within_errors(values, -value, errors=6)
    for name, draws in grads.items():
        error = np.std(draws, axis=0) / np.sqrt(num_draws)
        distance = np.abs(np.mean(draws, axis=0) + expected[name])
        assert np.all(distance < 5 * error + 0.003 * (1 + np.abs(expected[name]))), (name, distance, error)


def test_the_covariance_estimator_needs_two_samples(key):
    call = partial(bounds.negative_thermodynamic, PARAMS, key, X, pca_vae(), num_points=1)
    with pytest.raises(ValueError, match="at least 2 samples; num_samples is 1"):
        call(num_samples=1, estimator="covariance")
    with pytest.raises(ValueError, match="no estimator 'score'"):
        call(num_samples=2, estimator="score")


def test_bounds_are_ordered_as_their_theory_says(key):
    """At the same weights: ELBO <= Renyi of order 1/2, MIWAE <= IWAE, and both are the average of the log weights."""
    log_w = jit(log_weights, pca_vae(), num_samples=12)(PARAMS, key, X)
    elbo, iwae = jnp.mean(log_w, 0), importance_bound(log_w)
    inside = (
        bounds.renyi_bound(log_w, 0.5),
        bounds.grouped_bound(log_w, 3),
        bounds.thermodynamic_bound(log_w, [0, 0.2]),
    )
    assert all(np.all((elbo < bound) & (bound < iwae)) for bound in inside)
