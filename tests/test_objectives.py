"""The bounds against a linear-Gaussian model in closed form, a non-linear one by quadrature, and plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    assert_within_errors,
    jit,
    mlp_vae,
    pca_data,
    pca_elbo,
    pca_log_px,
    pca_params,
    pca_vae,
    standard_normal,
)
from scipy.special import logsumexp

from vae_jax.build import make_evaluation_objective, make_objective, split_loss
from vae_jax.config import Config
from vae_jax.core import VAE, Examples, condition
from vae_jax.distributions import Bernoulli, DiagonalGaussian, FullGaussian, kl_divergence, kl_monte_carlo
from vae_jax.errors import UserError
from vae_jax.evaluate import make_evaluate_objective
from vae_jax.objectives import (
    elbo,
    importance_bound,
    log_weights,
    negative_elbo,
    negative_iwae,
)

PARAMS, X = pca_params(), pca_data()


@pytest.fixture(scope="module")
def mlp():
    """A small VAE of images, its parameters and a batch."""
    vae, x = mlp_vae((2, 3, 1), latent_dim=3), jax.random.uniform(jax.random.key(1), (5, 2, 3, 1))
    return vae, jax.jit(vae.init)(jax.random.key(2), x), x


# the linear-Gaussian model


@pytest.mark.parametrize("kl", ("auto", "analytic", "monte_carlo", kl_divergence, kl_monte_carlo))
def test_elbo_is_the_closed_form_of_a_linear_gaussian_model(key, kl):
    one = lambda key: elbo(PARAMS, key, X, pca_vae(), kl=kl)  # noqa: E731
    draws = jax.jit(jax.vmap(one))(jax.random.split(key, 20_000))
    log_likelihood, divergence = pca_elbo(PARAMS, X)
    assert_within_errors(draws.log_likelihood, log_likelihood)
    assert_within_errors(draws.kl, divergence)
    assert_within_errors(draws.log_likelihood - draws.kl, log_likelihood - divergence)


def test_elbo_at_the_exact_posterior_is_log_px_whatever_the_sample(key):
    bound = jit(elbo, pca_vae(exact=True), kl=kl_monte_carlo)(PARAMS, key, X)
    np.testing.assert_allclose(bound.log_likelihood - bound.kl, pca_log_px(PARAMS, X), rtol=1e-4)


def test_elbo_is_below_log_px():
    assert np.all(np.subtract(*pca_elbo(PARAMS, X)) < pca_log_px(PARAMS, X) - 0.01)


def test_importance_bound_of_many_samples_is_log_px(key):
    log_w = jit(log_weights, pca_vae(), num_samples=50_000)(PARAMS, key, X)
    assert log_w.shape == (50_000, len(X))
    np.testing.assert_allclose(importance_bound(log_w), pca_log_px(PARAMS, X), atol=1e-2)


def test_log_weights_at_the_exact_posterior_are_log_px(key):
    log_w = jit(log_weights, pca_vae(exact=True), num_samples=3)(PARAMS, key, X)
    np.testing.assert_allclose(log_w, np.broadcast_to(pca_log_px(PARAMS, X), (3, len(X))), rtol=1e-4)


def test_mean_of_the_log_weights_is_the_elbo(key):
    log_w = jit(log_weights, pca_vae(), num_samples=20_000)(PARAMS, key, X)
    assert_within_errors(log_w, np.subtract(*pca_elbo(PARAMS, X)))


def test_importance_bound_is_exact_where_weights_would_overflow():
    log_w = np.random.default_rng(0).normal(size=(7, 3)) + np.array([-1e4, 0.0, 1e4])
    expected = logsumexp(log_w, 0) - np.log(7)
    np.testing.assert_allclose(importance_bound(jnp.asarray(log_w, jnp.float32)), expected, rtol=1e-6)


# a model of one non-linear latent, by quadrature

WEIGHTS = np.array([3.0, -2.0, 1.5, 4.0])


def curved_vae():
    """p(x | z) = Bernoulli(sigmoid(3 sin(w z))) and a poor q(z | x)."""

    def encode(params, x):
        mean = 0.5 * jnp.sum(x, -1, keepdims=True) - 1
        return DiagonalGaussian(mean, jnp.full_like(mean, 0.5))

    def decode(params, z):
        return Bernoulli(3 * jnp.sin(z @ jnp.asarray(WEIGHTS[None], jnp.float32)))

    return VAE(lambda key, x: {}, encode, decode, lambda params: standard_normal(1))


def integrate(log_f):
    """log of the integral of exp(log_f(z)), and z itself, on a fine grid of the line."""
    z = np.linspace(-12, 12, 48_001)
    return logsumexp(log_f(z), -1) + np.log(z[1] - z[0])


def test_bounds_rise_with_their_samples_to_log_px_by_quadrature(key):
    x = np.array([[1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1]], np.float32)
    mean_q, log_var_q = 0.5 * x.sum(-1, keepdims=True) - 1, 0.5

    def log_normal(z, mean, log_var):
        return -0.5 * (np.log(2 * np.pi) + log_var + (z - mean) ** 2 / np.exp(log_var))

    def log_joint(z):
        logits = 3 * np.sin(WEIGHTS[:, None] * z)
        return x.astype(np.float64) @ logits - np.logaddexp(0, logits).sum(0) + log_normal(z, 0.0, 0.0)

    log_px = integrate(log_joint)
    z = np.linspace(-12, 12, 48_001)
    q = np.exp(log_normal(z, mean_q, log_var_q))
    exact_elbo = np.sum(q * (log_joint(z) - log_normal(z, mean_q, log_var_q)), -1) * (z[1] - z[0])

    log_w = jit(log_weights, curved_vae(), num_samples=102_400)({}, key, x)
    bounds = {
        k: np.asarray(jax.jit(jax.vmap(importance_bound))(log_w.reshape(-1, k, len(x))), np.float64)
        for k in (1, 4, 16, 64)
    }
    assert_within_errors(bounds[1], exact_elbo)
    errors = {k: np.std(b, axis=0) / np.sqrt(len(b)) for k, b in bounds.items()}
    means = {k: np.mean(b, axis=0) for k, b in bounds.items()}
    for few, many in ((1, 4), (4, 16), (16, 64)):
        assert np.all(means[many] - means[few] > 3 * np.hypot(errors[few], errors[many]))
    assert np.all(means[64] < log_px + 3 * errors[64])
    np.testing.assert_allclose(importance_bound(log_w), log_px, atol=2e-2)


# sums and signs


def test_elbo_sums_over_pixels_and_over_latents(mlp, key):
    """With a posterior of no width, plain loops give both terms."""
    vae, params, x = mlp
    narrow = lambda params, x: DiagonalGaussian(vae.encode(params, x).mean, jnp.full((5, 3), -50.0))  # noqa: E731
    mean, logits = vae.encode(params, x).mean, vae.decode(params, vae.encode(params, x).mean).logits
    terms = jit(elbo, vae._replace(encode=narrow))(params, key, x)
    for b in range(5):
        log_likelihood = kl = 0.0
        for row in range(2):
            for column in range(3):
                p = 1 / (1 + np.exp(-float(logits[b, row, column, 0])))
                pixel = float(x[b, row, column, 0])
                log_likelihood += pixel * np.log(p) + (1 - pixel) * np.log(1 - p)
        for latent in range(3):
            kl += 0.5 * (np.exp(-50) + float(mean[b, latent]) ** 2 - 1 + 50)
        np.testing.assert_allclose(terms.log_likelihood[b], log_likelihood, rtol=1e-5)
        np.testing.assert_allclose(terms.kl[b], kl, rtol=1e-5)


def test_terms_are_one_number_an_example_whatever_the_number_of_samples(mlp, key):
    vae, params, x = mlp
    for num_samples in (1, 4):
        terms = jit(elbo, vae, num_samples=num_samples)(params, jax.random.clone(key), x)
        assert terms.log_likelihood.shape == terms.kl.shape == (5,)


def test_the_loss_is_the_negative_of_the_bound(mlp, key):
    vae, params, x = mlp
    loss, metrics = jit(negative_elbo, vae)(params, jax.random.clone(key), x)
    terms = jit(elbo, vae)(params, key, x)
    np.testing.assert_allclose(loss, -np.mean(terms.log_likelihood - terms.kl), rtol=1e-6)
    np.testing.assert_allclose(loss, -metrics["elbo"], rtol=1e-6)
    assert metrics["kl"] > 0 > metrics["log_likelihood"]


def test_the_weights_change_the_loss_and_not_the_metrics(mlp, key):
    vae, params, x = mlp
    _, plain = jit(negative_elbo, vae)(params, jax.random.clone(key), x)
    loss, metrics = jit(negative_elbo, vae, alpha=0.5, beta=4.0)(params, key, x)
    np.testing.assert_allclose(loss, 4 * plain["kl"] - 0.5 * plain["log_likelihood"], rtol=1e-6)
    assert jax.tree.map(float, metrics) == pytest.approx(jax.tree.map(float, plain))


def test_more_samples_have_the_same_mean_and_a_smaller_variance(key):
    draws = {
        num: jax.jit(jax.vmap(lambda k, num=num: elbo(PARAMS, k, X, pca_vae(), num_samples=num).log_likelihood))(
            jax.random.split(jax.random.fold_in(key, num), 4_000)
        )
        for num in (1, 10)
    }
    assert_within_errors(draws[10], pca_elbo(PARAMS, X)[0])
    np.testing.assert_allclose(np.var(draws[1], axis=0) / np.var(draws[10], axis=0), 10, rtol=0.25)


@pytest.mark.parametrize("function", (elbo, negative_elbo, log_weights))
@pytest.mark.parametrize("num_samples", (0, -1))
def test_no_samples_is_an_error(mlp, key, function, num_samples):
    vae, params, x = mlp
    with pytest.raises(ValueError, match=rf"num_samples is {num_samples}; expected at least 1\."):
        function(params, key, x, vae, num_samples=num_samples)


# transformations


def test_gradients_are_those_of_finite_differences(mlp, key):
    vae, params, x = mlp
    objective = jax.jit(lambda params: negative_elbo(params, jax.random.clone(key), x, vae))
    (_, metrics), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    assert set(metrics) == {"elbo", "log_likelihood", "kl"}
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(grads))
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
    step = 1e-2 / norm
    ahead, behind = (
        objective(jax.tree.map(lambda p, g, s=s: p + s * step * np.asarray(g), params, grads))[0] for s in (1, -1)
    )
    np.testing.assert_allclose((ahead - behind) / (2 * step), norm**2, rtol=1e-3)


def test_value_and_grad_takes_the_objective_as_it_is(mlp, key):
    vae, params, x = mlp
    (_, metrics), grads = jax.value_and_grad(negative_elbo, has_aux=True)(params, key, x, vae)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert np.isfinite(metrics["elbo"])


def test_a_vae_is_a_static_argument_of_a_jitted_function(mlp, key):
    vae, params, x = mlp
    loss = jax.jit(negative_elbo)
    losses = [loss(params, jax.random.clone(key), x, v)[0] for v in (vae, vae._replace())]
    assert losses[0] == losses[1] and loss._cache_size() == 1
    np.testing.assert_allclose(losses[0], negative_elbo(params, key, x, vae)[0], rtol=1e-6)


def test_beta_and_alpha_are_traced(mlp, key):
    vae, params, x = mlp
    traces = []

    @jax.jit
    def loss(key, alpha, beta):
        traces.append(beta)
        return negative_elbo(params, key, x, vae, alpha=alpha, beta=beta)[0]

    weights = ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (2.0, 3.0))
    losses = [loss(jax.random.clone(key), alpha, beta) for alpha, beta in weights]
    assert len(traces) == 1
    np.testing.assert_allclose(losses[2], losses[0] + losses[1], rtol=1e-5)
    np.testing.assert_allclose(losses[3], 2 * losses[0] + 3 * losses[1], rtol=1e-5)


def test_beta_may_be_mapped(mlp, key):
    vae, params, x = mlp
    loss = lambda beta: negative_elbo(params, jax.random.clone(key), x, vae, beta=beta)  # noqa: E731
    betas = jnp.array([0.0, 1.0, 4.0])
    losses, metrics = jax.jit(jax.vmap(loss))(betas)
    np.testing.assert_allclose(losses, betas * metrics["kl"] - metrics["log_likelihood"], rtol=1e-6)
    assert len(set(metrics["kl"].tolist())) == 1


# labels and configs


def test_a_context_changes_the_bound_and_the_objective_knows_nothing_of_it(key):
    vae, x = mlp_vae((4,), context_size=3), jnp.ones((5, 4))
    params = jax.jit(vae.init)(jax.random.key(1), x)
    loss = jax.jit(lambda key, context: negative_elbo(params, key, x, condition(vae, context))[0])
    losses = [loss(jax.random.clone(key), jnp.broadcast_to(label, (5, 3))) for label in jnp.eye(3)]
    assert len(set(map(float, losses))) == 3
    assert condition(vae, None) is vae


def test_the_objective_of_a_config_has_its_settings(mlp, key):
    vae, params, x = mlp
    settings = {"alpha": 0.5, "beta": 2.0, "num_samples": 3}
    for config, expected in (
        (Config(), jit(negative_elbo, vae)),
        (Config(**settings), jit(negative_elbo, vae, **settings)),
        (Config(kl="monte_carlo"), jit(negative_elbo, vae, kl=kl_monte_carlo)),
    ):
        loss, _ = jit(make_objective(config), vae)(params, jax.random.clone(key), x)
        assert loss == expected(params, jax.random.clone(key), x)[0]


# gradient estimators


def gradients(objective, vae, params, num_draws, **options):
    """Gradients at many keys: [num_draws, parameters]."""
    gradient = lambda key: jax.grad(lambda p: objective(p, key, X, vae, **options)[0])(params)  # noqa: E731
    leaves = jax.tree.leaves(jax.jit(jax.vmap(gradient))(jax.random.split(jax.random.key(1), num_draws)))
    return np.concatenate([np.asarray(leaf, np.float64).reshape(num_draws, -1) for leaf in leaves], 1)


def assert_equal_means(a, b, errors=5):
    error = np.sqrt(a.var(0, ddof=1) / len(a) + b.var(0, ddof=1) / len(b))
    assert np.all(np.abs(a.mean(0) - b.mean(0)) <= errors * error + 1e-5)


def test_sticking_the_landing_has_the_gradient_of_the_elbo_in_expectation():
    pathwise = gradients(negative_elbo, pca_vae(), PARAMS, 20_000)
    assert_equal_means(
        gradients(negative_elbo, pca_vae(), PARAMS, 20_000, kl=kl_monte_carlo, estimator="stl"), pathwise
    )


def test_sticking_the_landing_has_no_variance_where_q_is_the_posterior():
    """With q exact for the current W, moving z alone changes nothing: what is left is rounding."""
    vae, fixed = pca_vae(exact=True), PARAMS

    def encode(params, x):  # the exact posterior of `fixed`, with parameters of its own
        q = vae.encode(fixed, x)
        return FullGaussian(q.mean + params["shift"][None], q.scale_tril * jnp.exp(params["log_scale"]))

    own = vae._replace(encode=encode, decode=lambda p, z: vae.decode(fixed, z), prior=lambda p: vae.prior(fixed))
    zero = {"shift": jnp.zeros(2), "log_scale": jnp.zeros(())}
    stl = gradients(negative_elbo, own, zero, 200, kl=kl_monte_carlo, estimator="stl")
    pathwise = gradients(negative_elbo, own, zero, 200, kl=kl_monte_carlo)
    assert np.abs(stl).max() < 1e-4 < pathwise.std(0).min()


@pytest.mark.parametrize("num_samples", (1, 5))
def test_dreg_has_the_gradient_of_the_bound_in_expectation_and_less_variance_in_q(num_samples):
    pathwise = gradients(negative_iwae, pca_vae(), PARAMS, 20_000, num_samples=num_samples)
    dreg = gradients(negative_iwae, pca_vae(), PARAMS, 20_000, num_samples=num_samples, estimator="dreg")
    assert_equal_means(dreg, pathwise)
    assert dreg.var(0).sum() < pathwise.var(0).sum()


def test_iwae_is_the_importance_bound_and_so_is_its_gradient(key):
    def bound(params):
        return -jnp.mean(importance_bound(log_weights(params, jax.random.clone(key), X, pca_vae(), num_samples=4)))

    value, expected = jax.value_and_grad(bound)(PARAMS)
    for estimator in ("pathwise", "dreg"):
        loss = lambda p, e=estimator: negative_iwae(p, jax.random.clone(key), X, pca_vae(), num_samples=4, estimator=e)  # noqa: E731
        (own, metrics), grads = jax.value_and_grad(loss, has_aux=True)(PARAMS)
        np.testing.assert_allclose(own, value, rtol=1e-6)
        np.testing.assert_allclose(metrics["log_likelihood"] - metrics["kl"], metrics["elbo"], rtol=1e-5)
        if estimator == "pathwise":
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, expected)


def test_a_kl_is_a_name_or_a_function(mlp, key):
    vae, params, x = mlp
    twice = lambda q, p, z: 2 * kl_monte_carlo(q, p, z)  # noqa: E731
    own, estimated = (elbo(params, jax.random.clone(key), x, vae, kl=kl) for kl in (twice, "monte_carlo"))
    np.testing.assert_allclose(own.kl, 2 * estimated.kl, rtol=1e-6)
    elbo(params, jax.random.clone(key), x, vae, kl=twice, estimator="stl")
    with pytest.raises(ValueError, match=r"Unknown kl 'exact'\. Choose one of: auto, analytic, monte_carlo"):
        elbo(params, key, x, vae, kl="exact")
    for kl in ("auto", "analytic", kl_divergence):
        with pytest.raises(ValueError, match="'stl' needs kl='monte_carlo'"):
            elbo(params, key, x, vae, kl=kl, estimator="stl")
    for kl in ("monte_carlo", kl_monte_carlo, twice):
        with pytest.raises(ValueError, match="free_bits needs the closed-form KL"):
            negative_elbo(params, jax.random.clone(key), x, vae, kl=kl, free_bits=0.1)


# the loss of a split


@pytest.mark.parametrize("free_bits", (0.0, 0.1))
def test_the_loss_of_a_split_is_the_training_loss_of_it_as_one_batch(mlp, free_bits):
    """With a posterior of no width no noise is left, so that batches of one and one batch have the same terms."""
    vae, params, x = mlp
    sharp = vae._replace(encode=lambda p, x: DiagonalGaussian(vae.encode(p, x).mean, jnp.full((len(x), 3), -0.01)))
    sharp = sharp._replace(decode=lambda p, z: vae.decode(p, 0 * z))
    config = Config(free_bits=free_bits, beta=2.0, alpha=0.5)
    terms, mean = make_evaluate_objective(sharp, make_evaluation_objective(config))(
        params, jax.random.key(3), Examples(x, None)
    )
    loss, metrics = make_objective(config)(params, jax.random.key(4), x, sharp)
    got = split_loss(config, terms)
    assert got == pytest.approx({"loss": float(loss), **{k: float(v) for k, v in metrics.items()}}, rel=1e-5)
    each = 0.5 * (np.exp(-0.01) + mean**2 - 1 + 0.01)
    expected = 2 * np.maximum(each.mean(0), free_bits).sum() - 0.5 * float(metrics["log_likelihood"])
    assert got["loss"] == pytest.approx(expected, rel=1e-5)
    if free_bits:  # the loss of batches of one is another function, and larger
        alone = 2 * np.maximum(each, free_bits).sum(1).mean() - 0.5 * float(metrics["log_likelihood"])
        assert alone > got["loss"] + 0.01


def test_the_loss_of_a_split_is_exact_and_infinite_examples_make_no_warning():
    values = np.full(10_000_001, 0.1, np.float32)
    assert split_loss(Config(), {"loss": values})["loss"] == pytest.approx(float(np.float32(0.1)), rel=1e-12)
    assert np.isnan(split_loss(Config(), {"loss": np.float32([np.inf, -np.inf])})["loss"])


def test_an_evaluation_computes_no_gradient():
    """The evaluation of DReG is as cheap as that of the pathwise estimator, and has the same value."""

    def flops(objective):
        lowered = jax.jit(lambda p, k: objective(p, k, X, pca_vae())).lower(PARAMS, jax.random.key(0))
        return lowered.cost_analysis()["flops"]

    dreg, pathwise = (Config(objective="iwae", num_samples=4, estimator=e) for e in ("dreg", "pathwise"))
    assert flops(make_objective(dreg)) > 1.2 * flops(make_objective(pathwise))
    assert flops(make_evaluation_objective(dreg)) == flops(make_objective(pathwise))
    values = [
        f(PARAMS, jax.random.key(0), X, pca_vae())[0] for f in (make_objective(dreg), make_evaluation_objective(dreg))
    ]
    np.testing.assert_allclose(*values, rtol=1e-6)


def test_free_bits_cost_each_dimension_at_least_so_much(key, mlp):
    vae, params, x = mlp
    q = vae.encode(params, x)
    each = 0.5 * (np.exp(q.log_var) + q.mean**2 - 1 - q.log_var).mean(0)
    loss, metrics = negative_elbo(params, key, x, vae)
    floor, same = negative_elbo(params, jax.random.clone(key), x, vae, free_bits=float(np.median(each)))
    np.testing.assert_allclose(floor - loss, np.maximum(each, np.median(each)).sum() - each.sum(), rtol=1e-4)
    assert same == metrics


@pytest.mark.parametrize(
    "fields",
    (
        {"objective": "iwae", "beta": 2},
        {"objective": "iwae", "alpha": 0.5},
        {"objective": "iwae", "free_bits": 0.1},
        {"objective": "iwae", "beta_warmup_steps": 5},
        {"objective": "iwae", "kl": "monte_carlo"},
        {"objective": "iwae", "estimator": "stl"},
        {"estimator": "dreg"},
        {"estimator": "stl"},
        {"kl": "monte_carlo", "free_bits": 0.1},
        {"kl": "analytic", "prior": "real_nvp"},
        {"kl": "analytic", "posterior": "flow"},
        {"kl": "analytic", "hierarchy": "hvae"},
        {"objective": "iwae", "kl": "analytic"},
    ),
    ids=str,
)
def test_a_contradiction_is_refused(fields):
    with pytest.raises(UserError):
        make_objective(Config(**fields))


@pytest.mark.parametrize("call", (negative_elbo, negative_iwae))
def test_an_unknown_estimator_is_refused(call, key):
    with pytest.raises(ValueError, match="estimator 'score'"):
        call(PARAMS, key, X, pca_vae(), num_samples=1, estimator="score")
