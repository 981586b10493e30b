"""Refused while tracing: densities of other shapes, bytes, no examples, no distribution, a missing label."""

from functools import partial

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from helpers import lenient, mlp_vae, standard_normal

from vae_jax import build
from vae_jax.annealing import annealed_log_weights
from vae_jax.config import Config
from vae_jax.core import VAE, Examples, condition
from vae_jax.data.inputs import DataInfo
from vae_jax.distributions import Bernoulli, DiagonalGaussian
from vae_jax.evaluate import make_annealed, make_evaluate, make_evaluate_objective, make_mutual_information
from vae_jax.objectives import elbo, log_weights, negative_elbo, negative_iwae

SHAPE, NUM = (8, 8, 1), 8  # as many examples as rows: sums over the wrong axes broadcast


def normal(mean, log_var, events):
    return dist.Normal(mean, jnp.exp(0.5 * log_var)).to_event(events)


GOOD = mlp_vae(SHAPE)
VAES = {
    "log p(x | z)": [
        GOOD._replace(decode=lambda params, z: Bernoulli(GOOD.decode(params, z).logits)),
        GOOD._replace(decode=lambda params, z: dist.Bernoulli(logits=GOOD.decode(params, z).logits).to_event(2)),
    ],
    "log q(z | x)": [
        GOOD._replace(encode=lambda params, x: normal(*_moments(params, x), 0)),
        GOOD._replace(encode=lambda params, x: DiagonalGaussian(*_moments(params, x), 2)),
    ],
    "log p(z)": [
        GOOD._replace(prior=lambda params: normal(jnp.zeros(2), jnp.zeros(2), 0)),
        GOOD._replace(prior=lambda params: DiagonalGaussian(jnp.zeros(2), jnp.zeros(2), 0)),
    ],
    "neither sums": [
        GOOD._replace(
            encode=lambda params, x: normal(*_moments(params, x), 0),
            prior=lambda params: normal(jnp.zeros(2), jnp.zeros(2), 0),
        ),
    ],
}


def _moments(params, x):
    q = GOOD.encode(params, x)
    return q.mean, q.log_var


OBJECTIVES = {
    "elbo": elbo,
    "elbo of 3 samples": partial(elbo, num_samples=3),
    "negative_elbo": negative_elbo,
    "monte_carlo": partial(negative_elbo, kl="monte_carlo"),
    "stl": partial(negative_elbo, kl="monte_carlo", estimator="stl"),
    "iwae": partial(negative_iwae, num_samples=NUM),
    "dreg": partial(negative_iwae, num_samples=NUM, estimator="dreg"),
    "log_weights": partial(log_weights, num_samples=NUM),
    "annealed": partial(annealed_log_weights, num_chains=NUM, num_steps=2),
}


def trace(function, vae, x, context=None):
    """What `function` of a VAE raises comes while tracing: nothing is computed."""
    params = jax.eval_shape(GOOD.init, jax.random.key(0), jnp.zeros((NUM, *SHAPE)))
    with lenient():
        return jax.eval_shape(lambda params, x: function(params, jax.random.key(1), x, vae), params, x)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("term, number", [(term, i) for term, vaes in VAES.items() for i in range(len(vaes))])
def test_a_density_that_does_not_sum_its_event_is_refused(objective, term, number):
    vae, x = VAES[term][number], jnp.zeros((NUM, *SHAPE))
    asks_q = objective != "annealed"
    if not asks_q and term == "log q(z | x)":
        return
    with pytest.raises(ValueError, match=r"has (event_dim|shape) .*expected.*") as caught:
        trace(OBJECTIVES[objective], vae, x)
    message = str(caught.value)
    assert "event_dim" in message
    if "event_dim 1 and p(z) has 0" not in message and "event_dim 2 and p(z) has 1" not in message:
        assert "event_dim" in message and "to_event" in message and "per example" in message
        assert term in message or term == "neither sums" or "KL(q(z | x) || p(z))" in message


def evaluations(vae):
    return {
        "evaluate": make_evaluate(vae, num_samples=2),
        "objective": make_evaluate_objective(vae, negative_elbo),
        "annealed": make_annealed(vae, num_chains=2, num_steps=2),
        "information": make_mutual_information(vae),
    }


@pytest.mark.parametrize("name", ("evaluate", "objective", "annealed", "information"))
def test_an_evaluation_refuses_it_too(name):
    for term, vaes in VAES.items():
        if (name, term) in {("annealed", "log q(z | x)")} or (name == "information" and term[4] != "q"):
            continue
        x = jnp.zeros((NUM, *SHAPE))
        params = GOOD.init(jax.random.key(0), x)
        with lenient(), pytest.raises(ValueError, match="event_dim"):
            evaluations(vaes[0])[name](params, jax.random.key(1), Examples(x, None))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_no_distribution_is_named(objective):
    x = jnp.zeros((NUM, *SHAPE))
    plain = GOOD._replace(decode=lambda params, z: GOOD.decode(params, z).logits)
    with pytest.raises(ValueError, match=r"of log p\(x \| z\) is a \w+; expected a distribution with sample, log_prob"):
        trace(OBJECTIVES[objective], plain, x)
    with pytest.raises(ValueError, match=r"prior\(params\) is a tuple; expected a distribution"):
        trace(OBJECTIVES[objective], GOOD._replace(prior=lambda params: (jnp.zeros(2), jnp.zeros(2))), x)
    if objective != "annealed":
        with pytest.raises(ValueError, match=r"encode\(params, x\) is a tuple; expected a distribution"):
            trace(OBJECTIVES[objective], GOOD._replace(encode=_moments), x)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_bytes_and_no_examples_are_refused(objective):
    with pytest.raises(ValueError, match="x has type uint8; expected floats, such as x / 255"):
        trace(OBJECTIVES[objective], GOOD, jnp.zeros((NUM, *SHAPE), jnp.uint8))
    with pytest.raises(ValueError, match=r"x has shape \(0, 8, 8, 1\); expected \[B, ...\] with at least one example"):
        trace(OBJECTIVES[objective], GOOD, jnp.zeros((0, *SHAPE)))


def test_right_shapes_of_any_library_pass():
    numpyro = VAE(
        GOOD.init,
        lambda params, x: normal(*_moments(params, x), 1),
        lambda params, z: dist.Bernoulli(logits=GOOD.decode(params, z).logits).to_event(3),
        lambda params: normal(jnp.zeros(2), jnp.zeros(2), 1),
    )
    for objective in OBJECTIVES.values():
        for vae in (GOOD, numpyro, GOOD._replace(prior=lambda params: standard_normal(2))):
            trace(objective, vae, jnp.zeros((NUM, *SHAPE)))


CONDITIONAL = Config(conditional=True, hidden_sizes=(8,), latent_dim=2)
DATA = DataInfo((8, 8, 1), (0, 1, 2), (0.0, 1.0), 200, 0, 10, "0123456789abcdef", None)


@pytest.mark.parametrize(
    "fields", ({}, {"hierarchy": "hvae"}, {"network": "convolutional"}, {"network": "temporal"}), ids=str
)
def test_a_missing_or_needless_context_is_named(fields):
    x, label = jnp.zeros((4, *SHAPE)), jnp.zeros((4, 3))
    for conditional in (True, False):
        config = Config(conditional=conditional, hidden_sizes=(8,), latent_dim=2, **fields)
        vae = build.make_vae(config, DATA)
        params = jax.eval_shape(vae.init, jax.random.key(0), x)
        right, wrong = (condition(vae, label), vae) if conditional else (vae, condition(vae, label))
        jax.eval_shape(lambda p, vae=right: negative_elbo(p, jax.random.key(1), x, vae), params)
        with pytest.raises(ValueError, match=r"got a context of \d+ numbers; expected \d+\..*condition\(vae"):
            jax.eval_shape(lambda p, vae=wrong: negative_elbo(p, jax.random.key(1), x, vae), params)


@pytest.mark.parametrize("network", ("mlp", "convolutional", "temporal"))
def test_a_built_vae_refuses_bytes_and_other_shapes(network):
    vae = build.make_vae(Config(network=network, hidden_sizes=(8,), latent_dim=2), DATA)
    params = jax.eval_shape(vae.init, jax.random.key(0), jnp.zeros((4, *SHAPE)))
    for x in (jnp.zeros((4, *SHAPE), jnp.uint8), jnp.zeros((4, 8, 8)), jnp.zeros((4, 8, 7, 1))):
        with pytest.raises(ValueError, match=r"the network got .* expected floats of shape \[\.\.\., 8, 8, 1\]"):
            jax.eval_shape(vae.encode, params, x)
    with pytest.raises(ValueError, match=r"expected floats of shape \[\.\.\., 2\]"):
        jax.eval_shape(vae.decode, params, jnp.zeros((4, 3)))
