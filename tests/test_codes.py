"""Discrete latents: their codes, the distributions over them, and the exact log p(x) by the sum over all codes."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from helpers import CODED, assert_within_errors, jit
from scipy import stats
from scipy.special import log_softmax, logsumexp, softmax

from vae_jax import build, codes, generate, posteriors, priors
from vae_jax.__main__ import main
from vae_jax.annealing import annealed_log_weights
from vae_jax.codebooks import NearestCode
from vae_jax.codes import Categoricals, Codes, PointCode
from vae_jax.config import Config
from vae_jax.core import Examples
from vae_jax.data.inputs import DataInfo
from vae_jax.distributions import DiagonalGaussian, kl_analytic, kl_divergence, kl_monte_carlo
from vae_jax.errors import UserError
from vae_jax.evaluate import make_evaluate, make_evaluate_objective, make_exact, make_mutual_information, summarize
from vae_jax.objectives import log_weights, negative_elbo, negative_iwae
from vae_jax.run import checkpoints, metrics

RAGGED = Codes((3, 2, 4), one_hot=False, group=3)
ONE_HOT = Codes((4, 4), one_hot=True)
both = pytest.mark.parametrize("what", (RAGGED, ONE_HOT), ids=("numbers", "one-hot"))


def logits_of(what, *batch, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*batch, sum(what.sizes))), jnp.float32)


def parts(what, logits):
    """The logits of each variable, in float64."""
    return np.split(np.asarray(logits, np.float64), np.cumsum(what.sizes)[:-1], -1)


# codes


@pytest.mark.parametrize(
    "what",
    (RAGGED, ONE_HOT, Codes((5,), one_hot=False), Codes((8, 5, 5, 8, 5, 5), one_hot=False, group=3)),
    ids=("numbers", "one-hot", "one variable", "two groups"),
)
def test_codes_are_a_bijection_with_their_numbers(what):
    index = jnp.arange(what.num_codes)[:, None] + jnp.zeros((1, what.num_groups), jnp.int32)
    z = what.of_indices(index)
    assert z.shape == (what.num_codes, what.latent_dim) and np.all(np.abs(z) <= 1)
    np.testing.assert_array_equal(what.indices(z), index)
    np.testing.assert_array_equal(what.values(what.digits(z)), z)
    sizes = what.sizes[: what.group]
    first = np.asarray(what.digits(z))[:, : what.group]
    np.testing.assert_array_equal(np.ravel_multi_index(first.T, sizes, order="F"), index[:, 0])


@both
def test_the_joint_codes_are_all_values_of_z(what):
    z = np.asarray(what.joint(jnp.arange(what.num_joint)))
    assert len(np.unique(z, axis=0)) == what.num_joint
    p = np.exp(np.asarray(Categoricals(logits_of(what), what).log_prob(jnp.asarray(z)), np.float64))
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-6)


def test_too_many_joint_codes_have_no_numbers():
    with pytest.raises(ValueError, match="expected at most 2147483647"):
        Codes((1000,) * 4, one_hot=False).joint(jnp.arange(3))


def published(outputs, levels, eps=1e-3):
    """The numbers before rounding, and half the width: Mentzer et al. 2023, appendix A.1, in float64."""
    levels = np.asarray(levels)
    half_l = (levels - 1) * (1 - eps) / 2
    offset = np.where(levels % 2 == 1, 0.0, 0.5)
    return np.tanh(outputs + np.tan(offset / half_l)) * half_l - offset, levels // 2


@pytest.mark.parametrize(
    "levels", [(n,) for n in (2, 3, 4, 5, 8, 9, 16, posteriors.MAX_LEVELS)] + [(8, 5, 5, 5)], ids=str
)
def test_fsq_is_the_published_formula(levels):
    grid = np.linspace(-12, 12, 40_001, dtype=np.float32)[:, None] + np.zeros((1, len(levels)), np.float32)
    posterior = posteriors.fsq(len(levels), levels=levels)
    q = jax.jit(lambda outputs: posterior.build({}, outputs))(grid)
    bounded, half = published(grid.astype(np.float64), levels)
    clear = np.abs(bounded - np.floor(bounded) - 0.5) > 1e-3  # of the edges, where float32 decides
    np.testing.assert_allclose(np.where(clear, q.mean, 0), np.where(clear, np.round(bounded) / half, 0), atol=1e-6)
    for n, digits in zip(levels, np.asarray(posterior.codes.digits(q.mean)).T, strict=True):
        np.testing.assert_array_equal(np.unique(digits), np.arange(n))


def test_every_code_of_fsq_is_reached():
    posterior = posteriors.fsq(3, levels=(8, 5, 2))
    axis = np.linspace(-4, 4, 41, dtype=np.float32)
    outputs = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(-1, 3)
    q = jax.jit(lambda outputs: posterior.build({}, outputs))(outputs)
    np.testing.assert_array_equal(np.unique(posterior.codes.indices(q.mean)), np.arange(80))


def test_the_gradient_of_fsq_is_that_of_the_bounded_number():
    outputs = np.linspace(-2, 2, 9, dtype=np.float32)[:, None] + np.zeros((1, 3), np.float32)
    what, h = Codes((8, 5, 2), one_hot=False, group=3), 1e-6
    grad = jax.jit(jax.grad(lambda outputs: jnp.sum(what.quantize(outputs))))(outputs)
    (above, half), (below, _) = (published(outputs.astype(np.float64) + d, what.sizes) for d in (h, -h))
    np.testing.assert_allclose(grad, (above - below) / (2 * h) / half, rtol=1e-4)


# distributions


@both
def test_log_prob_is_that_of_independent_variables(what):
    logits = logits_of(what, 5)
    digits = np.random.default_rng(1).integers(0, what.sizes, (7, 5, len(what.sizes)))
    log_prob = Categoricals(logits, what).log_prob(what.values(jnp.asarray(digits)))
    expected = sum(log_softmax(own, -1)[np.arange(5), digits[..., i]] for i, own in enumerate(parts(what, logits)))
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5)


@both
def test_the_kl_is_scipys_sum(what):
    q, p = Categoricals(logits_of(what, 5), what), Categoricals(logits_of(what, seed=1), what)
    pairs = zip(parts(what, q.logits), parts(what, p.logits), strict=True)
    expected = sum(stats.entropy(softmax(a, -1), softmax(b)[None], axis=-1) for a, b in pairs)
    np.testing.assert_allclose(kl_analytic(q, p), expected, rtol=1e-5)
    np.testing.assert_allclose(kl_divergence(q, p, None), expected, rtol=1e-5)
    z = q.sample(jax.random.key(0), (20_000,))
    assert_within_errors(kl_monte_carlo(q, p, z), expected)
    grads = jax.jit(jax.grad(lambda q, p: jnp.sum(q.kl(p)), (0, 1)))(q, p)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


def test_the_kl_of_a_point_is_the_surprise_of_its_code():
    p, digits = Categoricals(logits_of(RAGGED), RAGGED), jnp.asarray([[0, 1, 3], [2, 0, 0]])
    q = PointCode(RAGGED.values(digits), RAGGED)
    probabilities = [softmax(own) for own in parts(RAGGED, p.logits)]
    expected = [-sum(np.log(own[d]) for own, d in zip(probabilities, row, strict=True)) for row in digits.tolist()]
    np.testing.assert_allclose(kl_analytic(q, p), expected, rtol=1e-5)
    uniform = priors.uniform_codes(RAGGED).build({}, None)
    np.testing.assert_allclose(kl_analytic(q, uniform), [np.log(24)] * 2, rtol=1e-6)
    np.testing.assert_array_equal(q.log_prob(q.mean), [0, 0])
    np.testing.assert_array_equal(q.log_prob(q.mean[::-1]), [-np.inf, -np.inf])


@pytest.mark.parametrize(
    "options", ({}, {"temperature": 0.7, "straight_through": True}), ids=("codes", "straight through")
)
def test_samples_are_codes_as_frequent_as_they_should_be(options, key):
    q = Categoricals(logits_of(ONE_HOT, 2), ONE_HOT, **options)
    z = np.asarray(q.sample(key, (20_000,)))
    assert set(np.unique(z)) == {0, 1} and np.all(z.reshape(-1, 4).sum(-1) == 1)
    assert_within_errors(z, np.concatenate([softmax(own, -1) for own in parts(ONE_HOT, q.logits)], -1))


def test_samples_of_numbers_are_as_frequent_as_they_should_be(key):
    p = Categoricals(logits_of(RAGGED), RAGGED)
    digits = np.asarray(RAGGED.digits(p.sample(key, (20_000,))))
    for i, own in enumerate(parts(RAGGED, p.logits)):
        assert_within_errors(digits[:, i, None] == np.arange(len(own)), softmax(own))


def test_relaxed_samples_are_the_published_ones(key):
    q = Categoricals(logits_of(ONE_HOT, 2), ONE_HOT, temperature=0.5)
    z = q.sample(key, (1000,))
    noise = np.asarray(jax.random.gumbel(jax.random.clone(key), (1000, 2, 2, 4)), np.float64)
    expected = softmax((np.asarray(q.logits, np.float64).reshape(2, 2, 4) + noise) / 0.5, -1)
    np.testing.assert_allclose(z, expected.reshape(1000, 2, 8), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(q.mean.reshape(2, 2, 4), softmax(q.logits.reshape(2, 2, 4), -1), rtol=1e-5)
    hard = replace(q, straight_through=True).sample(jax.random.clone(key), (1000,))
    np.testing.assert_array_equal(ONE_HOT.digits(hard), ONE_HOT.digits(z))


@pytest.mark.parametrize("straight_through", (False, True))
def test_the_gradient_of_gumbel_softmax_is_the_finite_difference(straight_through):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        logits, w = rng.normal(size=8), rng.normal(size=8)

        @jax.jit
        def value(logits, through):
            q = Categoricals(logits, ONE_HOT, temperature=1.0)
            relaxed = q.sample(jax.random.key(3)) @ w
            return jnp.where(through, replace(q, straight_through=True).sample(jax.random.key(3)) @ w, relaxed)

        grad = jax.grad(value)(logits, straight_through)
        steps = 1e-6 * np.eye(8)
        expected = [(value(logits + h, False) - value(logits - h, False)) / 2e-6 for h in steps]
        np.testing.assert_allclose(grad, expected, rtol=1e-6, atol=1e-9)


def test_relaxed_samples_have_no_probability(key):
    q = Categoricals(logits_of(ONE_HOT, 2), ONE_HOT, temperature=1.0)
    with pytest.raises(ValueError, match="are not codes and have no log q"):
        q.log_prob(q.sample(key))
    assert q.discrete().log_prob(q.discrete().sample(jax.random.clone(key))).shape == (2,)


@pytest.mark.parametrize(
    "p, message",
    (
        (DiagonalGaussian(jnp.zeros(8), jnp.zeros(8)), "a DiagonalGaussian; expected a Categoricals"),
        (Categoricals(jnp.zeros(8), Codes((8,), one_hot=True)), "one of other codes; expected"),
    ),
    ids=("Gaussian", "other codes"),
)
def test_the_kl_with_another_kind_of_prior_is_refused(p, message):
    with pytest.raises(ValueError, match=message):
        kl_analytic(Categoricals(logits_of(ONE_HOT), ONE_HOT), p)


def test_how_much_of_the_codes_is_used():
    what = Codes((2, 3, 2, 3), one_hot=False, group=2)
    index = np.array([[0, 5], [0, 4], [3, 5], [3, 4], [0, 5], [0, 4], [3, 5], [3, 0]])
    found = codes.usage(what, np.asarray(what.of_indices(jnp.asarray(index))))
    second = np.exp(stats.entropy([4, 3, 1]))
    assert found["codes_used"] == 5 and found["codes_never_used"] == 7 and found["codes_used_by_group"] == [2, 3]
    np.testing.assert_allclose(found["code_perplexity_by_group"], [2, second])
    assert found["code_perplexity"] == pytest.approx((2 + second) / 2)


# a VAE of codes

X = np.array([[1, 0, 0, 1, 0, 1], [1, 1, 1, 1, 1, 1], [0, 0, 1, 0, 0, 0]], np.float32)
MODELS = {
    "straight through": {
        "posterior": "categorical",
        "posterior_options": {"num_categories": 3, "straight_through": True},
        "prior": "factorized_codes",
        "latent_dim": 6,
    },
    "relaxed": {
        "posterior": "categorical",
        "posterior_options": {"num_categories": 3, "temperature": 0.5},
        "prior": "factorized_codes",
        "latent_dim": 6,
    },
    "fsq": {
        "posterior": "fsq",
        "posterior_options": {"levels": [3, 4]},
        "prior": "factorized_codes",
        "latent_dim": 2,
    },
    "vq": {
        "posterior": "vq",
        "posterior_options": {"num_codes": 5, "code_dim": 2},
        "prior": "factorized_codes",
        "latent_dim": 4,
    },
}
POINTS = ("fsq", "vq")  # all the mass of whose q(z | x) is at one code
every = pytest.mark.parametrize("name", MODELS)


def config_of(name, **fields):
    return Config(**({"hidden_sizes": (8,), "activation": "tanh", "batch_size": 1} | MODELS[name] | fields))


def model(name, **fields):
    """A VAE of six binary pixels, parameters moved from where they begin, and its codes, by those of the prior."""
    config = config_of(name, **fields)
    classes = (0, 1, 2) if config.conditional else ()
    vae = build.make_vae(config, DataInfo((6,), classes, (0.0, 1.0), len(X), 0, 0, "", None))
    rng = np.random.default_rng(0)
    move = lambda a: a + 0.3 * rng.normal(size=a.shape).astype(np.float32)  # noqa: E731
    params = jax.tree.map(move, vae.init(jax.random.key(0), jnp.asarray(X)))
    return vae, params, vae.prior(params).codes


def by_hand(vae, params, what, context=None):
    """log p(x, z), log q(z | x), [C, B] each, over all z in float64."""
    digits = np.array(list(np.ndindex(*what.sizes)))
    z = np.repeat(np.asarray(what.values(jnp.asarray(digits)))[:, None], len(X), 1)
    q, args = codes.discrete(vae).encode(params, X, *(context or ())), context or ()
    mean = np.asarray(jax.jit(vae.decode)(params, z, *args).mean, np.float64)
    log_p = sum(log_softmax(own)[digits[:, i]] for i, own in enumerate(parts(what, vae.prior(params).logits)))
    log_joint = log_p[:, None] + np.log(np.where(X == 1, mean, 1 - mean)).sum(-1)
    if isinstance(q, PointCode | NearestCode):
        same = np.all(np.asarray(z) == np.asarray(q.mean), -1)
        return log_joint, np.where(same, 0, -np.inf)
    log_q = sum(log_softmax(own, -1)[:, digits[:, i]] for i, own in enumerate(parts(what, q.logits)))
    return log_joint, log_q.T


@every
def test_log_px_is_the_sum_over_all_codes(name):
    vae, params, what = model(name)
    expected = logsumexp(by_hand(vae, params, what)[0], 0)
    for chunks in ({}, {"chunk_size": 4, "batch_size": 2}, {"chunk_size": what.num_joint}):
        exact = make_exact(vae, what, **chunks)(params, jax.random.key(0), Examples(X, None))
        np.testing.assert_allclose(exact, expected, rtol=1e-5)


def test_log_px_given_a_label():
    vae, params, what = model("straight through", conditional=True)
    context = jnp.eye(3)
    expected = logsumexp(by_hand(vae, params, what, (context,))[0], 0)
    exact = make_exact(vae, what)(params, jax.random.key(0), Examples(X, context))
    np.testing.assert_allclose(exact, expected, rtol=1e-5)


@every
def test_bounds_rise_from_the_elbo_to_the_exact_log_px(name, key):
    vae, params, what = model(name)
    log_joint, log_q = by_hand(vae, params, what)
    exact = logsumexp(log_joint, 0)
    with np.errstate(invalid="ignore"):
        elbo = np.nansum(np.exp(log_q) * (log_joint - log_q), 0)
    log_w = np.asarray(jit(log_weights, codes.discrete(vae), num_samples=20_000)(params, key, X), np.float64)
    assert_within_errors(log_w, elbo)
    bounds = [elbo, *(np.mean(logsumexp(log_w.reshape(-1, k, 3), 1) - np.log(k), 0) for k in (5, 50)), exact]
    if name in POINTS:  # its samples are all the same
        np.testing.assert_allclose(bounds[1:3], [elbo] * 2, rtol=1e-5)
        assert np.all(elbo < exact)
        return
    assert np.all(np.diff(bounds, axis=0) > 0)
    assert_within_errors(np.exp(log_w - exact), 1)
    np.testing.assert_allclose(logsumexp(log_w, 0) - np.log(20_000), exact, atol=0.03)


@every
def test_evaluation_is_of_the_discrete_vae(name, key):
    vae, params, what = model(name)
    log_joint, log_q = by_hand(vae, params, what)
    prior = logsumexp(log_joint, 0)
    result = make_evaluate(vae, num_samples=2000)(params, key, Examples(X, None))
    with np.errstate(invalid="ignore"):
        elbo = np.nansum(np.exp(log_q) * (log_joint - log_q), 0)
    np.testing.assert_allclose(result.log_likelihood - result.kl, elbo, atol=0.1)
    assert np.all(result.log_px <= prior + 0.1)
    z = jnp.asarray(result.mean)
    np.testing.assert_array_equal(what.values(what.digits(z)), z)
    summary = summarize(result, 2000, what)
    assert "active_units" not in summary and 1 <= summary["codes_used"] <= what.num_groups * what.num_codes


def test_a_relaxed_vae_is_evaluated_as_the_straight_through_one(key):
    """With the same weights, the two differ in training alone."""
    relaxed, params, _ = model("relaxed")
    other, _, _ = model("straight through")
    x, examples = jnp.asarray(X), Examples(X, None)
    clone = jax.random.clone
    pairs = [
        [make_evaluate(vae, num_samples=30)(params, clone(key), examples)[:5] for vae in (relaxed, other)],
        [make_mutual_information(vae)(params, clone(key), examples) for vae in (relaxed, other)],
        [make_evaluate_objective(vae, negative_elbo)(params, clone(key), examples) for vae in (relaxed, other)],
        [generate.reconstruct(params, x, vae) for vae in (relaxed, other)],
        [generate.moments(vae.encode(params, x)) for vae in (relaxed, other)],
        [generate.sample(params, clone(key), vae, 5) for vae in (relaxed, other)],
    ]
    for first, second in pairs:
        jax.tree.map(np.testing.assert_array_equal, first, second)
    losses = [jit(negative_elbo, vae)(params, clone(key), x)[0] for vae in (relaxed, other)]
    assert losses[0] != losses[1]


@every
def test_the_mutual_information_is_that_of_the_codes(name, key):
    vae, params, what = model(name)
    _, log_q = by_hand(vae, params, what)
    x = np.repeat(X, 400, 0)
    aggregate = logsumexp(log_q, 1) - np.log(3)
    with np.errstate(invalid="ignore"):
        expected = np.mean(np.nansum(np.exp(log_q) * (log_q - aggregate[:, None]), 0))
    found = make_mutual_information(vae)(params, key, Examples(x, None))
    np.testing.assert_allclose(np.mean(found), expected, atol=0.1)


def test_gradients_reach_every_parameter(key):
    for name in MODELS.keys() - {"vq"}:  # see test_codebooks.py
        vae, params, _ = model(name)
        loss = lambda params, key, vae=vae: negative_elbo(params, key, X, vae, num_samples=3)[0]  # noqa: E731
        grads = jax.jit(jax.grad(loss))(params, jax.random.clone(key))
        assert all(np.any(leaf != 0) and np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


def test_what_needs_log_q_of_relaxed_samples_is_refused(key):
    vae, params, _ = model("relaxed")
    for objective, options in ((negative_iwae, {"num_samples": 2}), (negative_elbo, {"kl": "monte_carlo"})):
        with pytest.raises(ValueError, match="no log q"):
            objective(params, jax.random.clone(key), X, vae, **options)
    vae, params, _ = model("straight through")
    assert np.isfinite(jit(negative_iwae, vae, num_samples=2)(params, key, X)[0])


def test_chains_do_not_move_through_codes(key):
    vae, params, _ = model("fsq")
    with pytest.raises(ValueError, match="expected continuous latents"):
        annealed_log_weights(params, key, X, vae, num_chains=2, num_steps=2)


# configs


def prepare(**fields):
    config = Config(**({"latent_dim": 4, "hidden_sizes": (8,), "batch_size": 1} | fields))
    vae = build.make_vae(config, DataInfo((6,), (), (0.0, 1.0), len(X), 0, 0, "", None))
    build.make_objective(config)
    return vae


FSQ = {"posterior": "fsq", "prior": "uniform_codes"}
VQ = {"posterior": "vq", "prior": "uniform_codes", "objective": "vq"}
PAIRS = {"posterior": "categorical", "posterior_options": {"num_categories": 2}, "prior": "uniform_codes"}
REFUSED = {
    "default prior": (
        {"posterior": "fsq"},
        "needs a prior of codes, and prior is 'standard_normal'. Set --config.prior=uniform_codes or",
        {"prior": "uniform_codes"},
    ),
    "vamp": (
        PAIRS | {"prior": "vamp", "prior_options": {"num_components": 3}},
        r"prior is 'vamp'. Set --config.prior=uniform_codes --config.prior_options={} or",
        {"prior": "factorized_codes", "prior_options": {}},
    ),
    "Gaussian posterior": (
        {"prior": "uniform_codes"},
        "needs a posterior of codes, and posterior is 'diagonal'. Set --config.posterior=fsq",
        {"posterior": "fsq"},
    ),
    "hierarchy": (FSQ | {"hierarchy": "markov"}, "hierarchy 'markov' joins continuous latents", {"hierarchy": ""}),
    "free bits": (FSQ | {"free_bits": 0.1}, "Set --config.free_bits=0", {"free_bits": 0.0}),
    "iwae": (
        PAIRS | {"objective": "iwae", "num_samples": 2},
        """--config.posterior_options='{"num_categories": 2, "straight_through": true}'""",
        {"posterior_options": {"num_categories": 2, "straight_through": True}},
    ),
    "estimated KL": (
        PAIRS | {"kl": "monte_carlo", "estimator": "stl"},
        "kl 'monte_carlo' needs log q",
        {"posterior_options": {"num_categories": 2, "straight_through": True}},
    ),
    "levels of another number": (FSQ | {"latent_dim": 6}, "latent_dim is 6; expected a multiple", {"latent_dim": 8}),
    "one level": (
        FSQ | {"posterior_options": {"levels": [1, 5]}},
        r"levels is \(1, 5\); expected numbers from 2",
        None,
    ),
    "endless levels": (FSQ | {"posterior_options": {"levels": [1001]}}, "expected numbers from 2 to 1000", None),
    "categories": (
        PAIRS | {"posterior_options": {}},
        "latent_dim is 4; expected a multiple of num_categories, 10",
        None,
    ),
    "one category": (PAIRS | {"posterior_options": {"num_categories": 1}}, "num_categories is 1; expected", None),
    "no temperature": (
        PAIRS | {"posterior_options": {"num_categories": 2, "temperature": 0}},
        "temperature is 0.*; expected a positive number",
        None,
    ),
    "a codebook that nothing trains": (VQ | {"objective": "elbo"}, "--config.objective=vq.", {"objective": "vq"}),
    "a codebook that importance weights do not train": (
        VQ | {"objective": "iwae", "num_samples": 3, "estimator": "dreg"},
        "Set --config.objective=vq --config.num_samples=1 --config.estimator=pathwise.",
        {"objective": "vq", "num_samples": 1, "estimator": "pathwise"},
    ),
    "no codebook": (
        {"objective": "vq"},
        "'diagonal'. Set --config.posterior=vq --config.prior=uniform_codes",
        {"posterior": "vq", "prior": "uniform_codes"},
    ),
    "vectors of another size": (VQ | {"latent_dim": 6}, "latent_dim is 6; expected a multiple", {"latent_dim": 8}),
    "one vector": (VQ | {"posterior_options": {"num_codes": 1}}, "num_codes is 1; expected 2 to", None),
    "restarts": (VQ | {"posterior_options": {"restart_steps": -1}}, "expected at least 0", None),
    "samples of a codebook": (VQ | {"num_samples": 2}, "which objective 'vq' does not use", {"num_samples": 1}),
    "codes as an option": (FSQ | {"prior_options": {"codes": 1}}, "no option 'codes'. Its options: none", None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_contradictions_are_refused_and_the_advice_works(case):
    fields, message, advice = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        prepare(**fields)
    assert "\n" not in str(caught.value)
    if advice:
        prepare(**(fields | advice))


def test_the_closed_form_may_be_asked_for():
    prepare(**FSQ, kl="analytic")
    prepare(**PAIRS, kl="analytic")


OWN = """
from vae_jax import posteriors, priors

def posterior(latent_dim):
    return posteriors.categorical(latent_dim, num_categories=2)

def prior(codes):
    return priors.factorized_codes(codes)
"""


def test_a_discrete_posterior_and_its_prior_may_come_from_outside(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    own = {name: f"{tmp_path / 'own.py'}:{name}" for name in ("posterior", "prior")}
    params = prepare(**own).init(jax.random.key(0), jnp.asarray(X))
    assert params["prior"]["logits"].shape == (4,)
    assert build.make_codes(Config(latent_dim=4, **own)) == Codes((2, 2), one_hot=True)
    prepare(**(own | {"prior": "uniform_codes"}))
    config = Config(latent_dim=4, batch_size=1, kl="monte_carlo", **own)
    data = DataInfo((6,), (), (0.0, 1.0), len(X), 0, 0, "", None)
    with pytest.raises(UserError, match="no log q"):
        build.check_objective(config, build.make_vae(config, data), data)


# commands


@pytest.fixture(scope="module", params=CODED)
def run_dir(request, train, tmp_path_factory):
    """A tiny run of either posterior. Leave it as it is."""
    fields = {"posterior": request.param, "latent_dim": 3, **CODED[request.param]}
    run_dir = tmp_path_factory.mktemp("runs") / request.param
    train(run_dir, **{n: json.dumps(v) if isinstance(v, dict) else v for n, v in fields.items()})
    return run_dir


@pytest.mark.robust
def test_a_run_says_how_much_of_its_codes_it_uses(run_dir, vae, tmp_path):
    result = json.loads(vae("evaluate", run_dir, "--num_samples=40", f"--per_example={tmp_path / 'each.npz'}"))
    what = build.make_codes(checkpoints.load(run_dir).config)
    assert result["codes_used"] + result["codes_never_used"] == what.num_groups * what.num_codes
    assert "active_units" not in result and 1 <= result["code_perplexity"] <= result["codes_used"]
    assert result["elbo"] <= -result["nll"] + 1e-5 and -result["nll"] <= result["nll_exact"] * -1 + 0.05
    with np.load(tmp_path / "each.npz") as each:
        np.testing.assert_allclose(-np.mean(each["log_px_exact"], dtype=np.float64), result["nll_exact"])
    records = [record for record in metrics.read(run_dir) if record["split"] == "test"]
    assert records[-1]["codes_used"] == result["codes_used"] and "active_units" not in records[-1]


@pytest.mark.robust
def test_commands_of_codes(run_dir, vae, refused, tmp_path):
    vae("encode", run_dir, "--out", tmp_path / "e.npz")
    vae("sample", run_dir, "--num=5", "--out", tmp_path / "s.npz")
    restored = checkpoints.load(run_dir)
    what = restored.vae.prior(restored.params).codes
    with np.load(tmp_path / "e.npz") as encoded, np.load(tmp_path / "s.npz") as drawn:
        np.testing.assert_array_equal(what.of_indices(jnp.asarray(encoded["code"])), encoded["mean"])
        np.testing.assert_array_equal(what.values(what.digits(jnp.asarray(drawn["z"]))), drawn["z"])
    vae("report", run_dir, "--num_samples=3", "--limit=20", "--out", tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "NLL_EXACT" in text and "Codes used" in text and "Active units" not in text and "Traversals" not in text
    for command in ("traverse", "interpolate", "manifold"):
        assert "between codes there are no points" in refused(main, [command, run_dir, "--out", tmp_path / "x.png"])
    assert "no chain can move" in refused(main, ["evaluate", run_dir, "--ais_chains=2"])


@pytest.mark.robust
@pytest.mark.parametrize("name", ("categorical", "vq"))
def test_a_resumed_run_is_an_unbroken_one(name, train, tmp_path):
    fields = {"posterior": name, "latent_dim": 3, **CODED[name], "ema_decay": 0.9}
    fields = {n: json.dumps(v) if isinstance(v, dict) else v for n, v in fields.items()}
    train(tmp_path / "a", **fields, num_epochs=1)
    for name in ("a", "b"):
        train(tmp_path / name, **fields, num_epochs=2)
    first, second = (checkpoints.load(tmp_path / name).params for name in ("a", "b"))
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.robust
def test_a_sweep_shows_the_codes_used(vae, tmp_path, no_pictures):
    fields = TINY | {"posterior": "fsq", "latent_dim": 3, **CODED["fsq"]}
    flags = [f"--config.{n}={json.dumps(v) if isinstance(v, dict) else v}" for n, v in fields.items()]
    with jax.numpy_dtype_promotion("standard"):
        table = vae("sweep", tmp_path / "sweep", "--seeds=0,1", "--num_samples=3", *flags)
    assert "codes_used (test)" in table and "code_perplexity (test)" in table and "active_units" not in table
