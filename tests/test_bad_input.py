"""Bad input is one line on stderr, beginning `error:`, and the exit status 2; and nothing is overwritten."""

import os
import shutil
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
from conftest import ROOT, contents, one_line, train_flags

from vae_jax.__main__ import main as vae_main
from vae_jax.config import Config

pytestmark = pytest.mark.robust

COMMANDS = (
    "sample",
    "reconstruct",
    "interpolate",
    "traverse",
    "manifold",
    "encode",
    "evaluate",
    "score",
    "disentangle",
    "report",
    "explore",
)


# train.py: id -> (flags, parts of the line). Without a recipe of their own they train the digits.

FLAGS = {
    "unknown flag": (["--wokdir=x"], ["Unknown flag --wokdir.", "Did you mean --workdir?"]),
    "misspelt field": (["--config.latent_dims=2"], ["--config.latent_dims.", "Did you mean --config.latent_dim?"]),
    "unknown field": (["--config.zzz=2"], ["Unknown flag --config.zzz.", "--help"]),
    "abbreviated flag": (["--work=x"], ["Unknown flag --work."]),
    "argument": (["digits"], ["Unknown argument digits."]),
    "flag without value": (["--config.beta"], ["--config.beta: expected one argument"]),
    "value for a switch": (["--restart=yes"], ["--restart"]),
    "no such recipe": (["--config=configs/nope.py"], ["There is no config file configs/nope.py"]),
    "recipe is a folder": (["--config=configs"], ["There is no config file configs"]),
    "word for a whole number": (["--config.latent_dim=two"], ["latent_dim is 'two'; expected a whole number"]),
    "fraction for a whole number": (["--config.batch_size=1.5"], ["batch_size is '1.5'; expected a whole number"]),
    "word for a number": (["--config.beta=high"], ["beta is 'high'; expected a number"]),
    "word for a switch": (
        ["--config.conditional=maybe"],
        ["conditional is 'maybe'; expected true, false or covariates"],
    ),
    "word in a list": (["--config.hidden_sizes=4,x"], ["hidden_sizes is '4,x'", "whole numbers separated by commas"]),
    "broken JSON": (["--config.network_options={a}"], ["network_options is '{a}'", "a JSON object such as"]),
    "JSON that is not an object": (["--config.prior_options=[]"], ["prior_options is '[]'", "a JSON object such as"]),
    "not finite": (["--config.beta=nan"], ["beta is nan; expected a finite number"]),
    "infinite": (["--config.learning_rate=inf"], ["learning_rate is inf; expected a finite number"]),
    "no samples": (["--config.num_samples=0"], ["num_samples is 0; expected at least 1"]),
    "negative beta": (["--config.beta=-1"], ["beta is -1.0; expected at least 0"]),
    "negative seed": (["--config.seed=-1"], ["seed is -1; expected at least 0"]),
    "endless seed": (["--config.seed=99999999999999999999999"], ["seed is 99999999999999999999999"]),
    "no latent": (["--config.latent_dim=0"], ["latent_dim is 0; expected at least 1"]),
    "no epoch": (["--config.num_epochs=0"], ["num_epochs is 0; expected at least 1"]),
    "empty layer": (["--config.hidden_sizes=8,0"], ["hidden_sizes is (8, 0); expected positive whole numbers"]),
    "no learning": (["--config.learning_rate=0"], ["learning_rate is 0.0; expected a positive number"]),
    "average of nothing": (["--config.ema_decay=1"], ["ema_decay is 1.0; expected a number in [0, 1)"]),
    "batch above the data": (["--config.batch_size=1501"], ["batch_size is 1501", "at most the 1500 training"]),
    "endless warm-up": (["--config.warmup_steps=9999"], ["warmup_steps is 9999; expected less than the run's 30"]),
    "all for validation": (["--config.validation_size=1500"], ["validation_size=1500, expected", "from 0 to 1499"]),
    "no such class": (["--config.classes=3,11"], ["no example of [11]"]),
    "unknown dataset": (["--config.dataset=digit"], ["Unknown data set 'digit'", "Did you mean 'digits'?"]),
    "unknown binarization": (["--config.binarization=fixed"], ["Unknown binarization 'fixed'", "dynamic, static"]),
    "unknown objective": (["--config.objective=vlb"], ["Unknown objective 'vlb'", "elbo"]),
    "unknown schedule": (["--config.schedule=cosin"], ["Unknown schedule 'cosin'", "Did you mean 'cosine'?"]),
    "unknown kl": (["--config.kl=exact"], ["Unknown kl 'exact'", "auto, analytic, monte_carlo"]),
    "unknown likelihood": (["--config.likelihood=bernouli"], ["Unknown likelihood 'bernouli'", "mean 'bernoulli'?"]),
    "unknown posterior": (["--config.posterior=diag"], ["Unknown posterior 'diag'", "diagonal"]),
    "unknown prior": (["--config.prior=normal"], ["Unknown prior 'normal'", "standard_normal"]),
    "pseudo-inputs without a label": (
        ["--config.prior=vamp", "--config.conditional=true"],
        ["prior 'vamp' needs conditional=false"],
    ),
    "pseudo-inputs of another posterior": (["--config.prior=vamp", "--config.posterior=flow"], ["posterior=diagonal"]),
    "contradiction": (["--config.objective=iwae", "--config.beta=2"], ["which objective 'iwae' does not use"]),
    "unknown network": (["--config.network=unet"], ["Unknown network 'unet'", "mlp"]),
    "private name": (["--config.network=_MLP"], ["Unknown network '_MLP'"]),
    "unknown optimizer": (["--config.optimizer=adamm"], ["Unknown optimizer 'adamm'", "Did you mean 'adam'?"]),
    "unknown activation": (["--config.activation=rellu"], ["Unknown activation 'rellu'", "relu"]),
    "activation that is none": (["--config.activation=one_hot"], ["one_hot"]),
    "activation too many": (["--config.activation=relu,elu"], ["names 2 layers; expected one name or 1"]),
    "unknown option": (['--config.likelihood_options={"a": 1}'], ["likelihood 'bernoulli' has no option 'a'"]),
    "option that is a field": (['--config.network_options={"hidden_sizes": [3]}'], ["hidden_sizes"]),
    "option called name": (['--config.prior_options={"name": 1}'], ["'standard_normal' has no option 'name'"]),
    "bad option": (
        ["--config.likelihood=gaussian", '--config.likelihood_options={"sigma": -1}'],
        ["likelihood 'gaussian'", "sigma is -1; expected a positive number"],
    ),
    "option of the wrong type": (
        ["--config.likelihood=gaussian", '--config.likelihood_options={"sigma": "a"}'],
        ["likelihood 'gaussian': sigma is 'a'; expected a number"],
    ),
    "network option of the wrong type": (
        ["--config.network=convolutional", '--config.network_options={"channels": ["a"]}'],
        ["network 'convolutional'"],
    ),
    "network option without layers": (
        ["--config.network=convolutional", '--config.network_options={"channels": [0]}'],
        ["network 'convolutional'"],
    ),
    "activation option of the wrong type": (
        ['--config.network_options={"decoder_activation": 3}'],
        ["network 'mlp'"],
    ),
    "unknown optimizer option": (['--config.optimizer_options={"a": 1}'], ["optimizer 'adam'", "'a'"]),
    "optimizer option of the wrong type": (['--config.optimizer_options={"b1": "x"}'], ["optimizer 'adam'"]),
    "optimizer that needs more": (["--config.optimizer=lbfgs"], ["lbfgs"]),
    "no run to begin with": (["--config.init_from=nope"], ["nope is not a directory; expected a run directory"]),
    "no data set found": (["--config.dataset=mnist"], ["mnist is not prepared in", "--config.dataset=digits"]),
}


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A user without prepared data sets and without a network."""
    from vae_jax.data import tfds_builders

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setattr(tfds_builders, "unreachable", lambda url: "no connection")


@pytest.mark.parametrize("case", FLAGS)
def test_refused_training(case, refused, train_py, tmp_path, offline):
    flags, parts = FLAGS[case]
    line = refused(train_py.main, [*train_flags(tmp_path / "run"), *flags])
    for part in parts:
        assert part in line
    assert not (tmp_path / "run").exists()


# Data that cannot be trained on: id -> (what writes it and gives its path, parts of the line).


def written(name, content):
    def write(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return write


def saved(name, array):
    def write(folder):
        np.save(folder / name, array, allow_pickle=True)
        return folder / name

    return write


def texts(files):
    def write(folder):
        (folder / "data").mkdir()
        for name, text in files.items():
            (folder / "data" / name).write_bytes(text)
        return folder / "data"

    return write


DATA = {
    "missing file": (lambda folder: folder / "none.npy", ["No file or folder"]),
    "missing folder": (lambda folder: folder / "none", ["No file or folder"]),
    "unknown suffix": (
        written("x.txt", b"1,2"),
        ["x.txt", "expected a .npy, .npz, .csv, .csv.gz, .tsv, .tsv.gz or .parquet file"],
    ),
    "empty file": (written("x.npy", b""), ["x.npy", "numpy.save"]),
    "no array": (written("x.npz", b"PK"), ["x.npz", "numpy.savez"]),
    "pickled": (saved("x.npy", np.array([[1], [1, 2]], object)), ["pickled Python objects"]),
    "ragged": (saved("x.npy", np.array([np.zeros(3), np.zeros(4)], object)), ["pickled Python objects"]),
    "words": (saved("x.npy", np.array([["a", "b"]])), ["holds values of type <U1"]),
    "one number per example": (saved("x.npy", np.zeros(9)), ["has shape (9,)", "expected non-empty [N, D]"]),
    "no example": (saved("x.npy", np.zeros((0, 4))), ["has shape (0, 4)"]),
    "one example": (saved("x.npy", np.zeros((1, 4))), ["holds one example"]),
    "not a number": (saved("x.npy", np.full((9, 4), np.nan)), ["holds NaN", "36; the first in row 0, column 0"]),
    "channels first or last": (saved("x.npy", np.zeros((9, 4, 64, 3))), ["first or last", "--config.layout=nchw or"]),
    "counts": (saved("x.npy", np.full((9, 300), 178)), ["is a table of int64 from 178 to 178", "Save it as float32"]),
    "empty folder": (texts({}), ["holds no file ending in"]),
    "folder of text": (texts({"a.txt": b"a"}), ["holds no file ending in"]),
    "no image": (texts({"a.png": b"a", "b.png": b"b"}), ["a.png", "Expected an 8-bit image"]),
    "outside [0, 1]": (
        saved("x.npy", np.full((200, 4), 7.0)),
        ["likelihood 'bernoulli' needs data in [0, 1]; the data lies in [7, 7]", "likelihood=gaussian"],
    ),
}


@pytest.mark.parametrize("case", DATA)
def test_refused_data(case, refused, train_py, tmp_path):
    write, parts = DATA[case]
    line = refused(train_py.main, train_flags(tmp_path / "run", dataset=write(tmp_path)))
    for part in parts:
        assert part in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("binarization", ["static", "dynamic"])
def test_what_is_no_probability_is_not_binarised(binarization, refused, train_py, tmp_path, vectors_file):
    fields = {"dataset": vectors_file, "likelihood": "gaussian", "binarization": binarization, "batch_size": 20}
    line = refused(train_py.main, train_flags(tmp_path / "run", **fields))
    assert f"binarization {binarization!r} needs data in [0, 1]; the data lies in [" in line


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_test_data_outside_the_range_is_refused_too(likelihood, refused, train_py, tmp_path):
    binarization = "none" if likelihood == "bernoulli" else "static"
    np.savez(tmp_path / "x.npz", x_train=np.full((200, 4), 0.5), x_test=np.full((20, 4), 7.0))
    fields = {"dataset": tmp_path / "x.npz", "likelihood": likelihood, "binarization": binarization}
    assert "[0, 1]" in refused(train_py.main, train_flags(tmp_path / "run", **fields))


def test_levels_that_the_data_does_not_have(refused, train_py, tmp_path):
    line = refused(train_py.main, train_flags(tmp_path / "run", likelihood="discretized_logistic"))
    assert "needs data of 256 evenly spaced values, 0, 1/255 .. 1; digits holds 0." in line
    assert """--config.likelihood=categorical --config.likelihood_options='{"num_levels": 17}'""" in line
    assert not (tmp_path / "run").exists()


def test_labels_that_are_not_there(refused, train_py, tmp_path, vectors_file):
    fields = {"dataset": vectors_file, "likelihood": "gaussian", "batch_size": 20}
    line = refused(train_py.main, train_flags(tmp_path / "run", conditional="true", **fields))
    assert "conditional is true but the data has no labels" in line
    line = refused(train_py.main, train_flags(tmp_path / "run", classes="1", **fields))
    assert "which has no labels" in line


def test_images_for_a_convolution(refused, train_py, tmp_path, vectors_file):
    fields = {"dataset": vectors_file, "likelihood": "gaussian", "batch_size": 20, "network": "convolutional"}
    line = refused(train_py.main, train_flags(tmp_path / "run", **fields))
    assert "got examples of shape (6,); expected images [H, W, C]" in line


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--config.beta=4"], ["beta (was 1.0, now 4.0)", "--restart"]),
        (["--config.seed=1", "--config.latent_dim=3"], ["latent_dim (was 2, now 3)", "seed (was 0, now 1)"]),
        (["--config.classes=1,2"], ["classes (was [], now [1, 2])"]),
        (["--config.beta=x"], ["beta is 'x'"]),
        (["--config.dataset=nope"], ["Unknown data set"]),
        (["--restart", "--config.likelihood=nope"], ["Unknown likelihood"]),
        (["--restart", "--config.batch_size=5000"], ["batch_size is 5000"]),
    ],
    ids=str,
)
def test_refused_command_leaves_the_run_there_as_it_is(flags, parts, refused, train_py, digits_run):
    before = contents(digits_run.parent)
    line = refused(train_py.main, [*train_flags(digits_run, num_epochs=6), *flags])
    for part in parts:
        assert part in line
    assert contents(digits_run.parent) == before


@pytest.mark.parametrize("name", ["file", "file/below", "other"])
def test_refused_workdir(name, refused, train_py, tmp_path):
    """A file, a place below a file and a folder with other things in it."""
    (tmp_path / "file").write_text("precious")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    before = contents(tmp_path)
    assert str(tmp_path / name) in refused(train_py.main, train_flags(tmp_path / name))
    assert str(tmp_path / name) in refused(train_py.main, train_flags(tmp_path / name, "--restart"))
    assert contents(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not hold for root")
def test_workdir_that_may_not_be_written(refused, train_py, tmp_path):
    tmp_path.chmod(0o500)
    try:
        assert "cannot be written" in refused(train_py.main, train_flags(tmp_path / "run"))
    finally:
        tmp_path.chmod(0o700)


# The commands: id -> (argv, parts of the line); a name of a run is replaced by its directory.

COMMAND_LINES = {
    "no command": ([], ["COMMAND"]),
    "unknown command": (["smaple", "DIGITS"], ["smaple", "choose from", "sample"]),
    "no directory": (["sample"], ["RUN_DIR"]),
    "too many directories": (["sample", "DIGITS", "DIGITS"], ["Unknown argument"]),
    "directory that is none": (["sample", "TMP/none"], ["TMP/none is not a directory; expected a run directory"]),
    "empty directory": (["evaluate", "TMP"], ["TMP has no run.json; expected a run directory"]),
    "misspelt flag": (["sample", "DIGITS", "--sed=1"], ["Unknown flag --sed.", "Did you mean --seed?"]),
    "flag of another command": (
        ["export", "DIGITS", "--split=test"],
        ["Unknown flag --split. See vae_jax export --help."],
    ),
    "misspelt flag of two commands": (
        ["encode", "DIGITS", "--spilt=test"],
        ["Unknown flag --spilt. Did you mean --split? See vae_jax encode --help."],
    ),
    "field of a training": (
        ["encode", "DIGITS", "--config.layout=nchw"],
        ["--config.layout. See vae_jax encode --help"],
    ),
    "a split without covariates": (["sample", "DIGITS", "--split=test"], ["are for a VAE with covariates"]),
    "no samples": (["sample", "DIGITS", "--num=0"], ["--num", "'0' is not a whole number from 1"]),
    "half a sample": (["sample", "DIGITS", "--num=1.5"], ["--num", "'1.5' is not a whole number from 1"]),
    "number in another script": (["sample", "DIGITS", "--num=²"], ["--num", "²"]),
    "endless seed": (["sample", "DIGITS", "--seed=99999999999999999999999"], ["seed"]),
    "negative seed": (["sample", "DIGITS", "--seed=-1"], ["--seed", "'-1' is not a whole number from 0"]),
    "no importance samples": (
        ["evaluate", "DIGITS", "--num_samples=0"],
        ["--num_samples", "not a whole number"],
    ),
    "limit of nothing": (["evaluate", "DIGITS", "--limit=0"], ["--limit", "not a whole number from 1"]),
    "unknown split": (["evaluate", "DIGITS", "--split=dev"], ["--split", "'dev'", "validation"]),
    "no validation split": (["evaluate", "DIGITS", "--split=validation"], ["no split 'validation'", "train, test"]),
    "unknown checkpoint": (["sample", "DIGITS", "--checkpoint=7"], ["no checkpoint '7'", "latest, best, 75, 90"]),
    "label of an unconditional VAE": (["sample", "DIGITS", "--label=3"], ["--label needs a conditional VAE"]),
    "label 0 of an unconditional VAE": (["sample", "DIGITS", "--label=0"], ["--label needs a conditional VAE"]),
    "label of a manifold": (["manifold", "DIGITS", "--label=3"], ["--label needs a conditional VAE"]),
    "unknown label": (["sample", "CONDITIONAL", "--label=10"], ["--label is 10; the VAE knows the classes 0 to 9"]),
    "manifold of three": (["manifold", "VECTORS"], ["A manifold needs a latent of 2 dimensions", "has 3", "traverse"]),
    "word for an extent": (["manifold", "DIGITS", "--extent=far"], ["--extent", "'far'"]),
    "extent that is not a number": (["manifold", "DIGITS", "--extent=nan"], ["--extent"]),
    "index past the end": (["traverse", "DIGITS", "--index=297"], ["--index is 297; expected one of the 297 examples"]),
    "other data": (["encode", "DIGITS", "--data=VECTORS_FILE"], ["shape (6,); the VAE was trained on (8, 8, 1)"]),
    "missing data": (["encode", "DIGITS", "--data=TMP/none.npy"], ["No file or folder"]),
    "unlabelled data": (
        ["evaluate", "CONDITIONAL", "--data=TMP/x.npy"],
        ["conditional on the classes 0 to 9, and", "has no labels"],
    ),
    "data out of range": (
        ["evaluate", "DIGITS", "--data=TMP/far.npy", "--num_samples=1"],
        ["the VAE was trained on data in [0, 1]. Give data on that scale"],
    ),
    "too little to interpolate": (
        ["interpolate", "DIGITS", "--data=TMP/one.npy"],
        ["one example; expected at least 2"],
    ),
    "sweep of no seed": (["sweep", "TMP/sweep", "--seeds="], ["--seeds: '' is not a list of different whole numbers"]),
    "sweep of a seed twice": (["sweep", "TMP/sweep", "--seeds=0,0"], ["'0,0' is not a list of different"]),
    "sweep of a word": (["sweep", "TMP/sweep", "--betas=1,high"], ["--betas: '1,high'", "different numbers"]),
    "sweep of half a seed": (["sweep", "TMP/sweep", "--seeds=0.5"], ["--seeds: '0.5'", "different whole numbers"]),
    "sweep of a negative seed": (["sweep", "TMP/sweep", "--seeds=0,-1"], ["seed is -1; expected at least 0"]),
    "sweep of an endless seed": (
        ["sweep", "TMP/sweep", "--seeds=4294967296"],
        ["seed is 4294967296"],
    ),
    "sweep of no number": (["sweep", "TMP/sweep", "--betas=nan"], ["beta is nan; expected a finite number"]),
    "sweep of no learning": (
        ["sweep", "TMP/sweep", "--learning_rates=0"],
        ["learning_rate is 0.0; expected"],
    ),
    "sweep of a field set twice": (
        ["sweep", "TMP/sweep", "--betas=1,4", "--config.beta=2"],
        ["--betas and --config.beta set the same field"],
    ),
    "sweep of a contradiction": (
        ["sweep", "TMP/sweep", "--betas=1,4", "--config.objective=iwae"],
        ["beta is 4.0, which objective 'iwae' does not use"],
    ),
    "sweep of an unknown field": (["sweep", "TMP/sweep", "--config.betta=1"], ["Did you mean --config.beta?"]),
    "sweep of a long warm-up": (["sweep", "TMP/sweep", "--config.warmup_steps=9999"], ["warmup_steps is 9999"]),
    "sweep into a file": (["sweep", "TMP/x.npy"], ["TMP/x.npy/seed-0 cannot be written"]),
    "more samples than a picture holds": (["sample", "DIGITS", "--num=100000000"], ["pixels", "--out=x.npz"]),
    "more samples than a disk": (["sample", "DIGITS", "--num=4000000000", "--out=TMP/x.npz"], ["GB are free"]),
    "larger manifold than a picture": (["manifold", "DIGITS", "--num=100000"], ["pixels", "--num"]),
    "output in no folder": (["sample", "DIGITS", "--out=TMP/none/x.png"], ["cannot be written", "--out"]),
    "output is a folder": (["encode", "DIGITS", "--out=TMP"], ["argument --out: 'TMP' has another ending", ".npz"]),
}


@pytest.mark.parametrize("case", COMMAND_LINES)
def test_refused_command(case, refused, tmp_path, request):
    argv, parts = COMMAND_LINES[case]
    rng = np.random.default_rng(0)
    for name, x in {"x": rng.random((30, 8, 8)), "far": np.full((30, 8, 8), 9.0), "one": rng.random((1, 8, 8))}.items():
        np.save(tmp_path / f"{name}.npy", x)
    runs = ("DIGITS", "CONDITIONAL", "VECTORS")
    places = {run: request.getfixturevalue(f"{run.lower()}_run") for run in runs if run in argv}
    if any("VECTORS_FILE" in argument for argument in argv):
        places = {"VECTORS_FILE": request.getfixturevalue("vectors_file"), **places}
    places["TMP"] = tmp_path

    def filled(text):
        for name, path in places.items():
            text = text.replace(name, str(path))
        return text

    before = {place: contents(place) for place in places.values() if place.is_dir()}
    line = refused(vae_main, [filled(argument) for argument in argv])
    for part in parts:
        assert filled(part) in line
    assert before == {place: contents(place) for place in before}


def test_data_that_has_changed_is_refused_and_may_be_given_by_hand(refused, train, vae, tmp_path, monkeypatch):
    from vae_jax.show import pictures, views

    monkeypatch.setattr(views, "draw_run", lambda *_: None)
    monkeypatch.setattr(pictures, "save_curves", lambda *_: None)
    path, run_dir = tmp_path / "x.npy", tmp_path / "run"
    x = np.random.default_rng(0).random((120, 6))
    np.save(path, x)
    train(run_dir, dataset=path, num_epochs=1)
    np.save(path, 1 - x)
    assert "is not what the VAE was trained on" in refused(vae_main, ["encode", run_dir])
    vae("encode", run_dir, "--data", path)
    path.unlink()
    assert "is not there. Give its new place with --data" in refused(vae_main, ["encode", run_dir])
    vae("sample", run_dir)


# Where the border of the process matters.


def run_process(*argv):
    return subprocess.run([sys.executable, *map(str, argv)], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("damage", ["run.json", "every checkpoint"])
def test_damaged_run_is_one_line_on_the_stderr_of_a_process(damage, digits_run, tmp_path):
    run_dir = shutil.copytree(digits_run, tmp_path / "run")
    if damage == "run.json":
        text = (run_dir / "run.json").read_text()
        (run_dir / "run.json").write_text(text.replace('"latent_dim": 2', '"latent_dim": 3'))
    for path in run_dir.glob("checkpoints/*/params/d/*"):
        if damage == "every checkpoint":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = run_process("-m", "vae_jax", "sample", run_dir)
    assert done.returncode == 2 and done.stdout == ""
    assert f"{run_dir}" in one_line(done.stderr) and "damaged" in done.stderr


def test_a_damaged_checkpoint_is_one_line_and_the_one_before_it_is_used(digits_run, tmp_path):
    run_dir = shutil.copytree(digits_run, tmp_path / "run")
    for path in (run_dir / "checkpoints" / "90" / "params" / "d").iterdir():
        path.unlink()
    done = run_process("-m", "vae_jax", "sample", run_dir)
    assert done.returncode == 0 and done.stdout.strip() == str(run_dir / "sample.png")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{run_dir / 'checkpoints' / '90'} is damaged (params/d/")
    assert line.endswith(" is missing): using 75 instead")


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["train.py", "--config.latent_dims=2"], "Did you mean --config.latent_dim?"),
        (["train.py", "--config.batch_size=5000"], "batch_size is 5000"),
        (["-m", "vae_jax", "sample", "nowhere"], "nowhere is not a directory"),
    ],
    ids=str,
)
def test_exit_status_and_stderr_of_a_process(argv, part, tmp_path):
    if argv[0] == "train.py":
        argv = [ROOT / "train.py", "--workdir", tmp_path / "run", *argv[1:]]
    done = run_process(*argv)
    assert done.returncode == 2 and done.stdout == ""
    assert part in one_line(done.stderr)
    assert not (tmp_path / "run").exists()


WITHOUT_JAX = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    {run}
except SystemExit as end:
    assert end.code == {code}, end.code
assert "jax" not in sys.modules and "numpy" not in sys.modules
"""
SCRIPT = "runpy.run_path(sys.argv[0], run_name='__main__')"
MODULE = "runpy.run_module('vae_jax', run_name='__main__', alter_sys=True)"


def test_help_of_train_answers_without_jax():
    done = run_process("-c", WITHOUT_JAX.format(run=SCRIPT, code=0), ROOT / "train.py", "--help")
    assert done.returncode == 0 and done.stderr == ""
    for f in fields(Config):
        assert f"--config.{f.name} " in done.stdout


@pytest.mark.parametrize("argv", [["--help"], *([command, "--help"] for command in COMMANDS)], ids=" ".join)
def test_help_of_commands_answers_without_jax(argv):
    done = run_process("-c", WITHOUT_JAX.format(run=MODULE, code=0), "vae_jax", *argv)
    assert done.returncode == 0 and done.stderr == ""
    for expected in COMMANDS if argv == ["--help"] else ("RUN_DIR", "--checkpoint", "--seed"):
        assert expected in done.stdout


def test_help_of_sweep_answers_without_jax():
    done = run_process("-c", WITHOUT_JAX.format(run=MODULE, code=0), "vae_jax", "sweep", "--help")
    assert done.returncode == 0 and done.stderr == ""
    for expected in ("SWEEP_DIR", "--seeds", "--betas", "--learning_rates", "--config.batch_size"):
        assert expected in done.stdout


def test_a_typo_answers_without_jax():
    done = run_process("-c", WITHOUT_JAX.format(run=SCRIPT, code=2), ROOT / "train.py", "--config.latentdim=3")
    assert done.returncode == 0 and "Did you mean --config.latent_dim?" in one_line(done.stderr)


def test_reader_that_leaves_is_no_error(digits_run, tmp_path):
    command = f"{sys.executable} -m vae_jax sample {digits_run} --out {tmp_path}/x.png | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""


@pytest.mark.parametrize("variables", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii"}], ids=str)
def test_names_that_are_not_ascii(tmp_path, variables):
    run, data = tmp_path / "é", tmp_path / "ä.npy"
    np.save(data, np.random.default_rng(0).random((40, 4), np.float32))
    for argv in (
        [ROOT / "train.py", *train_flags(run, dataset=data, batch_size=20, num_epochs=1)],
        ["-m", "vae_jax", "sample", run, "--num=2", f"--out={run}/ö.npz"],
    ):
        command = [sys.executable, *map(str, argv)]
        done = subprocess.run(command, env=os.environ | variables, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout, done.stderr
    assert (run / "ö.npz").exists() and list(run.glob("checkpoints/*/params"))


@pytest.mark.parametrize("script", (["train.py"], ["-m", "vae_jax"]), ids=str)
def test_version_answers_without_jax(script):
    code = [*script, "--version"]
    done = subprocess.run([sys.executable, "-X", "importtime", *code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "vae_jax 0.1.0\n" and "jaxlib" not in done.stderr
