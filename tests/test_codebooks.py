"""Vector quantisation: the nearest codes, the loss that trains their codebook, and vectors that begin anew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import jit, mlp_vae
from scipy.spatial.distance import cdist
from scipy.special import log_softmax

from vae_jax import build, codebooks, posteriors, priors, update
from vae_jax.codebooks import VectorCodes
from vae_jax.codes import Codes
from vae_jax.config import Config
from vae_jax.core import Examples
from vae_jax.data.inputs import DataInfo
from vae_jax.penalties import negative_vq

X = np.random.default_rng(0).integers(0, 2, (40, 6)).astype(np.float32)
DATA = DataInfo((6,), (), (0.0, 1.0), len(X), 0, 0, "", None)
FIELDS = {"posterior": "vq", "objective": "vq", "prior": "factorized_codes", "latent_dim": 6}


def vectors(num, size, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(num, size)), jnp.float32)


def model(options, **fields):
    options = {"num_codes": 7, "code_dim": 3} | options
    config = Config(**{"hidden_sizes": (8,), "activation": "tanh", "batch_size": 8, "posterior_options": options})
    config = Config(**{**vars(config), **FIELDS, **fields})
    return config, build.make_vae(config, DATA)


# codes


@pytest.mark.parametrize("batch", ((), (9,), (3, 5)), ids=str)
def test_the_nearest_vectors_are_scipys(batch):
    codebook, outputs = vectors(20, 3), np.random.default_rng(1).normal(size=(*batch, 6)).astype(np.float32)
    q = jax.jit(posteriors.vq(6, num_codes=20, code_dim=3).build)({"codebook": codebook}, outputs)
    nearest = cdist(outputs.reshape(-1, 3), codebook).argmin(-1)
    np.testing.assert_array_equal(q.digits.reshape(-1), nearest)
    np.testing.assert_array_equal(q.mean.reshape(-1, 3), codebook[nearest])
    np.testing.assert_array_equal(q.codes.indices(q.mean), q.digits)
    np.testing.assert_array_equal(q.log_prob(q.mean), np.zeros(batch))
    assert np.all(np.isneginf(q.log_prob(q.mean + 1)))


def test_every_code_is_reached_and_is_itself():
    codebook, rows = vectors(9, 2), Codes((9, 9), one_hot=False)
    what = VectorCodes(codebook, rows)
    np.testing.assert_array_equal(what.digits(jnp.tile(codebook, 2)), np.arange(9)[:, None] + np.zeros(2, int))
    z = what.joint(jnp.arange(81))
    assert len(np.unique(z, axis=0)) == what.num_joint == 81
    np.testing.assert_array_equal(what.of_indices(what.indices(z)), z)
    p = codebooks.with_vectors(priors.uniform_codes(rows).build({}, None), codebook, rows)
    assert len(np.unique(p.sample(jax.random.key(0), (2000,)), axis=0)) == 81
    np.testing.assert_allclose(p.log_prob(z), -np.log(81), rtol=1e-6)


def test_the_kl_is_the_surprise_of_the_codes():
    codebook, rows = vectors(9, 2), Codes((9, 9), one_hot=False)
    logits = np.random.default_rng(2).normal(size=(2, 9)).astype(np.float32)
    prior = priors.factorized_codes(rows).build({"logits": jnp.asarray(logits.reshape(-1))}, None)
    q = posteriors.vq(4, num_codes=9, code_dim=2).build({"codebook": codebook}, vectors(5, 4, 3))
    expected = -log_softmax(logits, -1)[np.arange(2), q.digits].sum(-1)
    p = codebooks.with_vectors(prior, codebook, rows)
    np.testing.assert_allclose(q.kl(p), expected, rtol=1e-5)
    np.testing.assert_allclose(-p.log_prob(q.mean), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="one of other codes"):
        q.kl(prior)


# the loss


def test_the_loss_is_equation_3():
    """At one example after the other, in float64."""
    _, vae = model({})
    params = vae.init(jax.random.key(0), X)
    loss, metrics = jit(negative_vq, vae, commitment=0.7)(params, jax.random.key(1), X)
    q = vae.encode(params, X)
    e, codebook = np.asarray(q.outputs, np.float64), np.asarray(params["posterior"]["codebook"], np.float64)
    p = np.asarray(vae.decode(params, q.mean).mean, np.float64)
    total = 0.0
    for x, mean, outputs in zip(X, p, e, strict=True):
        terms = [np.min(np.sum((own - codebook) ** 2, -1)) for own in np.split(outputs, 2)]
        total += -np.sum(np.log(np.where(x == 1, mean, 1 - mean))) + 2 * np.log(7) + 1.7 * np.mean(terms)
    np.testing.assert_allclose(loss, total / len(X), rtol=1e-5)
    np.testing.assert_allclose(loss, metrics["quantization"] * 1.7 - metrics["elbo"], rtol=1e-5)


def test_its_gradient_is_that_of_a_smooth_loss_with_the_same_codes():
    """Where a gradient is stopped, the smooth loss holds a constant. Its gradient is a finite difference."""
    with jax.enable_x64(True):
        _, vae = model({"restart_steps": 0})
        params = jax.tree.map(lambda a: jnp.asarray(a, "float64"), vae.init(jax.random.key(0), X))
        x = jnp.asarray(X, "float64")
        q = vae.encode(params, x)
        e, c, digits = q.outputs, q.codes.values(q.digits, "float64"), q.digits

        @jax.jit
        def smooth(params):
            own, codebook = vae.encode(params, x).outputs, params["posterior"]["codebook"]
            z = c + own - e
            log_p = -jnp.sum(jax.nn.log_softmax(params["prior"]["logits"].reshape(2, 7))[jnp.arange(2)[None], digits])
            drawn = jnp.sum((e - codebook[digits].reshape(e.shape)) ** 2) + 0.25 * jnp.sum((own - c) ** 2)
            return (log_p - jnp.sum(vae.decode(params, z).log_prob(x)) + drawn / 2) / len(x)

        loss = jit(negative_vq, vae)
        grads = jax.grad(lambda params: loss(params, jax.random.key(1), x)[0])(params)
        np.testing.assert_allclose(smooth(params), loss(params, jax.random.key(1), x)[0], rtol=1e-12)
        rng = np.random.default_rng(0)
        for name in params:
            direction = jax.tree.map(lambda a: 0 * a, params) | {
                name: jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), params[name])
            }
            ends = [smooth(jax.tree.map(lambda a, d, h=h: a + h * d, params, direction)) for h in (1e-5, -1e-5)]
            products = jax.tree.map(lambda g, d: jnp.sum(g * d), grads, direction)
            np.testing.assert_allclose(jax.tree.reduce(jnp.add, products, 0), (ends[0] - ends[1]) / 2e-5, rtol=1e-6)


def test_the_gradient_of_the_outputs_is_that_of_the_codes():
    posterior, params, w = posteriors.vq(6, code_dim=3), {"codebook": vectors(512, 3)}, vectors(5, 6, 4)
    value = lambda z: jnp.sum(jnp.sin(z) * w)  # noqa: E731
    outputs = vectors(5, 6, 5)
    grad, of_codebook = jax.grad(lambda o, params: value(posterior.build(params, o).mean), (0, 1))(outputs, params)
    np.testing.assert_allclose(grad, jax.grad(value)(posterior.build(params, outputs).mean), rtol=1e-6)
    assert not np.any(of_codebook["codebook"])


def test_another_posterior_has_no_codebook():
    vae = mlp_vae((6,))
    with pytest.raises(ValueError, match="needs the q\\(z \\| x\\) of posterior vq; got a DiagonalGaussian"):
        negative_vq(vae.init(jax.random.key(0), X), jax.random.key(1), X, vae)


# restarts


def restarted(num, chosen, idle, steps, outputs, key=0):
    """The codebook, its average and the counts after `restart`, and the codebook before it."""
    codebook = vectors(num, 2)
    q = codebooks.NearestCode(outputs, outputs, jnp.asarray(chosen, jnp.int32), None)
    before = {"codebook": codebook, "idle": jnp.asarray(idle, jnp.float32)}
    after = {"codebook": codebook + 1, "idle": before["idle"] + 100}  # whatever the optimiser did
    average = {"codebook": codebook + 2, "idle": before["idle"] + 200}
    params, average = codebooks.restart(jax.random.key(key), q, before, after, average, steps)
    np.testing.assert_array_equal(params["idle"], average["idle"])
    return np.asarray(params["codebook"]), np.asarray(average["codebook"]), np.asarray(params["idle"]), codebook


def test_vectors_that_were_not_chosen_for_long_begin_anew():
    outputs = vectors(4, 4, 1)  # of 4 examples with 2 codes each
    chosen = [[0, 1], [1, 1], [0, 2], [1, 2]]
    after, average, idle, before = restarted(6, chosen, [9, 9, 0, 9, 3, 8], 10, outputs)
    np.testing.assert_array_equal(idle, [0, 0, 0, 0, 4, 9])
    stays = [0, 1, 2, 4, 5]
    np.testing.assert_array_equal(after[stays], before[jnp.array(stays)] + 1)
    np.testing.assert_array_equal(average[stays], before[jnp.array(stays)] + 2)
    rows = np.asarray(outputs).reshape(-1, 2).tolist()
    assert after[3].tolist() in rows and average[3].tolist() == after[3].tolist()
    others = {tuple(restarted(6, chosen, [9, 9, 0, 9, 3, 8], 10, outputs, key)[0][3].tolist()) for key in range(30)}
    assert len(others) > 4


def test_no_two_of_them_take_the_same_output():
    outputs = vectors(3, 4, 1)
    after, _, idle, before = restarted(20, [[0, 0]] * 3, [50] * 20, 10, outputs)
    moved = idle[1:] == 0
    assert moved.sum() == 6 and np.all(idle[1:][~moved] == 51)
    rows = sorted(np.asarray(outputs).reshape(-1, 2).tolist())
    assert sorted(after[1:][moved].tolist()) == rows
    np.testing.assert_array_equal(after[1:][~moved], np.asarray(before[1:])[~moved] + 1)


def trained(options, **fields):
    """How many of 32 far vectors a short training brings into use, of the average too, and its state."""
    config, vae = model({"num_codes": 32, **options}, ema_decay=0.9, learning_rate=0.01, **fields)
    training = build.make_training(config, vae, 5)
    state = jax.jit(training.init)(jax.random.key(0), X)
    far = lambda p: {**p, "posterior": {**p["posterior"], "codebook": p["posterior"]["codebook"] + 20}}  # noqa: E731
    state = state._replace(params=far(state.params), ema=far(state.ema))
    with jax.numpy_dtype_promotion("standard"):
        train = jax.jit(update.make_train(training.update, config.batch_size))
        state, _ = train(state, Examples(jnp.asarray(X), None), 100)
    used = [len(np.unique(vae.encode(params, X).digits)) for params in (state.params, state.ema)]
    return used, state


def test_restarts_bring_all_vectors_into_use():
    assert max(trained({"restart_steps": 0})[0]) <= 2
    assert min(trained({"restart_steps": 10})[0]) >= 10


@pytest.mark.robust
def test_the_optimiser_does_not_touch_the_counts():
    fields = {"optimizer": "adamw", "optimizer_options": {"weight_decay": 0.5}}
    _, state = trained({"restart_steps": 10}, **fields)
    idle = np.asarray(state.params["posterior"]["idle"])
    assert np.all(idle == np.round(idle)) and np.all((idle >= 0) & (idle <= 10)) and idle.max() > 0
    np.testing.assert_array_equal(idle, state.ema["posterior"]["idle"])


@pytest.mark.robust
def test_runs_side_by_side_restart_as_alone():
    q_of = lambda outputs: posteriors.vq(4, num_codes=6, code_dim=2).build({"codebook": vectors(6, 2)}, outputs)  # noqa: E731
    params = {"codebook": vectors(6, 2), "idle": jnp.full(6, 5.0)}

    def one(seed, outputs):
        return codebooks.restart(jax.random.key(seed), q_of(outputs), params, params, None, 6)[0]

    outputs = jnp.stack([vectors(3, 4, seed) for seed in range(4)])
    together = jax.jit(jax.vmap(one))(jnp.arange(4), outputs)
    for i in range(4):
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda a, i=i: a[i], together), one(i, outputs[i]))
