"""Penalties on q, against loops, integrals on a grid, closed forms and every minibatch that there is."""

from functools import partial
from itertools import combinations, permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_within_errors, jit, mlp_vae, pca_data, pca_params, pca_vae, standard_normal
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from vae_jax import penalties
from vae_jax.config import Config
from vae_jax.core import VAE, Examples
from vae_jax.distributions import DiagonalGaussian, distribution
from vae_jax.evaluate import make_evaluate_objective, make_mutual_information
from vae_jax.losses import make_evaluation_objective, make_objective, split_loss
from vae_jax.objectives import negative_elbo
from vae_jax.optimizers import make_schedules

PARAMS, X = pca_params(), pca_data()
RNG = np.random.default_rng(0)
MEAN, LOG_VAR, Z = (RNG.normal(size=(5, 2)).astype(np.float32) for _ in range(3))
LOG_WEIGHTS = RNG.normal(size=(5, 5)).astype(np.float32) - 2


def densities(z, mean=MEAN, log_var=LOG_VAR):
    """log q(z_d | x_j) in float64: [R, N, L]."""
    return norm(np.float64(mean), np.exp(np.float64(log_var) / 2)).logpdf(np.float64(z)[:, None])


# capacity


@pytest.mark.parametrize("num_samples", (1, 3))
def test_capacity_draws_the_kl_of_each_example_to_it(key, num_samples):
    options = {"num_samples": num_samples}
    _, plain = jit(negative_elbo, pca_vae(), **options)(PARAMS, jax.random.clone(key), X)
    loss, metrics = jit(penalties.negative_capacity, pca_vae(), gamma=3.0, capacity=1.5, **options)(PARAMS, key, X)
    mean, var = np.asarray((X - PARAMS["b"][None]) @ PARAMS["gain"]), np.exp(PARAMS["log_var_q"])
    kl = 0.5 * np.sum(var + mean**2 - 1 - np.log(var), -1)
    assert kl.min() < 1.5 < kl.max()
    np.testing.assert_allclose(loss, 3 * np.abs(kl - 1.5).mean() - plain["log_likelihood"], rtol=1e-5)
    assert jax.tree.map(float, metrics) == pytest.approx(jax.tree.map(float, plain))


def test_capacity_rises_in_training_and_is_whole_in_an_evaluation():
    options = {"gamma": 2.0, "capacity": 8.0, "capacity_warmup_steps": 4}
    config = Config(objective="capacity", objective_options=options)
    schedules = make_schedules(config)
    assert [float(schedules["capacity"](step)) for step in (0, 1, 4, 9)] == [0, 2, 8, 8]
    loss = make_evaluation_objective(config)(PARAMS, jax.random.key(0), X, pca_vae())[0]
    whole = penalties.negative_capacity(PARAMS, jax.random.key(0), X, pca_vae(), gamma=2.0, capacity=8.0)[0]
    assert loss == whole
    assert make_schedules(Config(objective="capacity", objective_options={"gamma": 2.0, "capacity": 8.0})) == {}


# the total correlation


def test_the_decomposition_is_that_of_loops_and_its_terms_are_the_kl():
    """Whatever the estimate of q(z), the terms add up to log q(z | x) - log p(z)."""
    log_q, log_p = RNG.normal(size=(2, 5)).astype(np.float32)
    parts = penalties.decompose(Z, log_q, log_p, MEAN, LOG_VAR, LOG_WEIGHTS)
    each = densities(Z)
    joint = logsumexp(each.sum(-1) + LOG_WEIGHTS, -1)
    product = logsumexp(each + LOG_WEIGHTS[..., None], 1).sum(-1)
    np.testing.assert_allclose(parts.mutual_information, log_q - joint, rtol=1e-5)
    np.testing.assert_allclose(parts.total_correlation, joint - product, rtol=1e-4)
    np.testing.assert_allclose(parts.dimension_wise_kl, product - log_p, rtol=1e-5)
    np.testing.assert_allclose(sum(parts), log_q - log_p, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stratified", (True, False))
@pytest.mark.parametrize("num_samples", (1, 2))
def test_the_terms_of_the_loss_add_up_to_the_kl(key, stratified, num_samples):
    options = {"num_examples": 9, "stratified": stratified, "num_samples": num_samples}
    call = partial(penalties.negative_total_correlation, x=X, vae=pca_vae(), **options)
    (loss, metrics), (weighted, _) = (
        jax.jit(partial(call, beta=beta))(PARAMS, jax.random.clone(key)) for beta in (1, 5)
    )
    sample_elbo = jit(negative_elbo, pca_vae(), kl="monte_carlo", num_samples=num_samples)
    expected, terms = sample_elbo(PARAMS, key, X)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for name, value in terms.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5)
    parts = sum(metrics[name] for name in penalties.Decomposition._fields)
    np.testing.assert_allclose(parts, terms["kl"], rtol=1e-4)
    np.testing.assert_allclose(weighted - loss, 4 * metrics["total_correlation"], rtol=1e-4)


def test_beta_1_has_the_gradient_of_the_elbo(key):
    own = jit(penalties.negative_total_correlation, pca_vae(), num_examples=9)
    elbo = jit(negative_elbo, pca_vae(), kl="monte_carlo")
    grads = [jax.grad(lambda p, f=f: f(p, jax.random.clone(key), X)[0])(PARAMS) for f in (own, elbo)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *grads)


def test_stratified_weights_are_right_on_average_over_every_minibatch_and_exact_on_all_examples():
    num, size = 5, 3
    density = np.exp(densities(Z).sum(-1))  # [i, j]
    weights = np.exp(penalties.stratified_log_weights(size, num))
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    for i in range(num):
        others = [j for j in range(num) if j != i]
        estimates = [weights[0] @ density[i, [i, *rest]] for rest in combinations(others, size - 1)]
        np.testing.assert_allclose(np.mean(estimates), density[i].mean(), rtol=1e-6)
        # They are the average of the weights of appendix C.2 over the orders of the others, for M = size - 1.
        m = size - 1
        theirs = np.array([1 / num, *[1 / m] * (m - 1), (num - m) / (num * m)])
        orders = [theirs @ density[i, [i, *rest]] for rest in permutations(others[:m])]
        np.testing.assert_allclose(np.mean(orders), weights[0] @ density[i, [i, *others[:m]]], rtol=1e-6)
    np.testing.assert_allclose(np.exp(penalties.stratified_log_weights(num, num)), 1 / num, rtol=1e-6)
    assert penalties.stratified_log_weights(1, 1).tolist() == [[0.0]]
    for size, num in ((1, 2), (3, 2)):
        with pytest.raises(ValueError, match=f"holds {size} of {num} examples"):
            penalties.stratified_log_weights(size, num)


def test_minibatch_weights_are_those_of_equation_3():
    np.testing.assert_allclose(np.exp(penalties.minibatch_log_weights(3, 50)), np.full((3, 3), 1 / 150), rtol=1e-6)


@pytest.fixture(scope="module")
def whole():
    """Parts of the loss of all examples as one batch, whose q(z) is exact: many draws."""
    call = partial(penalties.negative_total_correlation, x=X, vae=pca_vae(), num_examples=len(X))
    return jax.jit(jax.vmap(lambda key: call(PARAMS, key)[1]))(jax.random.split(jax.random.key(1), 4000))


def test_the_total_correlation_is_that_of_integrals(whole):
    q = jax.tree.map(np.float64, pca_vae().encode(PARAMS, X))
    axis = np.linspace(-8, 8, 401)
    grid, cell = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1), (axis[1] - axis[0])
    joint = np.mean([multivariate_normal(m, np.exp(v)).pdf(grid) for m, v in zip(q.mean, q.log_var, strict=True)], 0)
    first, second = joint.sum(1) * cell, joint.sum(0) * cell

    def integral(a, size):
        return np.sum(np.where(a[0] > 0, a[0] * np.log(a[0] / a[1]), 0)) * size

    assert_within_errors(whole["total_correlation"], integral((joint, np.outer(first, second)), cell**2))
    marginal = sum(integral((p, norm.pdf(axis)), cell) for p in (first, second))
    assert_within_errors(whole["dimension_wise_kl"], marginal)


def test_the_mutual_information_is_that_of_the_evaluation(whole):
    information = make_mutual_information(pca_vae())
    draws = [np.mean(information(PARAMS, jax.random.key(i), Examples(X, None))) for i in range(200)]
    own = np.asarray(whole["mutual_information"], np.float64)
    error = np.hypot(np.std(draws) / 200**0.5, np.std(own) / 4000**0.5)
    assert abs(np.mean(draws) - np.mean(own)) < 5 * error < 0.2


# MMD


def test_the_mmd_is_that_of_loops():
    z, p_z = Z, RNG.normal(size=(5, 2)).astype(np.float32)

    def kernel(a, b):
        return np.exp(-np.sum((np.float64(a) - b) ** 2) / (2 * 0.7 * 2))

    pairs = [(i, j) for i in range(5) for j in range(5)]
    expected = -2 * np.mean([kernel(z[i], p_z[j]) for i, j in pairs])
    expected += sum(np.mean([kernel(a[i], a[j]) for i, j in pairs if i != j]) for a in (z, p_z))
    np.testing.assert_allclose(penalties.mmd(z, p_z, 0.7), expected, rtol=1e-4)
    with pytest.raises(ValueError, match="expected at least 2"):
        penalties.mmd(z[:1], p_z[:1], 1.0)


def test_the_mmd_of_gaussians_is_its_closed_form(key):
    """The kernel's average over two Gaussians is a Gaussian density of the difference of their means."""
    bandwidth = 1.5
    scale = bandwidth * 2  # the kernel's variance
    q = jax.tree.map(np.float64, pca_vae().encode(PARAMS, X))

    def average(mean_a, var_a, mean_b, var_b):
        cov = scale * np.eye(2) + np.diag(var_a + var_b)
        return 2 * np.pi * scale * multivariate_normal(mean_a, cov).pdf(mean_b)

    own, pairs = (np.zeros(2), np.ones(2)), [(m, np.exp(v)) for m, v in zip(q.mean, q.log_var, strict=True)]
    expected = average(*own, *own) - 2 * np.mean([average(*a, *own) for a in pairs])
    expected += np.mean([average(*pairs[i], *pairs[j]) for i in range(6) for j in range(6) if i != j])
    call = partial(penalties.negative_mmd, x=X, vae=pca_vae(), weight=2.0, bandwidth=bandwidth, beta=0.0)
    losses, metrics = jax.jit(jax.vmap(lambda key: call(PARAMS, key)))(jax.random.split(key, 20_000))
    assert_within_errors(metrics["mmd"], expected)
    np.testing.assert_allclose(losses, 2 * metrics["mmd"] - metrics["log_likelihood"], rtol=1e-5)


# DIP


@pytest.mark.parametrize("kind", penalties.KINDS)
def test_dip_is_its_equation(key, kind):
    cov = np.cov(np.float64(MEAN).T, bias=True) + (np.diag(np.exp(np.float64(LOG_VAR)).mean(0)) if kind == "ii" else 0)
    expected = 3 * 2 * cov[0, 1] ** 2 + 5 * np.sum((np.diag(cov) - 1) ** 2)
    np.testing.assert_allclose(penalties.dip(MEAN, LOG_VAR, 3.0, 5.0, kind), expected, rtol=1e-5)
    call = jit(penalties.negative_dip, pca_vae(), off_diagonal=3.0, diagonal=5.0, kind=kind)
    loss, metrics = call(PARAMS, jax.random.clone(key), X)
    plain, _ = jit(negative_elbo, pca_vae())(PARAMS, key, X)
    np.testing.assert_allclose(loss, plain + metrics["dip"], rtol=1e-5)
    with pytest.raises(ValueError, match="no kind 'iii'"):
        penalties.dip(MEAN, LOG_VAR, 1.0, 1.0, "iii")


@pytest.mark.parametrize("call", (penalties.negative_total_correlation, penalties.negative_dip))
def test_another_posterior_is_refused(call, key):
    options = (
        {"num_examples": 6} if call is penalties.negative_total_correlation else {"off_diagonal": 1, "diagonal": 1}
    )
    with pytest.raises(ValueError, match="FullGaussian"):
        call(PARAMS, key, X, pca_vae(exact=True), **options)


# the loss of a split


@distribution
class Fixed(DiagonalGaussian):
    """A diagonal Gaussian whose every sample lies half a standard deviation above its mean."""

    def sample(self, key, sample_shape=()):
        point = self.mean + 0.5 * jnp.exp(self.log_var / 2)
        return jnp.broadcast_to(point, sample_shape + point.shape)


AGGREGATE = {
    "total_correlation": {},
    "mmd": {"weight": 3.0, "bandwidth": 2.0},
    "dip": {"off_diagonal": 2.0, "diagonal": 3.0},
    "dip i": {"off_diagonal": 2.0, "diagonal": 3.0, "kind": "i"},
}


@pytest.mark.parametrize("num_samples", (1, 3))
@pytest.mark.parametrize("case", AGGREGATE)
def test_the_loss_of_a_split_is_the_training_loss_of_it_as_one_batch(case, num_samples):
    vae, x = mlp_vae((4,), latent_dim=3), jax.random.uniform(jax.random.key(1), (5, 4))
    params = jax.jit(vae.init)(jax.random.key(2), x)
    fixed = lambda d: Fixed(d.mean, d.log_var)  # noqa: E731
    still = VAE(vae.init, lambda p, x: fixed(vae.encode(p, x)), vae.decode, lambda p: fixed(standard_normal(3)))
    config = Config(objective=case.split()[0], objective_options=AGGREGATE[case], beta=2.0, num_samples=num_samples)
    values, _ = make_evaluate_objective(still, make_evaluation_objective(config))(
        params, jax.random.key(3), Examples(x, None)
    )
    loss, metrics = jit(make_objective(config, num_examples=5), still)(params, jax.random.key(4), x)
    expected = {"loss": float(loss), **{name: float(value) for name, value in metrics.items()}}
    assert split_loss(config, values) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert abs(expected["loss"] - 2 * expected["kl"] + expected["log_likelihood"]) > 1e-3  # more than the ELBO's terms
