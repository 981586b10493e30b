"""Standardised data: the networks see means of 0 and variances of 1, and every figure is of the data as given."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import train_flags
from helpers import PCA_SIZE, pca_data, pca_log_px, pca_params, pca_vae
from scipy.stats import multivariate_normal

from vae_jax import importance_bound, load, log_weights
from vae_jax.data import datasets, scaling
from vae_jax.distributions import Affine, DiagonalGaussian
from vae_jax.errors import UserError
from vae_jax.vae import standardized

SHIFT, SCALE = jnp.arange(PCA_SIZE, dtype=jnp.float32) * 30, jnp.array([0.01, 1, 3, 200, 7], jnp.float32)


@pytest.fixture
def table(tmp_path):
    """120 rows whose columns have very different scales; one of them never varies."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 6)) * [1e-3, 1, 10, 1e4, 0, 3] + [5, 0, -7, 2e4, 0.1, 1]
    np.savez(tmp_path / "x.npz", x=x.astype(np.float32))
    return tmp_path / "x.npz"


def test_log_px_of_a_standardised_linear_model_is_the_closed_form_of_the_data_as_given(key):
    """The importance weights of the exact posterior are all p(x)."""
    params, vae = pca_params(), standardized(pca_vae(exact=True), SHIFT, SCALE)
    u = pca_data()
    x = np.asarray(SHIFT) + np.asarray(SCALE) * u
    bound = importance_bound(log_weights(params, key, x, vae, num_samples=3))
    np.testing.assert_allclose(bound, pca_log_px(params, u) - np.sum(np.log(SCALE)), rtol=2e-5)
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    cov = p["w"].T @ p["w"] + np.exp(p["log_var"]) * np.eye(PCA_SIZE)
    scale = np.asarray(SCALE, np.float64)
    exact = multivariate_normal(SHIFT + scale * p["b"], scale[:, None] * cov * scale).logpdf(np.asarray(x, np.float64))
    np.testing.assert_allclose(bound, exact, rtol=2e-5)


def test_an_affine_distribution_is_that_of_scipy(key):
    base = DiagonalGaussian(jnp.arange(10.0).reshape(2, 5) / 5, jnp.zeros((2, 5)))
    p, x = Affine(base, SHIFT, SCALE), jax.random.normal(key, (3, 2, 5)) * 20
    exact = np.array(
        [
            [
                multivariate_normal(np.asarray(SHIFT + SCALE * m), np.diag(np.asarray(SCALE) ** 2)).logpdf(v)
                for m, v in zip(base.mean, row, strict=True)
            ]
            for row in np.asarray(x)
        ]
    )
    np.testing.assert_allclose(p.log_prob(x), exact, rtol=1e-4)
    draws = p.sample(jax.random.clone(key), (20_000,))
    draws, scale = np.asarray(draws, np.float64), np.asarray(SCALE)
    np.testing.assert_allclose((draws.mean(0) - np.asarray(p.mean)) / scale, 0, atol=0.05)
    np.testing.assert_allclose(draws.std(0) / scale, 1, atol=0.05)


def test_the_scaling_is_that_of_the_training_split_alone(table):
    dataset = datasets.load(table)
    mean, std = (np.array(part) for part in scaling.measure(dataset))
    x = dataset.train.x.astype(np.float64)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-5)
    expected = x.std(0)
    expected[4] = 1  # never varies
    np.testing.assert_allclose(std, expected, rtol=1e-4)


def test_bytes_and_streams_have_the_scaling_of_what_the_model_sees(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (500, 3, 4, 1), np.uint8)
    np.save(tmp_path / "x.npy", x)
    streamed = datasets.load(tmp_path / "x.npy", stream=True)
    mean, std = scaling.measure(streamed)
    seen = np.concatenate([x[first:end] for first, end in streamed.stream.blocks]) / 255
    np.testing.assert_allclose(mean, seen.mean(0).reshape(-1), rtol=1e-5)
    np.testing.assert_allclose(std, seen.std(0).reshape(-1), rtol=1e-5)


def test_a_run_learns_scales_that_differ_and_speaks_of_the_data_as_given(train, vae, table, tmp_path, no_pictures):
    fields = {"dataset": table, "likelihood": "gaussian", "latent_dim": 2, "batch_size": 20, "num_epochs": 40}
    record = train(tmp_path / "run", standardize="true", eval_epochs=20, **fields)
    data = load(tmp_path / "run").data
    x = np.load(table)["x"]
    shift, scale = (np.array(part) for part in data.scaling)
    # Of N(0, 1) in each standardised element, with the Jacobian: what a model without latents reaches.
    alone = -np.mean(np.sum(-0.5 * ((x - shift) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi), -1))
    assert record["loss"] == pytest.approx(alone, abs=3)
    vae("sample", tmp_path / "run", "--num=400", f"--out={tmp_path}/s.npz")
    with np.load(tmp_path / "s.npz") as samples:
        np.testing.assert_allclose((samples["x"].mean(0) - x.mean(0)) / np.maximum(x.std(0), 0.1), 0, atol=0.3)
    figures = json.loads(vae("evaluate", tmp_path / "run", "--num_samples=10"))
    assert figures["nll"] == pytest.approx(record["loss"], abs=1)


def test_without_it_one_line_advises(train, table, tmp_path, no_pictures, capsys):
    fields = {"dataset": table, "likelihood": "gaussian", "latent_dim": 2, "batch_size": 20, "num_epochs": 1}
    with pytest.raises(UserError, match=r"The data goes from .* Give --config.standardize=true"):
        train(tmp_path / "run", **fields)
    assert "--config.standardize=true" in capsys.readouterr().err
    scaling.advise(datasets.load("digits"))
    rows = np.array([[1.0, 5e6], [2.0, 1e6], [3.0, 4e6]], np.float32)
    part = datasets.load("digits").train._replace(x=rows)
    scaling.advise(datasets.load("digits")._replace(train=part), (True, False))  # nothing that `standardize` changes
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"likelihood": "bernoulli"}, "likelihood 'bernoulli' is of values in a range"),
        ({"likelihood": "gaussian", "binarization": "dynamic"}, "binarization 'dynamic' makes zeros and ones"),
        ({"likelihood": "gaussian", "prior": "vamp"}, "needs data in [0, 1], and standardize is true"),
    ],
    ids=str,
)
def test_what_contradicts_it_is_refused(fields, words, refused, train_py, tmp_path):
    assert words in refused(train_py.main, train_flags(tmp_path / "run", standardize="true", **fields))


def test_large_examples_are_refused(monkeypatch, refused, train_py, tmp_path):
    monkeypatch.setattr(scaling, "MAX_ELEMENTS", 63)
    flags = train_flags(tmp_path / "run", standardize="true", likelihood="gaussian")
    assert "an example has 64 elements; expected at most 63" in refused(train_py.main, flags)
