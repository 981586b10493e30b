"""`python -m vae_jax COMMAND RUN_DIR`: the directory is all it takes, and a seed gives the same file again."""

import argparse
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import contents
from PIL import Image

from vae_jax import evaluate as evaluate_module
from vae_jax.__main__ import main, parse
from vae_jax.cli import commands, console
from vae_jax.core import to_float
from vae_jax.data import datasets
from vae_jax.errors import UserError
from vae_jax.run import checkpoints

EVALUATION = {
    "elbo",
    "elbo_se",
    "nll",
    "nll_se",
    "nll_weights_se",
    "effective_sample_size",
    "share_ess_below_10",
    "share_pareto_k_above_0.7",
    "log_likelihood",
    "kl",
    "kl_by_dimension",
    "mutual_information",
    "mutual_information_se",
    "mutual_information_bound",
    "kl_aggregate",
    "active_units",
    "num_samples",
    "num_examples",
    "split",
    "compute_dtype",
    "binarization",
    "binarization_seed",
    "step",
    "seed",
    "checkpoint",
    "selected_on",
    "notes",
}


def picture(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image)
    assert pixels.std() > 0
    return pixels


def strict_json(text):
    """JSON as other languages read it: without NaN and Infinity."""
    (line,) = text.splitlines()
    return json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def copied(run_dir, tmp_path):
    return shutil.copytree(run_dir, tmp_path / "moved" / "here")


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("sample", "sample.png"),
        ("reconstruct", "reconstruct.png"),
        ("interpolate", "interpolate.png"),
        ("traverse", "traverse.png"),
        ("manifold", "manifold.png"),
        ("encode", "latents.npz"),
    ],
)
def test_a_moved_run_is_all_it_takes(vae, digits_run, tmp_path, command, name):
    """The file goes into the run directory unless --out says where; nothing else there changes."""
    run_dir = copied(digits_run, tmp_path)
    before = contents(run_dir)
    assert vae(command, run_dir) == f"{run_dir / name}\n"
    after = contents(run_dir)
    assert {path for path in after if after[path] != before.get(path)} | {type(run_dir)(name)} == {type(run_dir)(name)}
    out = (tmp_path / "out").with_suffix(run_dir.joinpath(name).suffix.upper())
    assert vae(command, run_dir, "--out", out) == f"{out}\n"
    if name.endswith(".png"):
        np.testing.assert_array_equal(picture(out), picture(run_dir / name))
    else:
        assert out.read_bytes()[:2] == b"PK"
    assert contents(run_dir) == after


@pytest.mark.parametrize("command", ["sample", "reconstruct", "interpolate", "traverse", "encode"])
def test_feature_vectors(vae, vectors_run, tmp_path, command):
    out = tmp_path / ("out.npz" if command == "encode" else "out.png")
    vae(command, vectors_run, "--out", out)
    assert out.stat().st_size > 200


@pytest.mark.parametrize("command", ["sample", "reconstruct", "interpolate", "traverse", "manifold"])
def test_conditional(vae, conditional_run, tmp_path, command):
    vae(command, conditional_run, "--out", tmp_path / "out.png")
    picture(tmp_path / "out.png")


ENDINGS = {
    **{name: {".png"} for name in ("reconstruct", "interpolate", "traverse", "manifold", "disentangle")},
    **{
        "sample": {".png", ".npz", ".csv"},
        "encode": {".npz"},
        "export": {".zip"},
        "report": {".html"},
        "score": {".csv", ".npz"},
        "impute": {".csv", ".npz"},
    },
}


@pytest.mark.parametrize("command", ENDINGS)
def test_an_ending_that_a_command_does_not_write_names_those_it_does(command):
    for ending in (".png", ".npz", ".zip", ".html", ".npy", ".csv", ""):
        if ending in ENDINGS[command]:
            assert parse([command, "run", f"--out=x{ending}"]).out.suffix == ending
            continue
        with pytest.raises(UserError) as caught:
            parse([command, "run", f"--out=x{ending}"])
        assert all(part in str(caught.value) for part in ("--out", f"x{ending}", *ENDINGS[command]))
    with pytest.raises(UserError, match=r"--per_example.*\.npz"):
        parse(["evaluate", "run", "--per_example=x.csv"])


# sample


def samples(vae, run_dir, folder, *flags):
    vae("sample", run_dir, "--out", folder / "x.npz", *flags)
    with np.load(folder / "x.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def test_samples_as_arrays(vae, digits_run, tmp_path):
    arrays = samples(vae, digits_run, tmp_path, "--num", 200)
    assert {name: a.shape for name, a in arrays.items()} == {
        "z": (200, 2),
        "mean": (200, 8, 8, 1),
        "x": (200, 8, 8, 1),
    }
    assert set(np.unique(arrays["x"])) == {0, 1}
    assert abs(arrays["x"].mean() - arrays["mean"].mean()) < 0.02
    assert np.all(np.abs(arrays["z"].mean(0)) < 0.3) and np.all(np.abs(arrays["z"].std(0) - 1) < 0.2)
    _, _, model, params, _ = checkpoints.load(digits_run)
    np.testing.assert_allclose(arrays["mean"], model.decode(params, jnp.asarray(arrays["z"])).mean, atol=1e-5)


def test_seed_reproduces(vae, digits_run, tmp_path):
    a, b, c = (samples(vae, digits_run, tmp_path, "--num=5", f"--seed={seed}") for seed in (1, 1, 2))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
        assert np.any(a[name] != c[name])


def test_number_of_samples_in_a_picture(vae, digits_run, tmp_path):
    shapes = []
    for num in (1, 9, 16):
        vae("sample", digits_run, "--num", num, "--out", tmp_path / "x.png")
        shapes.append(picture(tmp_path / "x.png").shape)
    sides = [side * (8 + 1) + 1 for side in (1, 3, 4)]
    assert shapes == [(side * (480 // side),) * 2 for side in sides]


def test_label_of_samples(vae, conditional_run, tmp_path):
    """By default all classes in turn."""
    turn = samples(vae, conditional_run, tmp_path, "--num=20")["mean"]
    three = samples(vae, conditional_run, tmp_path, "--num=20", "--label=3")["mean"]
    same = np.all(np.isclose(turn, three, atol=1e-6), axis=(1, 2, 3))
    np.testing.assert_array_equal(same, np.arange(20) % 10 == 3)


def test_checkpoint_flag(vae, digits_run, tmp_path):
    latest, best, earlier = (
        samples(vae, digits_run, tmp_path, "--num=2", f"--checkpoint={name}")["mean"] for name in ("latest", "best", 75)
    )
    np.testing.assert_array_equal(latest, best)
    assert np.any(latest != earlier)


# pictures of inputs


def test_number_of_reconstructions(vae, digits_run, tmp_path):
    vae("reconstruct", digits_run, "--num=3", "--out", tmp_path / "x.png")
    height, width = picture(tmp_path / "x.png").shape
    assert height * (3 * 9 + 1) == width * (2 * 9 + 1)


def test_splits_differ(vae, conditional_run, tmp_path):
    files = []
    for split in ("train", "validation", "test"):
        vae("reconstruct", conditional_run, "--split", split, "--num=4", "--out", tmp_path / f"{split}.png")
        files.append((tmp_path / f"{split}.png").read_bytes())
    assert len(set(files)) == 3


def test_interpolation_rows_and_traversal_rows(vae, vectors_run, digits_run, tmp_path):
    vae("interpolate", digits_run, "--num=3", "--out", tmp_path / "i.png")
    height, width = picture(tmp_path / "i.png").shape
    assert height * (12 * 9 + 1) == width * (3 * 9 + 1)
    vae("traverse", digits_run, "--index=5", "--out", tmp_path / "t.png")
    height, width = picture(tmp_path / "t.png").shape
    assert height * (11 * 9 + 1) == width * (2 * 9 + 1)


def test_interpolation_takes_what_a_small_split_has(vae, digits_run, tmp_path):
    x = datasets.load("digits").test.x
    np.savez(tmp_path / "few.npz", x_train=x[:3], x_test=x[:5])
    vae("interpolate", digits_run, "--data", tmp_path / "few.npz", "--out", tmp_path / "x.png")
    height, width = picture(tmp_path / "x.png").shape
    assert height * (12 * 9 + 1) == width * (2 * 9 + 1)


@pytest.mark.parametrize("flags", [["--num=3"], ["--num=3", "--extent=1"], ["--num=3", "--gaussian"]], ids=str)
def test_manifold_is_square_and_depends_on_its_flags(vae, digits_run, tmp_path, flags):
    vae("manifold", digits_run, *flags, "--out", tmp_path / "x.png")
    vae("manifold", digits_run, "--num=3", "--extent=0.5", "--out", tmp_path / "y.png")
    assert picture(tmp_path / "x.png").shape == picture(tmp_path / "y.png").shape == (28 * 17,) * 2
    assert np.any(picture(tmp_path / "x.png") != picture(tmp_path / "y.png"))


def test_manifold_of_each_class(vae, conditional_run, tmp_path):
    for label in (0, 7):
        vae("manifold", conditional_run, "--num=2", f"--label={label}", "--out", tmp_path / f"{label}.png")
    assert np.any(picture(tmp_path / "0.png") != picture(tmp_path / "7.png"))


# encode


def encoded(vae, run_dir, folder, *flags):
    vae("encode", run_dir, "--out", folder / "z.npz", *flags)
    with np.load(folder / "z.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.parametrize(("split", "num"), [("train", 1500), ("test", 297)])
def test_encode_a_split(vae, digits_run, tmp_path, split, num):
    arrays = encoded(vae, digits_run, tmp_path, "--split", split)
    assert {name: a.shape for name, a in arrays.items()} == {"mean": (num, 2), "log_var": (num, 2), "label": (num,)}
    data = getattr(datasets.load("digits"), split)
    np.testing.assert_array_equal(arrays["label"], data.label)
    _, _, model, params, _ = checkpoints.load(digits_run)
    q = model.encode(params, jnp.asarray(data.x))
    np.testing.assert_allclose(arrays["mean"], q.mean, atol=1e-5)
    np.testing.assert_allclose(arrays["log_var"], q.log_var, atol=1e-5)


def test_encode_a_full_covariance_without_labels(vae, vectors_run, vectors_file, tmp_path):
    arrays = encoded(vae, vectors_run, tmp_path)
    assert arrays.keys() == {"mean", "log_var"}
    _, _, model, params, _ = checkpoints.load(vectors_run)
    x = jnp.asarray(datasets.load(vectors_file).test.x[:5])
    draws = model.encode(params, x).sample(jax.random.key(0), (20_000,))
    np.testing.assert_allclose(np.exp(arrays["log_var"][:5]), np.var(draws, axis=0), rtol=0.05)


def test_encode_own_file(vae, digits_run, tmp_path):
    x = datasets.load("digits").test.x[:30]
    np.savez(tmp_path / "own.npz", x_train=x[:10], x_test=x, y_train=np.arange(10), y_test=np.arange(30))
    arrays = encoded(vae, digits_run, tmp_path, "--data", tmp_path / "own.npz")
    np.testing.assert_array_equal(arrays["label"], np.arange(30))
    np.testing.assert_allclose(arrays["mean"], encoded(vae, digits_run, tmp_path)["mean"][:30], atol=1e-5)


@pytest.mark.robust
def test_a_run_on_a_relative_path_serves_from_anywhere(train, vae, tmp_path, monkeypatch):
    np.save(tmp_path / "own.npy", datasets.load("digits").test.x)
    monkeypatch.chdir(tmp_path)
    train("run", dataset="own.npy", batch_size=20)
    monkeypatch.chdir("/")
    assert strict_json(vae("evaluate", tmp_path / "run", "--num_samples=2"))["num_examples"] == 29


def test_encode_own_examples_in_their_order(vae, digits_run, tmp_path):
    split = datasets.load("digits").test
    np.save(tmp_path / "own.npy", split.x)
    arrays = encoded(vae, digits_run, tmp_path, "--data", tmp_path / "own.npy")
    np.testing.assert_allclose(arrays["mean"], encoded(vae, digits_run, tmp_path)["mean"], atol=1e-5)


# evaluate


@pytest.fixture(scope="module")
def evaluation(digits_run):
    import contextlib
    import io

    from vae_jax.__main__ import main

    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        main(["evaluate", str(digits_run), "--num_samples=25"])
    return strict_json(stdout.getvalue())


def test_evaluation_is_one_json_object(evaluation):
    assert evaluation.keys() == EVALUATION
    assert evaluation["num_examples"] == 297 and evaluation["num_samples"] == 25
    assert (evaluation["split"], evaluation["binarization"], evaluation["step"]) == ("test", "none", 90)
    assert evaluation["elbo"] == pytest.approx(evaluation["log_likelihood"] - evaluation["kl"], rel=1e-5)
    assert 0 < evaluation["nll_se"] < 1 and 0 < evaluation["elbo_se"] < 1
    assert 0 <= evaluation["active_units"] <= 2


def test_evaluation_takes_the_latent_apart(evaluation):
    assert sum(evaluation["kl_by_dimension"]) == pytest.approx(evaluation["kl"], rel=1e-5)
    assert 0 < evaluation["mutual_information"] < evaluation["mutual_information_bound"] == np.log(297)
    parts = evaluation["mutual_information"] + evaluation["kl_aggregate"]
    assert parts == pytest.approx(evaluation["kl"], rel=1e-5) and evaluation["kl_aggregate"] > 0


@pytest.mark.robust
def test_annealed_importance_sampling_agrees_and_every_example_is_written(vae, digits_run, tmp_path):
    out = tmp_path / "each.npz"
    result = strict_json(
        vae(
            "evaluate",
            digits_run,
            "--num_samples=2000",
            "--limit=20",
            "--ais_chains=16",
            "--ais_steps=100",
            "--per_example",
            out,
        )
    )
    assert result["nll_ais"] == pytest.approx(result["nll"], abs=0.1)
    assert (result["ais_chains"], result["ais_steps"]) == (16, 100)
    with np.load(out) as each:
        assert {name: a.shape for name, a in each.items()} == {
            **dict.fromkeys(
                ("log_likelihood", "kl", "log_px", "effective_sample_size", "pareto_k", "log_px_ais"), (20,)
            ),
            **dict.fromkeys(("mean", "kl_by_dimension"), (20, 2)),
        }
        assert -each["log_px"].mean() == pytest.approx(result["nll"], rel=1e-5)


def test_the_bound_of_the_mutual_information_hides_what_is_left_of_the_kl(vae, digits_run):
    """Of two examples no more than log 2 nats can be measured: the KL less that is not KL(q(z) || p(z))."""
    few = strict_json(vae("evaluate", digits_run, "--num_samples=1", "--limit=2"))
    assert few["mutual_information_bound"] == pytest.approx(np.log(2))
    assert "kl_aggregate" not in few


@pytest.mark.robust
def test_the_best_checkpoint_says_on_which_split_it_was_chosen(vae, digits_run, conditional_run):
    flags = "--num_samples=1", "--limit=10", "--checkpoint=best"
    for run, split in ((digits_run, "test"), (conditional_run, "validation")):
        result = strict_json(vae("evaluate", run, *flags))
        assert (result["checkpoint"], result["selected_on"]) == ("best", split)
    assert strict_json(vae("evaluate", digits_run, *flags[:2]))["selected_on"] is None


def test_heavy_tails_of_the_importance_weights_are_named_with_what_checks_them(vae, digits_run, capsys, monkeypatch):
    monkeypatch.setattr(commands, "HEAVY_TAIL", -9)
    monkeypatch.setattr(evaluate_module, "HEAVY_TAIL", -9)
    vae("evaluate", digits_run, "--num_samples=25", "--limit=10")
    assert "heavy tail (Pareto k above -9): their NLL is a loose bound" in capsys.readouterr().err


def test_figures_that_are_not_finite_are_counted_and_null(vae, vectors_run, tmp_path, capsys):
    far = np.zeros((10, 6), np.float32)
    far[:3] = 3e38
    np.savez(tmp_path / "far.npz", x_train=far, x_test=far)
    result = strict_json(vae("evaluate", vectors_run, "--data", tmp_path / "far.npz", "--num_samples=25"))
    assert result["nll"] is None and result["num_examples"] == 10
    (line,) = capsys.readouterr().err.splitlines()
    assert "figures of 3 of the 10 examples are not finite" in line


@pytest.mark.robust
def test_evaluation_in_bfloat16_is_nearly_that_in_float32(vae, digits_run):
    flags = "--num_samples=100", "--limit=100"
    exact = strict_json(vae("evaluate", digits_run, *flags))
    rounded = strict_json(vae("evaluate", digits_run, *flags, "--compute_dtype=bfloat16"))
    assert (exact["compute_dtype"], rounded["compute_dtype"]) == ("float32", "bfloat16")
    assert rounded["nll"] != exact["nll"] and rounded["nll"] == pytest.approx(exact["nll"], abs=0.05)


@pytest.mark.robust
@pytest.mark.parametrize("hierarchy", (pytest.param("markov", marks=pytest.mark.slow), "hvae", "ladder"))
def test_a_hierarchy_serves_every_command(train, vae, tmp_path, hierarchy):
    run = tmp_path / "run"
    size = '"latent_dims": [3]' if hierarchy == "ladder" else '"latent_dim": 3'
    options = f'{{{size}, "hidden_sizes": [8]}}'
    train(run, hierarchy=hierarchy, hierarchy_options=options, conditional="true", num_epochs=1)
    assert {path.name for path in run.glob("*.png")} == {"curves.png", "reconstructions.png", "samples.png"}
    for command in ("sample", "reconstruct", "interpolate", "traverse"):
        vae(command, run, "--out", tmp_path / f"{command}.png")
        picture(tmp_path / f"{command}.png")
    assert encoded(vae, run, tmp_path)["mean"].shape == (297, 5)
    flags = "--num_samples=20", "--limit=10", "--ais_chains=4", "--ais_steps=10"
    result = strict_json(vae("evaluate", run, *flags))
    assert result["active_units"] == result["active_units_z1"] + result["active_units_z2"]
    vae("evaluate", run, "--num_samples=1", "--per_example", tmp_path / "each.npz")
    with np.load(tmp_path / "each.npz") as each:
        if hierarchy != "markov":
            np.testing.assert_allclose(each["kl_z1"] + each["kl_z2"], each["kl"], rtol=1e-5)
    assert result["nll"] <= -result["elbo"] and np.isfinite(result["nll_ais"])
    with pytest.raises(UserError, match="has 2 and 3"):
        vae("manifold", run)


@pytest.mark.robust
def test_bits_per_dim_are_of_discrete_data(train, vae, tmp_path):
    train(tmp_path / "run", likelihood="categorical", likelihood_options='{"num_levels": 17}', num_epochs=1)
    result = strict_json(vae("evaluate", tmp_path / "run", "--num_samples=2", "--limit=50"))
    assert result["bits_per_dim"] == pytest.approx(result["nll"] / np.log(2) / 64)
    np.save(tmp_path / "x.npy", np.full((20, 8, 8), 0.3))
    with pytest.raises(UserError, match=r"needs data of 17 evenly spaced values, .* holds 0\.3\. Give such data\.$"):
        vae("evaluate", tmp_path / "run", "--data", tmp_path / "x.npy", "--num_samples=2")


def test_bound_with_many_samples_is_tighter(evaluation):
    assert evaluation["nll"] <= -evaluation["elbo"]


def test_evaluation_with_one_sample_is_the_elbo(vae, digits_run):
    result = strict_json(vae("evaluate", digits_run, "--num_samples=1"))
    assert result["nll"] == pytest.approx(-result["elbo"], abs=0.05)


def test_evaluation_is_reproducible_and_seeded(vae, digits_run, evaluation):
    again = strict_json(vae("evaluate", digits_run, "--num_samples=25"))
    assert again == evaluation
    other = strict_json(vae("evaluate", digits_run, "--num_samples=25", "--seed=1"))
    assert other["nll"] != evaluation["nll"]
    assert other["nll"] == pytest.approx(evaluation["nll"], abs=5 * evaluation["nll_se"])


@pytest.mark.parametrize(
    ("flags", "num"), [(["--limit=7"], 7), (["--limit=9999"], 297), (["--split=train", "--limit=1200"], 1200)], ids=str
)
def test_evaluation_of_a_part(vae, digits_run, flags, num):
    assert strict_json(vae("evaluate", digits_run, "--num_samples=2", *flags))["num_examples"] == num


def test_evaluation_of_one_example_is_json(vae, digits_run):
    """It has no standard error."""
    result = strict_json(vae("evaluate", digits_run, "--num_samples=2", "--limit=1"))
    assert result["num_examples"] == 1 and result["elbo_se"] is None


def test_evaluation_of_a_conditional_vae_on_its_validation_split(vae, conditional_run):
    result = strict_json(vae("evaluate", conditional_run, "--num_samples=2", "--split=validation"))
    assert (result["num_examples"], result["binarization"]) == (100, "static")


def test_evaluation_of_own_data(vae, vectors_run, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(1).normal(3, 2, (50, 6)))
    result = strict_json(vae("evaluate", vectors_run, "--data", tmp_path / "x.npy", "--num_samples=20"))
    assert result["num_examples"] == 50 and result["nll"] <= -result["elbo"] + 1e-3
    assert result["split"] == "all"


@pytest.mark.robust
def test_own_data_without_splits_is_taken_whole_in_its_order_by_every_command(vae, digits_run, tmp_path, refused):
    """So that the figures of the examples pair with what is known of the rows."""
    x = datasets.load("digits").test.x[:26]
    for num in (26, 1):
        np.save(tmp_path / "own.npy", x[:num])
        flags = "--data", tmp_path / "own.npy"
        result = strict_json(
            vae("evaluate", digits_run, *flags, "--num_samples=2", "--per_example", tmp_path / "each.npz")
        )
        assert (result["num_examples"], result["split"]) == (num, "all")
        with np.load(tmp_path / "each.npz") as each:
            order = encoded(vae, digits_run, tmp_path, *flags)["mean"]
            np.testing.assert_allclose(each["mean"], order, atol=1e-5)
        _, _, model, params, _ = checkpoints.load(digits_run)
        np.testing.assert_allclose(order, model.encode(params, jnp.asarray(x[:num])).mean, atol=1e-5)
        vae("reconstruct", digits_run, *flags, "--out", tmp_path / "x.png")
        vae("traverse", digits_run, *flags, "--out", tmp_path / "x.png")
    line = refused(main, ["evaluate", digits_run, *flags, "--split=test"])
    assert line.endswith("has no splits of its own: all of its examples are taken, in their order. Leave --split out.")


def test_encode_says_which_examples_it_takes(vae, digits_run, tmp_path, capsys):
    vae("encode", digits_run, "--out", tmp_path / "z.npz")
    assert "digits: the test split, 297 of 1797 examples. --split takes another one" in capsys.readouterr().err


@pytest.fixture(scope="module")
def threes_and_sevens(train, tmp_path_factory):
    """A conditional run on two classes of the digits."""
    run = tmp_path_factory.mktemp("runs") / "threes"
    train(run, classes="3,7", conditional="true", num_epochs=1, batch_size=20)
    return run


def test_a_conditional_vae_knows_the_classes_that_it_was_trained_on(vae, threes_and_sevens, tmp_path, refused):
    run = threes_and_sevens
    params = checkpoints.load(run).params
    assert params["decoder"]["Dense_0"]["kernel"].shape == (2 + 2, 8)  # latents and classes
    turn = samples(vae, run, tmp_path, "--num=6")["mean"]
    for label, first in ((3, 0), (7, 1)):
        own = samples(vae, run, tmp_path, "--num=6", f"--label={label}")["mean"]
        np.testing.assert_allclose(own[first::2], turn[first::2], atol=1e-6)
    line = refused(main, ["sample", run, "--label=5"])
    assert line == "--label is 5; the VAE knows the classes 3, 7. Choose one of them."
    vae("export", run, "--out", tmp_path / "vae.zip")


@pytest.mark.robust
def test_data_of_other_classes_is_named(vae, threes_and_sevens, conditional_run, train, tmp_path, refused, capsys):
    x, label, *_ = datasets.load("digits").test
    known = np.isin(label, (3, 7))
    np.savez(tmp_path / "none.npz", x=x[~known], y=label[~known])
    line = refused(main, ["evaluate", threes_and_sevens, "--data", tmp_path / "none.npz", "--num_samples=1"])
    assert "none.npz has the labels 0, 1, 2, 4, 5, 6, 8, 9; the VAE knows the classes 3, 7. Give examples" in line
    few = encoded(vae, threes_and_sevens, tmp_path, "--data=digits")
    said = f"digits: {np.sum(~known)} of {len(x)} examples are left out; the VAE does not know the labels 0, 1, 2, 4,"
    assert said in capsys.readouterr().err
    np.testing.assert_array_equal(few["label"], label[known])
    own = encoded(vae, threes_and_sevens, tmp_path)
    np.testing.assert_array_equal(few["mean"], own["mean"])
    np.savez(tmp_path / "few.npz", x=x[label < 5], y=label[label < 5])
    flags = "--data", tmp_path / "few.npz", "--num_samples=1"
    result = strict_json(vae("evaluate", conditional_run, *flags))
    assert result["num_examples"] == np.sum(label < 5)
    train(tmp_path / "run", classes="3,7", num_epochs=1, batch_size=20)
    capsys.readouterr()
    vae("evaluate", tmp_path / "run", *flags)
    assert "few.npz: examples of all its classes are taken; the VAE was trained on 3, 7" in capsys.readouterr().err


@pytest.mark.robust
def test_labels_far_apart_take_no_square_of_memory(train, vae, tmp_path):
    """A one-hot matrix of all numbers up to the largest of them, or an identity matrix, would take 40 GB and more."""
    x, label, *_ = datasets.load("digits").train
    np.savez(tmp_path / "data.npz", x=x[:200], y=np.array([7, 100_000, 2_000_000_000])[label[:200] % 3])
    run, fields = tmp_path / "run", {"dataset": tmp_path / "data.npz", "conditional": "true", "batch_size": 20}
    train(run, **fields, num_epochs=1)
    assert samples(vae, run, tmp_path, "--num=2", "--label=2000000000")["x"].shape == (2, 8, 8, 1)
    vae("report", run, "--num_samples=1", "--limit=5")


def test_data_that_has_moved_is_asked_for(train, vae, tmp_path, refused):
    np.save(tmp_path / "x.npy", datasets.load("digits").test.x)
    train(tmp_path / "run", dataset=tmp_path / "x.npy", batch_size=20, num_epochs=1)
    (tmp_path / "x.npy").rename(tmp_path / "y.npy")
    line = refused(main, ["evaluate", tmp_path / "run"])
    assert "x.npy, which the VAE was trained on, is not there. Give its new place with --data" in line
    assert vae("evaluate", tmp_path / "run", "--data", tmp_path / "y.npy", "--num_samples=1")


def test_own_data_in_bytes_is_scaled_as_in_training(vae, digits_run, tmp_path):
    """v / 255, as `to_float` says."""
    x = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "bytes.npz", x_train=x, x_test=x)
    np.savez(tmp_path / "floats.npz", x_train=x / 255, x_test=np.asarray(to_float(jnp.asarray(x))))
    a, b = (encoded(vae, digits_run, tmp_path, "--data", tmp_path / f"{name}.npz") for name in ("bytes", "floats"))
    np.testing.assert_allclose(a["mean"], b["mean"], atol=1e-6)


def test_figures_that_are_not_finite_are_null(vae, digits_run, monkeypatch):
    monkeypatch.setattr(commands, "evaluate", lambda _: {"nll": float("inf"), "kl_by_dimension": [float("nan"), 1.0]})
    assert vae("evaluate", digits_run) == '{"nll": null, "kl_by_dimension": [null, 1.0]}\n'


@pytest.mark.robust
def test_what_a_command_says_can_be_done_there(train, vae, refused, digits_run, vectors_run, tmp_path):
    """The commands that use a run have no flags of a config."""
    np.save(tmp_path / "unclear.npy", np.zeros((9, 4, 64, 3), np.float32))
    (tmp_path / "text.csv").write_text("a,b,c,d,e,f\n1,2,3,4,5,x\n")
    np.save(tmp_path / "grey.npy", np.full((9, 8, 8, 1), 0.3, np.float32))
    lines = [
        refused(main, ["encode", digits_run, "--data", tmp_path / "unclear.npy"]),
        refused(main, ["encode", vectors_run, "--data", tmp_path / "text.csv"]),
    ]
    assert lines[0].endswith("channels first or last. Give images of the shape that the VAE was trained on.")
    assert lines[1].endswith("Leave text out of the file.")
    fields = {"likelihood": "discretized_logistic", "dataset": tmp_path / "bytes.npy", "batch_size": 4}
    np.save(tmp_path / "bytes.npy", np.arange(9 * 64, dtype=np.uint8).reshape(9, 8, 8, 1))
    train(tmp_path / "run", **fields, num_epochs=1)
    lines.append(refused(main, ["encode", tmp_path / "run", "--data", tmp_path / "grey.npy"]))
    assert lines[2].endswith("grey.npy holds 0.3. Give such data.")
    (tmp_path / "table.csv").write_text("a,kind\n" + "1,x\n2,y\n" * 9)
    (tmp_path / "other.csv").write_text("a\n1\n2\n")
    fields = {"dataset": tmp_path / "table.csv", "label_column": "kind", "likelihood": "gaussian", "batch_size": 4}
    train(tmp_path / "table", **fields, num_epochs=1)
    lines.append(refused(main, ["encode", tmp_path / "table", "--data", tmp_path / "other.csv"]))
    assert lines[3].endswith("no label column 'kind'. Give a file with such a column, as in training.")
    assert not any("--config" in line for line in lines)


def test_programs_compiled_for_another_number_of_cores_are_not_taken(monkeypatch, tmp_path):
    """XLA divides a program among the cores that it finds, and JAX's key of a program does not say how many."""
    before = jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = []
    try:
        for num_cores in (1, 2, 1):
            monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=num_cores: set(range(n)), raising=False)
            jax.config.update("jax_compilation_cache_dir", None)
            console.setup_jax(argparse.Namespace(no_compilation_cache=False))
            folders.append(jax.config.values["jax_compilation_cache_dir"])
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert folders[0] == folders[2] != folders[1]
    assert all(folder.startswith(str(tmp_path)) for folder in folders)
