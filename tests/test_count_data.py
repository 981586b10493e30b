"""Integers are counts where the likelihood is of counts, in every kind of file; what is not a count is refused."""

import json

import jax
import numpy as np
import pytest
from conftest import one_line, train_flags, without_pictures

from vae_jax.__main__ import main
from vae_jax.cli import console
from vae_jax.config import Config
from vae_jax.data import datasets, inputs
from vae_jax.data.files import Reading
from vae_jax.errors import UserError
from vae_jax.run import metrics

pytestmark = pytest.mark.robust

COUNTS = Reading(counts=True)
SIZES = {"hidden_sizes": 6, "latent_dim": 2, "batch_size": 20, "num_epochs": 2, "eval_epochs": 1}


def sample(num=200, size=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.negative_binomial(2, rng.uniform(0.01, 0.5, size), (num, size))


def write(path, x):
    """Write x as the ending of the path says, with the labels 0, 1, 2, ... where there is room for them."""
    if path.suffix == ".npy":
        np.save(path, x)
    elif path.suffix == ".npz":
        np.savez(path, x_train=x[:-20], x_test=x[-20:])
    elif path.suffix == ".csv":
        np.savetxt(path, x, "%.17g", ",", header=",".join(f"g{i}" for i in range(x.shape[1])), comments="")
    else:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table({f"g{i}": column for i, column in enumerate(x.T)}), path)
    return path


files = pytest.mark.parametrize("name", ("x.npy", "x.npz", "x.csv", "x.parquet", "stream.npy"))


def load(path, how=COUNTS):
    return datasets.load(path, how=how, stream=path.stem == "stream")


def every(dataset):
    """All rows of a data set, sorted; of a stream, from its file."""
    parts = [dataset.train.x, dataset.test.x]
    return np.array(sorted(np.concatenate(parts).reshape(-1, parts[0][0].size).tolist()))


@files
@pytest.mark.parametrize("dtype", (np.uint8, np.int64, np.uint16, np.float64, np.float32))
def test_numbers_are_counts_and_a_line_says_so(tmp_path, name, dtype, capsys):
    x = np.minimum(sample(), 250)
    stored = x.astype(dtype)
    if stored.dtype.kind == "f":
        stored *= 1 - np.finfo(dtype).eps  # as 0.999999999999999 in place of 1
    dataset = load(write(tmp_path / name, stored))
    assert dataset.train.x.dtype == np.float32
    np.testing.assert_array_equal(every(dataset), np.array(sorted(x.tolist())))
    assert inputs.value_range(dataset) == (0, 250)
    assert f"the whole numbers, at most {250}, are taken as counts.\n" in capsys.readouterr().err


@files
def test_counts_of_any_size(tmp_path, name, capsys):
    x = sample()
    x[3, 2], x[-2, 1] = 100_000_001, 70_000
    dataset = load(write(tmp_path / name, x))
    assert every(dataset).max() == 1e8 and 70_000 in every(dataset)
    assert "float32 rounds" in capsys.readouterr().err


@files
@pytest.mark.parametrize("value, said", ((0.5, "0.5"), (-1, "-1"), (2.001, "2.001")))
def test_what_is_no_count_is_refused_with_its_place(tmp_path, name, value, said):
    x = sample().astype(np.float64)
    x[7, 4] = x[150, 1] = value
    with pytest.raises(UserError, match=rf"not counts \(2; the first, {said}, in row 7, column 4\), expected 0, 1, 2"):
        load(write(tmp_path / name, x))
    if value < 0:
        with pytest.raises(UserError, match="the first, -1, in row 7, column 4"):
            load(write(tmp_path / name, x.astype(np.int64)))


@pytest.mark.parametrize("value", (np.inf, np.nan, 1e300))
def test_what_is_not_finite_is_said_so(tmp_path, value):
    x = sample().astype(np.float64)
    x[7, 4] = value
    for name in ("x.npy", "stream.npy"):
        with pytest.raises(UserError, match=r"NaN, infinite or too large values \(1; the first in row 7, column 4\)"):
            load(write(tmp_path / name, x))


def test_bools_and_images_of_counts_keep_their_shape(tmp_path):
    x = sample(40, 24).reshape(40, 4, 6)
    dataset = load(write(tmp_path / "x.npy", x))
    assert dataset.train.x.shape == (36, 4, 6, 1) and dataset.train.x.dtype == np.float32
    bits = load(write(tmp_path / "b.npy", x > 5)).train.x
    assert bits.dtype == np.uint8 and set(np.unique(bits)) == {0, 255}


def test_who_reads_counts():
    reads = lambda **fields: inputs.reading_of(Config(**fields)).counts  # noqa: E731
    assert reads(likelihood="poisson") and reads(integers="counts") and reads(likelihood="x.py:f", integers="counts")
    assert not (reads() or reads(likelihood="poisson", integers="bytes") or reads(likelihood="x.py:f"))
    assert not reads(likelihood="poisson", binarization="dynamic")  # which makes zeros and ones of grey pixels


OWN = "from vae_jax.likelihoods import poisson\ndef own(shape):\n    return poisson(shape)\n"
REFUSED = {
    "digits": ({}, "likelihood 'poisson' is of counts, 0, 1, 2, ..., and digits holds 0."),
    "digits by name": (
        {"likelihood": "bernoulli", "integers": "counts"},
        "integers is 'counts', 0, 1, 2, ..., and dig",
    ),
    "bytes": ({"dataset": "x.npy", "integers": "bytes"}, "holds 0.0"),
    "bytes of a stream": ({"dataset": "x.npy", "integers": "bytes", "stream": "true"}, "is of counts, 0, 1, 2, ..."),
    "own": ({"dataset": "x.npy", "likelihood": "own.py:own"}, "--config.integers=counts"),
    "standardized": ({"dataset": "x.npy", "standardize": "true"}, "is of values in a range"),
    "vamp": ({"dataset": "x.npy", "prior": "vamp"}, "prior 'vamp' needs data in [0, 1]; the data lies in [0, 250]"),
    "unknown": ({"integers": "floats"}, "Unknown integers 'floats'"),
    "images": ({"dataset": "folder"}, "is of counts, 0, 1, 2, ..., and folder holds 0."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_with_counts_is_one_line(case, train_py, tmp_path, monkeypatch, capsys):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x.npy", np.minimum(sample(), 250).astype(np.uint8))
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "folder").mkdir()
    for i in range(6):
        Image.fromarray(np.full((4, 4), 40 + i, np.uint8)).save(tmp_path / "folder" / f"{i}.png")
    fields, words = REFUSED[case]
    argv = train_flags("run", **{"dataset": "digits", "likelihood": "poisson"} | SIZES | fields)
    with jax.numpy_dtype_promotion("standard"):
        assert console.run(train_py.main, argv) == 2
    line = one_line(capsys.readouterr().err.splitlines()[-1])  # after what is said of the data
    assert words in line.replace(f"{tmp_path}/", ""), line


def test_the_advice_for_a_likelihood_from_outside_works(train, tmp_path, no_pictures, monkeypatch):
    write(tmp_path / "x.npy", np.minimum(sample(), 250).astype(np.uint8))
    (tmp_path / "own.py").write_text(OWN)
    losses = [
        train(tmp_path / name, dataset=tmp_path / "x.npy", likelihood=likelihood, integers="counts", **SIZES)["loss"]
        for name, likelihood in (("own", f"{tmp_path}/own.py:own"), ("built-in", "poisson"))
    ]
    assert losses[0] == losses[1]


def test_a_run_of_counts_from_its_start_to_its_report(train, vae, tmp_path, refused, capsys):
    x = sample(300)
    path = write(tmp_path / "x.npy", x)
    fields = {"dataset": path, "likelihood": "zero_inflated_negative_binomial"} | SIZES
    fields["likelihood_options"] = '{"shares": true}'
    with without_pictures():
        trained = train(tmp_path / "run", **fields)
        assert metrics.read(tmp_path / "run")[-1]["loss"] == trained["loss"]
        assert "standardize" not in capsys.readouterr().err  # which goes with no likelihood of counts
        longer = train(tmp_path / "run", **fields | {"num_epochs": 3})
        assert longer["loss"] == train(tmp_path / "whole", **fields | {"num_epochs": 3})["loss"]
    figures = json.loads(vae("evaluate", tmp_path / "run", "--num_samples=5"))
    assert "bits_per_dim" not in figures  # given the totals, it is not a code for the counts
    other = write(tmp_path / "other.csv", sample(30, seed=1))
    assert json.loads(vae("evaluate", tmp_path / "run", f"--data={other}", "--num_samples=5"))["num_examples"] == 30
    halves = write(tmp_path / "halves.npy", x / 2)
    assert "not counts" in refused(main, ["evaluate", tmp_path / "run", f"--data={halves}"])
    report = vae("report", tmp_path / "run", f"--out={tmp_path / 'report.html'}")
    assert "report.html" in report
    vae("sample", tmp_path / "run", "--num=3", f"--out={tmp_path / 'samples.npz'}")
    assert all(np.isfinite(array).all() for array in np.load(tmp_path / "samples.npz").values())


def test_a_stream_trains_on_counts(train, vae, tmp_path, no_pictures):
    write(tmp_path / "x.npy", sample(400))
    loss = train(
        tmp_path / "run", dataset=tmp_path / "x.npy", likelihood="poisson", stream="true", **SIZES | {"num_epochs": 20}
    )
    first = next(r["loss"] for r in metrics.read(tmp_path / "run") if r["split"] == "test")
    assert loss["loss"] < first
    figures = json.loads(vae("evaluate", tmp_path / "run", "--num_samples=5"))
    assert figures["bits_per_dim"] == pytest.approx(figures["nll"] / np.log(2) / 6)
