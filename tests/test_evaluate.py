"""Figures of every example, exactly once, that no batching changes."""

from functools import partial
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mostly_slow
from helpers import assert_within_errors, jit, mlp_vae, pca_data, pca_elbo, pca_log_px, pca_params, pca_vae
from scipy.special import logsumexp
from scipy.stats import genpareto, multivariate_normal

from vae_jax import build
from vae_jax.config import Config
from vae_jax.core import Examples, condition
from vae_jax.data.inputs import DataInfo
from vae_jax.distributions import Delta, DiagonalGaussian, FullGaussian, kl_monte_carlo
from vae_jax.evaluate import (
    Evaluation,
    active_units,
    make_annealed,
    make_evaluate,
    make_evaluate_objective,
    make_mutual_information,
    pareto_k,
    summarize,
    tail_size,
)
from vae_jax.objectives import negative_elbo
from vae_jax.xla.products import DTYPES

NUM_EXAMPLES, NUM_SAMPLES = 7, 5
SHAPE, LATENTS = (2, 2, 1), 3


class Model(NamedTuple):
    vae: object
    params: object
    examples: Examples


@pytest.fixture(scope="module")
def model():
    """A conditional VAE of images and a few examples."""
    vae = mlp_vae(SHAPE, LATENTS, context_size=2)
    x = jax.random.uniform(jax.random.key(1), (NUM_EXAMPLES, *SHAPE))
    context = jnp.eye(2)[jnp.arange(NUM_EXAMPLES) % 2]
    params = jax.jit(vae.init)(jax.random.key(2), x)
    return Model(vae, jax.tree.map(lambda a: 3 * a, params), Examples(x, context))


@pytest.fixture(scope="module")
def reference(model):
    """Every figure by a Python loop over examples, by the keys promised: one of the index, and of it one a sample."""

    @jax.jit
    def one(index, k):
        x, context = jax.tree.map(lambda a: a[index][None], model.examples)
        vae = condition(model.vae, context)
        q = vae.encode(model.params, x)
        z = q.sample(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), index), k))
        log_likelihood = vae.decode(model.params, z).log_prob(x)[0]
        kl = 0.5 * jnp.sum(jnp.exp(q.log_var) + q.mean**2 - 1 - q.log_var)
        log_weight = log_likelihood + vae.prior(model.params).log_prob(z)[0] - q.log_prob(z)[0]
        each = 0.5 * (jnp.exp(q.log_var) + q.mean**2 - 1 - q.log_var)[0]
        return log_likelihood, kl, log_weight, q.mean[0], each

    figures = [[one(i, k) for k in range(NUM_SAMPLES)] for i in range(NUM_EXAMPLES)]
    log_likelihood, kl, log_weight = (
        np.array([[float(sample[j]) for sample in example] for example in figures]) for j in range(3)
    )
    log_px = logsumexp(log_weight, 1) - np.log(NUM_SAMPLES)
    w = np.exp(log_weight)
    mean, each = (np.array([example[0][j] for example in figures]) for j in (3, 4))
    return Evaluation(log_likelihood.mean(1), kl.mean(1), log_px, w.sum(1) ** 2 / (w**2).sum(1), mean, each)


def assert_close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), a, b)


@pytest.mark.parametrize(
    "batch_size, chunk_size",
    mostly_slow(
        [(100, 100), (7, 5), (3, 2), (1, 1), (4, 3), (6, 4), (2, 5)],
        lambda sizes: sizes in ((100, 100), (7, 5), (1, 1)),
    ),
    ids=str,
)
def test_figures_are_those_of_a_loop_whatever_the_batches(model, reference, key, batch_size, chunk_size):
    """A ragged last batch, and samples that no chunk divides, count exactly."""
    evaluate = make_evaluate(model.vae, num_samples=NUM_SAMPLES, batch_size=batch_size, chunk_size=chunk_size)
    assert_close(evaluate(model.params, key, model.examples), reference)


@pytest.mark.parametrize(
    "network, compute_dtype",
    mostly_slow(product(("mlp", "convolutional"), DTYPES), lambda case: case == ("convolutional", "bfloat16")),
)
def test_the_faster_options_change_no_figure(key, network, compute_dtype):
    options = {"channels": [4]} if network == "convolutional" else {}
    config = Config(
        network=network, network_options=options, hidden_sizes=(8,), latent_dim=2, compute_dtype=compute_dtype
    )
    data = DataInfo((5, 4, 1), (), (0.0, 1.0), 200, 0, 0, "", None)
    vae = build.make_vae(config, data)
    examples = Examples(jax.random.bernoulli(key, 0.4, (40, 5, 4, 1)).astype(jnp.float32), None)
    params = vae.init(jax.random.key(1), examples.x)
    plain, faster = (
        make_evaluate(vae, num_samples=6, **options)(params, jax.random.key(2), examples)
        for options in ({}, build.evaluation_options(config))
    )
    assert_close(plain, faster)


def test_one_sample_gives_the_elbo_of_that_sample(model, key):
    evaluate = make_evaluate(model.vae, num_samples=1, kl=kl_monte_carlo)
    figures = evaluate(model.params, key, model.examples)
    np.testing.assert_allclose(figures.log_px, figures.log_likelihood - figures.kl, rtol=1e-5)


def test_shapes_and_progress(model, key):
    seen = []

    def progress(starts):
        for start in starts:
            seen.append(start)
            yield start

    evaluate = make_evaluate(model.vae, num_samples=2, batch_size=3)
    figures = evaluate(model.params, key, model.examples, progress)
    assert seen == [0, 3, 6]
    *present, pareto_k, by_level = figures
    assert by_level == {}
    assert [a.shape for a in present] == [(NUM_EXAMPLES,)] * 4 + [(NUM_EXAMPLES, LATENTS)] * 2
    assert all(isinstance(a, np.ndarray) for a in present) and pareto_k is None  # of two samples there is no tail


def test_every_batch_is_one_compilation(model, key):
    traces = []
    encode = lambda *args: traces.append(0) or model.vae.encode(*args)  # noqa: E731
    evaluate = make_evaluate(model.vae._replace(encode=encode), num_samples=2, batch_size=3)
    evaluate(model.params, jax.random.clone(key), model.examples)
    first = len(traces)
    evaluate(jax.tree.map(lambda a: a + 1, model.params), key, model.examples)
    assert len(traces) == first


# the linear-Gaussian model


def test_nll_at_the_exact_posterior_is_the_closed_form(key):
    x = pca_data(11)
    evaluate = make_evaluate(pca_vae(exact=True), num_samples=3, batch_size=4)
    figures = evaluate(pca_params(), key, Examples(jnp.asarray(x), None))
    np.testing.assert_allclose(figures.log_px, pca_log_px(pca_params(), x), rtol=1e-4)


def test_figures_of_many_samples_are_the_closed_forms(key):
    x, params = pca_data(11), pca_params()
    figures = make_evaluate(pca_vae(), num_samples=20_000, chunk_size=500)(params, key, Examples(jnp.asarray(x), None))
    log_likelihood, kl = pca_elbo(params, x)
    np.testing.assert_allclose(figures.log_px, pca_log_px(params, x), atol=2e-2)
    np.testing.assert_allclose(figures.log_likelihood, log_likelihood, atol=0.1)
    np.testing.assert_allclose(figures.kl, kl, rtol=1e-4)
    assert_within_errors(figures.log_likelihood - log_likelihood, 0)


def test_kl_may_be_estimated(key):
    x, params = pca_data(400), pca_params()
    evaluate = make_evaluate(pca_vae(), num_samples=20, kl=kl_monte_carlo)
    assert_within_errors(evaluate(params, key, Examples(jnp.asarray(x), None)).kl - pca_elbo(params, x)[1], 0)


def test_the_standard_error_of_the_weights_is_the_spread_over_seeds():
    """Of the same examples, with other draws."""
    x, params = pca_data(20), pca_params()
    evaluate = make_evaluate(pca_vae(), num_samples=50)
    runs = [summarize(evaluate(params, jax.random.key(i), Examples(jnp.asarray(x), None)), 50) for i in range(100)]
    spread = np.std([run["nll"] for run in runs], ddof=1)
    assert np.mean([run["nll_weights_se"] for run in runs]) == pytest.approx(spread, rel=0.25)


# the tail of the importance weights


def test_pareto_k_is_arvizs():
    """The figures of arviz.psislw (0.19) for these log-weights."""
    log_w = np.random.default_rng(0).normal(size=(500, 4)) * np.array([0.5, 1, 3, 10])
    got = pareto_k(jnp.asarray(log_w, jnp.float32), tail_size(500))
    np.testing.assert_allclose(got, [0.00772197, 0.07325969, 0.98342331, 4.40490899], atol=1e-3)


@pytest.mark.parametrize("k", (0.1, 0.5, 0.9, 1.5))
def test_pareto_k_is_the_shape_of_generalised_pareto_weights(k):
    w = genpareto(k).rvs(size=(100_000, 8), random_state=np.random.default_rng(0))
    got = pareto_k(jnp.asarray(np.log(w), jnp.float32), tail_size(100_000))
    assert np.mean(got) == pytest.approx(k, abs=0.08)


def test_pareto_k_of_weights_without_a_tail():
    assert [tail_size(num) for num in (1, 20, 24, 25, 500, 5000)] == [0, 0, 5, 5, 68, 213]
    assert pareto_k(jnp.zeros((100, 1)), tail_size(100)) == 0
    one_heavy = jnp.concatenate([jnp.zeros((1, 1)), jnp.full((99, 1), -200.0)])
    assert pareto_k(one_heavy, tail_size(100)) == np.inf


def test_a_posterior_that_is_too_narrow_shows_in_the_tail_and_not_in_the_standard_error(key):
    """Its NLL is nats too high, with a standard error over the draws that says nothing of it."""
    x, params, vae = pca_data(60), pca_params(), pca_vae(exact=True)

    def narrow(params, x):
        q = vae.encode(params, x)
        return FullGaussian(q.mean, 0.1 * q.scale_tril)

    sound, wrong = (
        summarize(make_evaluate(v, num_samples=100)(params, jax.random.clone(key), Examples(jnp.asarray(x), None)), 100)
        for v in (vae, vae._replace(encode=narrow))
    )
    assert sound["share_pareto_k_above_0.7"] == sound["share_ess_below_10"] == 0
    assert wrong["share_pareto_k_above_0.7"] > 0.5
    exact = -pca_log_px(params, x).mean()
    assert wrong["nll"] - exact > 5 * wrong["nll_weights_se"]
    assert sound["nll"] == pytest.approx(exact, rel=1e-4)


def test_a_point_posterior_has_no_importance_weights(key):
    vae = mlp_vae(SHAPE, LATENTS)
    point = vae._replace(encode=lambda params, x: Delta(vae.encode(params, x).mean))
    x = jax.random.uniform(jax.random.key(1), (NUM_EXAMPLES, *SHAPE))
    figures = make_evaluate(point, num_samples=30)(vae.init(jax.random.key(2), x), key, Examples(x, None))
    assert figures.log_px is figures.effective_sample_size is figures.pareto_k is None
    summary = summarize(figures, 30)
    assert not [name for name in summary if "nll" in name or "ess" in name or "pareto" in name or "effective" in name]
    assert np.isfinite(summary["log_likelihood"])


def test_annealing_agrees_with_the_closed_form_one_example_at_a_time(key):
    x, params = pca_data(5), pca_params()
    evaluate = make_annealed(pca_vae(), num_chains=300, num_steps=100, batch_size=3)
    log_px = evaluate(params, key, Examples(jnp.asarray(x), None))
    np.testing.assert_allclose(log_px, pca_log_px(params, x), atol=0.1)


# mutual information


def gaussian_codes(means, log_var):
    """q(z | x) = N(x, exp(log_var) I) for a code x of each example."""
    vae = mlp_vae((2,), 2)._replace(encode=lambda params, x: DiagonalGaussian(x, jnp.full_like(x, log_var)))
    return vae, Examples(jnp.asarray(means, jnp.float32), None)


@pytest.mark.parametrize("batch_size, num_samples", ((100, 1000), (7, 1000), (3, 4)), ids=str)
def test_information_is_that_of_the_mixture_of_posteriors(key, batch_size, num_samples):
    means = np.random.default_rng(0).normal(size=(11, 2))
    vae, examples = gaussian_codes(means, np.log(0.3))
    run = make_mutual_information(vae, num_samples=num_samples, batch_size=batch_size)
    got = run({}, jax.random.clone(key), examples)
    draw = lambda i: vae.encode({}, examples.x[i][None]).sample(jax.random.fold_in(key, i))[0]  # noqa: E731
    drawn = {4: [0, 2, 5, 8], 1000: list(range(11))}[num_samples]  # evenly: data may be sorted
    z = np.stack([draw(i) for i in drawn])
    log_q = np.stack([multivariate_normal(mean, 0.3).logpdf(z) for mean in means], 1)
    own = log_q[np.arange(len(z)), drawn]
    np.testing.assert_allclose(got, own - (logsumexp(log_q, 1) - np.log(11)), atol=1e-4)


def test_information_of_codes_far_apart_is_the_log_of_their_number_and_of_equal_ones_nothing(key):
    far, examples = gaussian_codes(100.0 * np.arange(16).reshape(8, 2), 0.0)
    np.testing.assert_allclose(make_mutual_information(far)({}, key, examples), np.log(8), rtol=1e-5)
    same, examples = gaussian_codes(np.ones((8, 2)), 0.0)
    np.testing.assert_allclose(make_mutual_information(same)({}, key, examples), 0, atol=1e-5)


# the objective


@pytest.mark.parametrize("batch_size", (3, 100))
def test_the_objective_of_every_example_is_that_of_a_loop(model, key, batch_size):
    objective = partial(negative_elbo, beta=2.0, num_samples=3)
    evaluate = make_evaluate_objective(model.vae, objective, batch_size=batch_size)
    metrics, mean = evaluate(model.params, jax.random.clone(key), model.examples)

    @jax.jit
    def one(index):
        x, context = jax.tree.map(lambda a: a[index][None], model.examples)
        own = condition(model.vae, context)
        loss, metrics = objective(model.params, jax.random.fold_in(jax.random.clone(key), index), x, own)
        return {"loss": loss, **metrics}, own.encode(model.params, x).mean[0]

    expected = [one(i) for i in range(NUM_EXAMPLES)]
    assert_close((metrics, mean), jax.tree.map(lambda *a: np.array(a), *expected))
    average = jax.tree.map(np.mean, metrics)
    assert average["loss"] == pytest.approx(2 * average["kl"] - average["log_likelihood"], rel=1e-5)


def test_the_objective_over_examples_is_that_of_the_batch(key):
    """At the exact posterior no noise is left: the average of the examples is the batch's."""
    x, params, vae = jnp.asarray(pca_data(11)), pca_params(), pca_vae(exact=True)
    objective = partial(negative_elbo, kl=kl_monte_carlo)
    metrics, _ = make_evaluate_objective(vae, objective, batch_size=4)(params, key, Examples(x, None))
    batch, _ = jit(objective, vae)(params, jax.random.key(1), x)
    np.testing.assert_allclose(np.mean(metrics["loss"]), batch, rtol=1e-4)


# summaries


def test_active_units_are_those_whose_mean_varies():
    rng = np.random.default_rng(0)
    spread = np.sqrt([0.0, 0.005, 0.02, 1.0])
    assert active_units(rng.normal(size=(5_000, 4)) * spread + 3) == 2


def test_active_units_of_a_hierarchy_are_counted_by_layer():
    rng = np.random.default_rng(0)
    mean = {"z1": rng.normal(size=(500, 3)), "z2": rng.normal(size=(500, 2)) * [0.01, 1]}
    summary = summarize(Evaluation(*np.ones((4, 500), np.float32), mean, None), 1)
    assert (summary["active_units"], summary["active_units_z1"], summary["active_units_z2"]) == (4, 3, 1)
    assert summary["kl_by_dimension"] is None


def test_summaries_are_averages_with_standard_errors():
    rng = np.random.default_rng(0)
    log_likelihood, kl, log_px = rng.normal(size=(3, 50)).astype(np.float32)
    ess, each = rng.uniform(1, 7, 50), rng.normal(size=(50, 2))
    summary = summarize(Evaluation(log_likelihood, kl, log_px, ess, rng.normal(size=(50, 2)), each), 7)
    assert summary.pop("kl_by_dimension") == pytest.approx(each.mean(0).tolist(), rel=1e-5)
    assert summary.pop("share_pareto_k_above_0.7") is summary.pop("share_ess_below_10") is None  # seven samples
    elbo = np.float64(log_likelihood) - kl
    assert summary == pytest.approx(
        {
            "elbo": elbo.mean(),
            "elbo_se": elbo.std(ddof=1) / np.sqrt(50),
            "nll": -np.float64(log_px).mean(),
            "nll_se": np.float64(log_px).std(ddof=1) / np.sqrt(50),
            "nll_weights_se": np.sqrt(np.sum((7 / ess - 1) / 6)) / 50,
            "effective_sample_size": ess.mean(),
            "log_likelihood": np.float64(log_likelihood).mean(),
            "kl": np.float64(kl).mean(),
            "active_units": 2,
            "num_samples": 7,
            "num_examples": 50,
        },
        rel=1e-5,
    )


def test_a_single_example_has_no_standard_error():
    summary = summarize(Evaluation(*np.ones((4, 1), np.float32), np.ones((1, 2)), None), 1)
    assert summary["elbo_se"] is summary["nll_se"] is summary["nll_weights_se"] is None
    assert summary["elbo"] == 0 and summary["nll"] == -1 and summary["active_units"] == 0
