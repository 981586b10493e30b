"""Runs on data with missing values, and the command impute."""

import json

import jax
import numpy as np
import pytest
from conftest import train_flags

from vae_jax import __main__ as vae_main, load
from vae_jax.data.csv_files import write_csv
from vae_jax.data.tables import read_table

pytestmark = pytest.mark.robust


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of five columns in a plane, whose scales differ, with gaps, and the whole table."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2)) @ rng.normal(size=(2, 5)) + 0.05 * rng.normal(size=(300, 5))
    x = (x * [1, 10, 100, 0.1, 1] + [0, 5, -200, 0, 3]).astype(np.float32)
    path = tmp_path_factory.mktemp("table") / "t.csv"
    gaps = np.where(rng.random(x.shape) < 0.3, np.float32(np.nan), x)
    gaps[7] = np.nan
    kind = np.array(["even", "odd"])[np.arange(300) % 2]
    write_csv(path, {name: gaps[:, i] for i, name in enumerate("abcde")} | {"kind": kind})
    return path, x, gaps


@pytest.fixture(scope="module")
def run(train, table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("missing") / "run"
    fields = {"dataset": table[0], "label_column": "kind", "missing": "true", "standardize": "true"}
    fields |= {"likelihood": "gaussian_scalar", "latent_dim": 2, "hidden_sizes": 32, "batch_size": 30}
    train(folder, **fields, objective="iwae", num_samples=5, num_epochs=150, eval_epochs=150, learning_rate=0.003)
    return folder


def test_a_table_with_gaps_is_imputed_as_a_table(run, table, vae, tmp_path):
    path, whole, gaps = table
    assert vae("impute", run, f"--data={path}", f"--out={tmp_path}/full.csv") == f"{tmp_path}/full.csv\n"
    full = read_table(tmp_path / "full.csv", label_column="kind")
    assert full.columns == tuple("abcde") and full.label.tolist() == ["even", "odd"] * 150
    missing = np.isnan(gaps)
    assert np.array_equal(full.x[~missing], gaps[~missing])
    error = ((full.x - whole) / whole.std(0))[missing]
    assert np.mean(error**2) < 0.5  # the column means give 1
    np.testing.assert_allclose(full.x[7] / whole.std(0), whole.mean(0) / whole.std(0), atol=1)


def test_the_case_of_an_ending_does_not_matter(run, table, vae, tmp_path):
    vae("impute", run, f"--data={table[0]}", "--num_samples=5", f"--out={tmp_path}/full.CSV")
    assert (tmp_path / "full.CSV").read_text().startswith("a,b,c,d,e,kind\n")


def test_draws_are_completions_of_the_same_table(run, table, vae, tmp_path):
    vae("impute", run, f"--data={table[0]}", "--draws=3", "--num_samples=50", f"--out={tmp_path}/x.npz")
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["x"].shape == (3, 300, 5) and set(arrays["label"]) == {"even", "odd"}
        assert not np.isnan(arrays["x"]).any()
        seen = ~np.isnan(table[2])
        for draw in arrays["x"]:
            assert np.array_equal(draw[seen], table[2][seen])
        assert np.all(arrays["x"].std(0)[~seen] > 0)


def test_every_command_reads_gaps(run, vae, tmp_path):
    figures = json.loads(vae("evaluate", run, "--num_samples=20", "--ais_chains=2", "--ais_steps=5"))
    assert np.isfinite(figures["nll"]) and np.isfinite(figures["nll_ais"])
    for command in ("reconstruct", "interpolate", "traverse", "report", "encode"):
        vae(command, run, *(["--num_samples=5"] if command == "report" else []))
    with np.load(run / "latents.npz") as latents:
        assert all(np.all(np.isfinite(latents[name])) for name in ("mean", "log_var"))


def test_what_contradicts_missing_values_is_refused(run, train_py, refused, tmp_path, vectors_run, table):
    for fields, words in (
        ({"likelihood": "bernoulli", "binarization": "dynamic"}, "binarization 'dynamic' makes zeros and ones"),
        ({"likelihood": "bernoulli", "prior": "vamp"}, "prior 'vamp' needs whole examples, and missing is true"),
    ):
        assert words in refused(train_py.main, train_flags(tmp_path / "run", missing="true", **fields))
    main = vae_main.main
    assert "was trained without missing values" in refused(main, ["impute", vectors_run])
    assert "the draws are tables" in refused(main, ["impute", run, "--draws=2", f"--out={tmp_path}/x.csv"])
    np.savez(tmp_path / "all.npz", x=np.full((4, 5), np.nan, np.float32))
    assert "all are missing" in refused(main, ["impute", run, f"--data={tmp_path}/all.npz"])
    np.save(tmp_path / "inf.npy", np.array([[1, np.nan], [np.inf, 0], [1, 1]], np.float32))
    flags = {"likelihood": "gaussian", "batch_size": 1, "dataset": tmp_path / "inf.npy"}
    assert "(1; the first in row 1, column 0)" in refused(
        train_py.main, train_flags(tmp_path / "run", missing="true", **flags)
    )
    message = refused(train_py.main, train_flags(tmp_path / "run", **flags))
    assert "Give --config.missing=true if NaN is a missing value" in message


def test_a_column_without_values_changes_nothing(train, vae, tmp_path, no_pictures):
    x = np.random.default_rng(0).random((100, 4)).astype(np.float32)
    x[:, 2] = np.nan
    np.save(tmp_path / "x.npy", x)
    fields = {"likelihood": "gaussian_pixel", "missing": "true", "standardize": "true", "batch_size": 20}
    record = train(tmp_path / "run", dataset=tmp_path / "x.npy", **fields)
    assert np.isfinite(record["loss"])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(load(tmp_path / "run").params))
    vae("impute", tmp_path / "run", f"--data={tmp_path}/x.npy", "--num_samples=5", f"--out={tmp_path}/full.npz")
    with np.load(tmp_path / "full.npz") as arrays:
        assert np.all(np.isfinite(arrays["x"])) and np.array_equal(np.delete(arrays["x"], 2, 1), np.delete(x, 2, 1))


def test_a_stream_with_gaps_has_their_range_and_trains(train, tmp_path, no_pictures):
    x = np.random.default_rng(0).random((200, 6)).astype(np.float32)
    x[np.random.default_rng(1).random(x.shape) < 0.5] = np.nan
    np.save(tmp_path / "x.npy", x)
    fields = {"dataset": tmp_path / "x.npy", "stream": "true", "missing": "true", "batch_size": 20}
    record = train(tmp_path / "run", likelihood="gaussian", **fields)
    assert np.isfinite(record["loss"])
    assert load(tmp_path / "run").data.range == (float(np.nanmin(x)), float(np.nanmax(x)))


def test_a_column_that_no_training_example_has_is_named(train, tmp_path, no_pictures, capsys):
    (tmp_path / "t.csv").write_text("a,b\n" + "1.5,\n2.5,NA\n" * 10)
    fields = {"dataset": tmp_path / "t.csv", "missing": "true", "likelihood": "gaussian", "latent_dim": 2}
    train(tmp_path / "run", **fields, batch_size=4, num_epochs=1)
    assert "no training example has a value in 1 column ('b')" in capsys.readouterr().err
