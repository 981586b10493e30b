"""Tables from a file to a run: labels, covariates, standardised columns."""

import json

import numpy as np
import pytest
from conftest import train_flags

from vae_jax import load
from vae_jax.__main__ import main
from vae_jax.cli import console
from vae_jax.errors import UserError

pytestmark = pytest.mark.robust

HEADER = "weight,length,age,kind,place"


@pytest.fixture(scope="module")
def csv_file(tmp_path_factory):
    """300 rows of three sizes of three kinds of animals, and a place."""
    rng = np.random.default_rng(0)
    kinds = ["cat", "dog", "ox"]
    lines = [HEADER]
    for i in range(300):
        kind = i % 3
        weight, length, age = (
            rng.normal([4e3, 2e4, 5e5][kind], 100),
            rng.normal([30, 60, 200][kind], 3),
            rng.uniform(0, 9),
        )
        lines.append(f"{weight:.1f},{length:.2f},{age:.2f},{kinds[kind]},{i % 7}")
    path = tmp_path_factory.mktemp("table") / "animals.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def run(train, csv_file, tmp_path_factory):
    """A conditional run of standardised columns."""
    run_dir = tmp_path_factory.mktemp("runs") / "table"
    fields = {"dataset": csv_file, "label_column": "kind", "conditional": "true", "standardize": "true"}
    train(run_dir, likelihood="gaussian", latent_dim=2, batch_size=30, num_epochs=30, eval_epochs=30, **fields)
    return run_dir


def test_the_run_knows_the_names_of_the_classes(run):
    data = load(run).data
    assert data.names == ("cat", "dog", "ox") and data.classes == (0, 1, 2) and data.shape == (4,)


def test_a_label_is_asked_for_by_its_name(run, vae, refused, tmp_path):
    vae("sample", run, "--num=200", "--label=ox", f"--out={tmp_path}/x.npz")
    with np.load(tmp_path / "x.npz") as samples:
        assert abs(samples["mean"][:, 0].mean() / 5e5 - 1) < 0.2 and abs(samples["mean"][:, 1].mean() / 200 - 1) < 0.2
    line = refused(main, ["sample", str(run), "--label=cow"])
    assert "--label is cow; the VAE knows the classes 'cat', 'dog', 'ox'. Choose one of them" in line


def test_labels_are_written_and_read_by_name(run, vae, csv_file, tmp_path):
    vae("encode", run, f"--data={csv_file}", f"--out={tmp_path}/x.npz")
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["label"][:4].tolist() == ["cat", "dog", "ox", "cat"] and len(arrays["mean"]) == 300
    # Only two of the classes occur, and their numbers in this file are others.
    rows = csv_file.read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join([rows[0], *(row for row in rows[1:] if "cat" not in row)]))
    vae("encode", run, f"--data={tmp_path}/few.csv", f"--out={tmp_path}/y.npz")
    with np.load(tmp_path / "x.npz") as every, np.load(tmp_path / "y.npz") as few:
        kept = every["label"] != "cat"
        np.testing.assert_array_equal(few["label"], every["label"][kept])
        np.testing.assert_allclose(few["mean"], every["mean"][kept], rtol=1e-4, atol=1e-5)


def test_columns_are_matched_by_their_names(run, vae, csv_file, tmp_path):
    rows = [row.split(",") for row in csv_file.read_text().splitlines()]
    (tmp_path / "swapped.csv").write_text("\n".join(",".join([row[2], row[4], row[0], row[3], row[1]]) for row in rows))
    for data, name in ((csv_file, "x"), (tmp_path / "swapped.csv", "y")):
        vae("encode", run, f"--data={data}", f"--out={tmp_path}/{name}.npz")
    with np.load(tmp_path / "x.npz") as x, np.load(tmp_path / "y.npz") as y:
        np.testing.assert_array_equal(x["mean"], y["mean"])
    (tmp_path / "other.csv").write_text(csv_file.read_text().replace("weight", "mass"))
    argv = ["encode", str(run), f"--data={tmp_path}/other.csv", f"--out={tmp_path}/z.npz"]
    assert console.run(main, argv) == 2
    assert not (tmp_path / "z.npz").exists()
    with pytest.raises(UserError, match=r"has other columns than the table of the training \('mass', 'weight'\)"):
        main(argv)


def test_an_unknown_class_is_named(run, csv_file, tmp_path, capsys):
    (tmp_path / "cows.csv").write_text(csv_file.read_text().replace(",ox,", ",cow,"))
    capsys.readouterr()
    assert console.run(main, ["encode", str(run), f"--data={tmp_path}/cows.csv", f"--out={tmp_path}/x.npz"]) == 0
    read, line = capsys.readouterr().err.splitlines()
    assert "300 rows" in read
    assert line.endswith("100 of 300 examples are left out; the VAE does not know the label 'cow'")
    assert set(np.load(tmp_path / "x.npz")["label"]) == {"cat", "dog"}


def test_classes_may_be_kept_by_name(train, csv_file, tmp_path, no_pictures):
    fields = {"dataset": csv_file, "label_column": "kind", "classes": "ox,cat", "conditional": "true"}
    train(tmp_path, likelihood="gaussian", standardize="true", latent_dim=2, batch_size=30, num_epochs=1, **fields)
    assert load(tmp_path).data.classes == (0, 2)


def test_figures_and_export_show_the_names(run, vae, tmp_path):
    vae("report", run, "--num_samples=2", "--limit=20", f"--out={tmp_path}/x.html")
    assert "all classes in turn" in (tmp_path / "x.html").read_text()
    vae("export", run, f"--out={tmp_path}/vae.zip")
    import zipfile

    with zipfile.ZipFile(tmp_path / "vae.zip") as archive:
        assert json.loads(archive.read("config.json"))["classes"] == ["cat", "dog", "ox"]


def test_covariate_columns(train, csv_file, tmp_path, no_pictures):
    fields = {"dataset": csv_file, "label_column": "kind", "covariate_columns": "place,age"}
    fields |= {"conditional": "covariates", "standardize": "true", "likelihood": "gaussian"}
    train(tmp_path, latent_dim=2, batch_size=30, num_epochs=1, **fields)
    data = load(tmp_path).data
    assert data.shape == (2,) and data.num_covariates == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "kind"),
        ({"label_column": "kin"}, "kin"),
        ({"label_column": "kind", "image_size": 8}, "image_size is (8,), which is for a folder of images"),
        ({"label_column": "kind", "layout": "nchw"}, "layout is 'nchw', which is for a .npy or .npz file"),
    ],
    ids=str,
)
def test_what_is_wrong_is_one_line(fields, words, refused, train_py, csv_file, tmp_path):
    fields = {"dataset": csv_file, "likelihood": "gaussian", **fields}
    assert words in refused(train_py.main, train_flags(tmp_path / "run", **fields))


def test_options_of_a_table_are_refused_for_other_data(refused, train_py, tmp_path):
    line = refused(train_py.main, train_flags(tmp_path / "run", label_column="kind"))
    assert "label_column is 'kind', which is for a table; 'digits' is not one. Leave it out." in line
