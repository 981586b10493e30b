"""The prior fitted after training: its density, its draws, and the weights that it belongs to."""

import io
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CODED, assert_within_errors, mlp_vae
from scipy.spatial.distance import cdist
from sklearn.mixture import GaussianMixture

from vae_jax import build, fitted
from vae_jax.__main__ import main
from vae_jax.config import Config
from vae_jax.core import VAE, Examples
from vae_jax.data.inputs import DataInfo
from vae_jax.distributions import Delta, DiagonalGaussian
from vae_jax.errors import UserError
from vae_jax.run import checkpoints, fitted as kept

RNG = np.random.default_rng(0)
# Three clusters, more rows than are encoded at once.
ROWS = (RNG.normal(size=(2500, 3)) @ RNG.normal(size=(3, 3)) + RNG.integers(0, 3, (2500, 1)) * 5).astype(np.float32)


def vae_of(log_var):
    """q(z | x) is x itself, or N(x, exp(log_var))."""
    q = (lambda x: Delta(x)) if log_var is None else (lambda x: DiagonalGaussian(x, jnp.full_like(x, log_var)))
    standard = DiagonalGaussian(jnp.zeros(3), jnp.zeros(3))
    return VAE(lambda key, x: {}, lambda params, x: q(x), lambda params, z: Delta(z), lambda params: standard)


def test_its_density_is_scikit_learns(key):
    p = fitted.fit_prior({}, key, Examples(jnp.asarray(ROWS), None), vae_of(None), num_components=4)
    own = GaussianMixture(4, max_iter=1000, random_state=0).fit(ROWS.astype(np.float64))
    z = RNG.normal(5, 5, size=(200, 3)).astype(np.float32)
    np.testing.assert_allclose(p.log_prob(z), own.score_samples(z.astype(np.float64)), rtol=1e-4)
    draws = np.asarray(p.sample(jax.random.key(1), (20_000,)))
    assert_within_errors(draws, own.weights_ @ own.means_)
    centred = draws - own.weights_ @ own.means_
    second = np.einsum("c,cij->ij", own.weights_, own.covariances_ + own.means_[:, :, None] * own.means_[:, None])
    mean = own.weights_ @ own.means_
    assert_within_errors(centred[:, :, None] * centred[:, None], second - np.outer(mean, mean))


def test_its_covariance_holds_that_of_the_posterior(key):
    p = fitted.fit_prior({}, key, Examples(jnp.asarray(ROWS), None), vae_of(np.log(9)), num_components=1)
    expected = np.cov(ROWS.T) + 9 * np.eye(3)
    found = p.components.scale_tril[0] @ p.components.scale_tril[0].T
    np.testing.assert_allclose(found, expected, atol=0.1 * np.max(expected))
    assert np.all(np.abs(np.diag(found - expected)) < 4 * np.diag(expected) * np.sqrt(2 / len(ROWS)))
    np.testing.assert_allclose(p.mean, ROWS.mean(0), atol=5 * np.sqrt(np.max(expected) / len(ROWS)))


def test_it_belongs_to_its_weights(tmp_path, monkeypatch):
    vae, x = mlp_vae((6,)), jnp.asarray(RNG.integers(0, 2, (60, 6)), jnp.float32)
    params, fits = vae.init(jax.random.key(0), x), []
    fit = fitted.fit_prior
    monkeypatch.setattr(fitted, "fit_prior", lambda *args, **options: fits.append(1) or fit(*args, **options))

    def of_run(params, num_components=2):
        return kept.of_run(tmp_path, params, vae, lambda: Examples(x, None), num_components)

    first, again = of_run(params), of_run(params)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert len(fits) == 1
    others = jax.tree.map(lambda a: 1.5 * a, params)
    assert np.any(of_run(others).components.mean != first.components.mean) and len(fits) == 2
    jax.tree.map(np.testing.assert_array_equal, of_run(params), first)
    assert len(of_run(params, 3).logits) == 3 and len(fits) == 4
    file = io.BytesIO()
    np.save(file, np.ones(3))
    for i, damaged in enumerate((b"PK not an archive", b"", file.getvalue()), 5):
        (tmp_path / kept.NAME).write_bytes(damaged)
        assert len(of_run(params, 3).logits) == 3 and len(fits) == i


@pytest.mark.robust
@pytest.mark.parametrize(
    "fields, message",
    (
        ({"posterior": "fsq", "latent_dim": 3, **CODED["fsq"]}, "z is discrete"),
        ({"posterior": "vq", "latent_dim": 3, **CODED["vq"]}, "z is discrete"),
        ({"hierarchy": "markov"}, "z has several parts"),
        ({}, "expected at most the 4 training examples"),
    ),
    ids=str,
)
def test_what_has_no_such_prior_is_refused(fields, message, key):
    config = Config(**{"hidden_sizes": (4,), "latent_dim": 2, "batch_size": 2} | fields)
    vae = build.make_vae(config, DataInfo((6,), (), (0.0, 1.0), 4, 0, 0, "", None))
    x = jnp.zeros((4, 6))
    with pytest.raises(UserError, match=message):
        fitted.fit_prior(vae.init(key, x), jax.random.key(1), Examples(x, None), vae, num_components=5)


@pytest.mark.robust
def test_the_command_draws_from_it(digits_run, conditional_run, vae, refused, tmp_path):
    for name, run in (("plain", digits_run), ("conditional", conditional_run)):
        shutil.copytree(run, tmp_path / name)
    run = tmp_path / "plain"
    draw = ["sample", run, "--prior=fitted", "--num_components=3", "--num=2000", "--out", tmp_path / "s.npz"]
    vae(*draw)
    restored = checkpoints.load(run)
    p = kept.of_run(run, restored.params, restored.vae, lambda: pytest.fail("it is there"), 3)
    with np.load(tmp_path / "s.npz") as drawn:
        np.testing.assert_array_equal(
            drawn["z"], p.sample(jax.random.split(jax.random.key(0))[0], (2000,))[: len(drawn["z"])]
        )
    vae("sample", tmp_path / "conditional", "--prior=fitted", "--label=3", "--out", tmp_path / "c.png")
    assert "Give --prior=fitted too" in refused(main, ["sample", run, "--num_components=3"])


@pytest.mark.robust
def test_samples_of_an_autoencoder_come_nearer_to_the_data(train, vae, tmp_path, no_pictures):
    from sklearn.datasets import load_digits

    run = tmp_path / "run"
    fields = {"hidden_sizes": 64, "latent_dim": 8, "num_epochs": 20, "eval_epochs": 20}
    train(run, posterior="delta", beta=0, **fields)
    distances = []
    for prior in ("own", "fitted"):
        vae("sample", run, f"--prior={prior}", "--num=300", "--out", tmp_path / f"{prior}.npz")
        with np.load(tmp_path / f"{prior}.npz") as drawn:
            distances.append(cdist(drawn["mean"].reshape(300, -1), load_digits().data / 16).min(1).mean())
    assert distances[1] < 0.85 * distances[0]
