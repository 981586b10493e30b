"""Covariates: numbers of each example that the networks see, as they see labels."""

import contextlib
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import train_flags

from vae_jax import load
from vae_jax.data import datasets
from vae_jax.errors import UserError
from vae_jax.run import metrics

pytestmark = pytest.mark.robust

SIZES = {"hidden_sizes": 6, "latent_dim": 2, "batch_size": 20, "num_epochs": 1}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits with their labels, as numbers and one-hot, in a file."""
    folder, dataset = tmp_path_factory.mktemp("data"), datasets.load("digits")
    arrays = {f"x_{name}": getattr(dataset, name).x for name in ("train", "test")}
    for name in ("train", "test"):
        label = getattr(dataset, name).label
        arrays |= {f"y_{name}": label, f"c_{name}": np.eye(10)[label]}
    np.savez(folder / "digits.npz", **arrays)
    return folder / "digits.npz"


@pytest.fixture(scope="module")
def ink_run(train, digits, tmp_path_factory):
    """A run whose only covariate is the ink of each image."""
    folder = tmp_path_factory.mktemp("ink")
    with np.load(digits) as arrays:
        ink = {f"c_{n}": arrays[f"x_{n}"].mean((1, 2, 3)) for n in ("train", "test")}
        np.savez(folder / "ink.npz", **({f"x_{n}": arrays[f"x_{n}"] for n in ("train", "test")} | ink))
    train(folder / "run", dataset=folder / "ink.npz", conditional="covariates", **SIZES | {"num_epochs": 20})
    return folder / "run"


def test_one_hot_covariates_are_labels_to_the_bit(train, digits, tmp_path, no_pictures):
    for name, conditional in (("labels", "true"), ("covariates", "covariates")):
        train(tmp_path / name, dataset=digits, conditional=conditional, **SIZES)
    a, b = (load(tmp_path / name) for name in ("labels", "covariates"))
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    a, b = (metrics.read(tmp_path / name)[-1]["loss"] for name in ("labels", "covariates"))
    assert a == b


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_one_network_alone_may_read_them(part, train, digits, tmp_path, no_pictures):
    train(tmp_path, dataset=digits, conditional="covariates", context=part, **SIZES)
    shapes = {name: load(tmp_path).params[name]["Dense_0"]["kernel"].shape[0] for name in ("encoder", "decoder")}
    assert shapes == {"encoder": 64, "decoder": 2} | {part: {"encoder": 74, "decoder": 12}[part]}


def test_samples_have_the_ink_that_they_were_given(ink_run, vae, tmp_path):
    vae("sample", ink_run, "--num=297", f"--out={tmp_path}/x.npz")
    with np.load(tmp_path / "x.npz") as samples, np.load(ink_run.parent / "ink.npz") as data:
        ink = samples["mean"].mean((1, 2, 3))
        assert np.corrcoef(ink, data["c_test"])[0, 1] > 0.8


@pytest.mark.parametrize("command", ["reconstruct", "interpolate", "traverse", "manifold", "encode", "report"])
def test_every_command_takes_them(command, ink_run, vae, tmp_path):
    ending = {"encode": "npz", "report": "html"}.get(command, "png")
    flags = ["--num_samples=2", "--limit=9"] * (command == "report")
    vae(command, ink_run, *flags, f"--out={tmp_path}/x.{ending}")
    assert (tmp_path / f"x.{ending}").stat().st_size


def test_evaluation_and_another_file(ink_run, vae, refused, tmp_path):
    from vae_jax.__main__ import main

    assert json.loads(vae("evaluate", ink_run, "--num_samples=2", "--limit=9"))["num_examples"] == 9
    x = np.zeros((4, 8, 8, 1), np.float32)
    np.savez(tmp_path / "two.npz", x=x, c=np.zeros((4, 2)))
    line = refused(main, ["encode", str(ink_run), f"--data={tmp_path}/two.npz", f"--out={tmp_path}/x.npz"])
    assert "has 2 covariates; the VAE was trained on 1" in line
    np.savez(tmp_path / "none.npz", x=x)
    line = refused(main, ["encode", str(ink_run), f"--data={tmp_path}/none.npz", f"--out={tmp_path}/x.npz"])
    assert "conditional is covariates, and" in line
    assert "--label needs a conditional VAE with labels" in refused(main, ["sample", str(ink_run), "--label=3"])


def test_the_export_takes_them(ink_run, vae, tmp_path):
    vae("export", ink_run, f"--out={tmp_path}/vae.zip")
    vae("sample", ink_run, "--num=5", f"--out={tmp_path}/x.npz")
    with np.load(ink_run.parent / "ink.npz") as data:
        c = data["c_test"][:5, None].astype(np.float32)
    script = f"import numpy as np, vae; np.savez('y.npz', **vae.sample(0, 5, np.array({c.tolist()}, np.float32)))"
    env = {**os.environ, "PYTHONPATH": "vae.zip"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, check=True)
    with np.load(tmp_path / "x.npz") as x, np.load(tmp_path / "y.npz") as y:
        for name in x.files:
            np.testing.assert_array_equal(x[name], y[name])


@pytest.mark.parametrize(
    ("c", "words"),
    [
        (np.zeros((3, 2)), "holds float64 of shape (3, 2); expected numbers of shape (30, C)"),
        (np.full((30, 2), np.nan), "holds NaN, infinite or too large values (60; the first in row 0, column 0)"),
        (np.array(["a"] * 30), "holds <U1 of shape (30, 1); expected numbers"),
        (None, "conditional is covariates, and"),
    ],
    ids=("few", "nan", "words", "none"),
)
def test_bad_covariates_are_one_line(c, words, refused, train_py, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((30, 4), np.float32), **({} if c is None else {"c": c}))
    fields = {"dataset": tmp_path / "x.npz", "conditional": "covariates", **SIZES}
    assert words in refused(train_py.main, train_flags(tmp_path / "run", **fields))


def test_where_the_context_goes_needs_one(refused, train_py, tmp_path):
    line = refused(train_py.main, train_flags(tmp_path / "run", context="decoder"))
    assert "context is 'decoder', for a conditional VAE" in line


def test_data_without_covariates_keeps_its_fingerprint():
    assert datasets.load("digits").fingerprint == "b691b7a6a114256c"


def test_standardised_covariates_are_those_of_the_training_split_and_their_scale_does_not_matter(
    train, vae, tmp_path, no_pictures, capsys
):
    rng = np.random.default_rng(0)
    c = rng.normal(size=(200, 2)) * [1e4, 1e-3] + [5e4, 0]
    x = (c / [1e4, 1e-3] - [5, 0]) @ rng.normal(size=(2, 3)) + 0.1 * rng.normal(size=(200, 3))
    fields = {"conditional": "covariates", "likelihood": "gaussian_scalar", "standardize": "true"} | SIZES
    losses = []
    for name, scale in (("raw", 1), ("scaled", np.array([1e-4, 1e3]))):
        np.savez(tmp_path / f"{name}.npz", x=x.astype(np.float32), c=c * scale)
        losses.append(
            train(tmp_path / name, dataset=tmp_path / f"{name}.npz", **fields | {"num_epochs": 60, "eval_epochs": 30})
        )
    assert losses[0]["loss"] == pytest.approx(losses[1]["loss"], abs=0.02)
    data = load(tmp_path / "raw").data
    mean, std = (np.array(part) for part in data.covariate_scaling)
    kept = datasets.load(tmp_path / "raw.npz").train.c.astype(np.float64)
    np.testing.assert_allclose(mean, kept.mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, kept.std(0), rtol=1e-4)
    figures = json.loads(vae("evaluate", tmp_path / "raw", "--num_samples=5"))
    assert figures["elbo"] == pytest.approx(-losses[0]["loss"], abs=0.5)
    capsys.readouterr()
    with contextlib.suppress(UserError):
        train(tmp_path / "advised", dataset=tmp_path / "raw.npz", **fields | {"standardize": "false"})
    assert "the covariates have standard deviations from 0.00" in capsys.readouterr().err
