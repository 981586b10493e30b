"""train.py: one command from flags to a run directory, and resuming it as if it had never stopped."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from itertools import count
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import ROOT, contents, mostly_slow, train_flags
from PIL import Image

from vae_jax import build, config, objectives, update
from vae_jax.cli import console
from vae_jax.data import datasets, inputs
from vae_jax.errors import UserError
from vae_jax.run import checkpoints, loop, metrics, runs
from vae_jax.show import views

DYNAMIC = {"binarization": "dynamic", "ema_decay": 0.9, "num_epochs": 3}
KEYS = {"step", "epoch", "split", "loss", "elbo", "log_likelihood", "kl"}


def final_state(run_dir):
    """Everything that the latest checkpoint holds, as NumPy arrays."""
    settings, data = runs.read_run(run_dir)
    vae = build.make_vae(settings, data)
    optimizer = build.make_optimizer(settings, data.num_train // settings.batch_size)
    start = partial(update.init_state, vae, optimizer, ema=settings.ema_decay > 0)
    like = jax.eval_shape(start, jax.random.key(1), np.ones((1, *data.shape), np.float32))
    state, totals = checkpoints.resume(run_dir, like)
    return jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key))), totals


def assert_bit_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_same_records(run_dir, other):
    """The same metrics to float precision, but for the speed."""
    records, others = metrics.read(run_dir), metrics.read(other)
    assert [r.keys() for r in records] == [r.keys() for r in others]
    for a, b in zip(records, others, strict=True):
        for name in a.keys() - {"examples_per_second"}:
            assert a[name] == (pytest.approx(b[name], rel=1e-5, abs=1e-5) if isinstance(b[name], float) else b[name])


def picture(path):
    """The pixels of a PNG, which must show something."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image)
    assert pixels.std() > 0
    return pixels


@pytest.fixture
def interrupt(monkeypatch, train_py):
    """interrupt(n): the next run makes one step per call and stops after n of them, as at a signal; None: runs on."""

    def set_up(steps):
        if steps is None:
            monkeypatch.undo()
            return

        @contextmanager
        def stop_signals():
            calls = count()
            yield lambda: next(calls) >= steps

        monkeypatch.setattr(console, "stop_signals", stop_signals)
        monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=count(1.0).__next__))

    return set_up


# what a run leaves behind


def test_run_directory_describes_itself(digits_run):
    assert {path.name for path in digits_run.iterdir()} == {
        "run.json",
        "metrics.jsonl",
        "checkpoints",
        "reconstructions.png",
        "samples.png",
        "latents.png",
        "manifold.png",
        "curves.png",
    }
    run = json.loads((digits_run / "run.json").read_text())
    assert run["config"] == config.to_json(runs.read_run(digits_run)[0])
    assert run["config"]["hidden_sizes"] == [8] and run["config"]["num_epochs"] == 6
    dataset, found = datasets.load("digits"), os.environ.get("TFDS_DATA_DIR") or None
    assert run["data"] == {
        "shape": [8, 8, 1],
        "classes": [],
        "range": [0, 1],
        "num_train": 1500,
        "num_validation": 0,
        "num_test": 297,
        "fingerprint": dataset.fingerprint,
        "data_dir": found and os.path.abspath(found),
        "num_covariates": 0,
        "names": [],
        "columns": [],
        "scaling": None,
        "covariate_scaling": None,
        "spread": None,
    }
    assert run["versions"]["jax"] == jax.__version__ and run["versions"]["python"] == sys.version.split()[0]


def test_metrics_have_their_keys_on_every_line(digits_run):
    records = [json.loads(line) for line in (digits_run / "metrics.jsonl").read_text().splitlines()]
    assert [(r["epoch"], r["split"]) for r in records] == [(e, s) for e in range(1, 7) for s in ("train", "test")]
    for record in records:
        assert record.keys() >= KEYS
        assert record["step"] == 15 * record["epoch"]
        assert record["elbo"] == pytest.approx(record["log_likelihood"] - record["kl"], rel=1e-5)
        assert record["loss"] == pytest.approx(-record["elbo"], rel=1e-6)


@pytest.mark.parametrize("name", ["reconstructions", "samples", "latents", "manifold", "curves"])
def test_pictures_show_something(digits_run, name):
    assert min(picture(digits_run / f"{name}.png").shape[:2]) > 100


@pytest.mark.parametrize("name", ["reconstructions", "samples", "curves"])
def test_feature_vectors_are_drawn_too(vectors_run, name):
    picture(vectors_run / f"{name}.png")
    assert not (vectors_run / "manifold.png").exists()


def test_loss_goes_down(digits_run):
    for split in ("train", "test"):
        losses = [record["loss"] for record in metrics.read(digits_run) if record["split"] == split]
        assert losses[-1] < losses[0] - 0.5
        assert losses == sorted(losses, reverse=True)


def test_stdout_carries_the_last_record_and_stderr_a_line_an_evaluation(train, tmp_path, capfd):
    result = train(tmp_path / "run")
    out, err = capfd.readouterr()
    assert out == ""  # `train` has taken the one line
    assert result == {"run_dir": str(tmp_path / "run"), **metrics.read(tmp_path / "run")[-1]}
    lines = err.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == ["epoch 1  test", "epoch 2  test"]
    assert lines[-1].startswith("Bernoulli of grey values")
    for word in ("loss", "log_likelihood", "kl", "active_units", "examples/s", "left"):
        assert word in lines[0]


def test_evaluation_is_a_loop_over_every_example(vectors_run, vectors_file):
    """The ragged last batch of 703 test examples counts exactly."""
    record = metrics.read(vectors_run)[-1]
    _, _, vae, params, _ = checkpoints.load(vectors_run)
    one = jax.jit(lambda key, x: objectives.elbo(params, key, x, vae))
    examples, key = datasets.load(vectors_file).test.x, jax.random.key(0)
    terms = [one(jax.random.fold_in(key, i), x[None]) for i, x in enumerate(examples)]
    for name in ("log_likelihood", "kl"):
        expected = np.mean([getattr(term, name)[0] for term in terms], dtype=np.float64)
        assert record[name] == pytest.approx(expected, rel=1e-5)


def test_validation_split_is_what_the_curves_are_of(conditional_run):
    assert {record["split"] for record in metrics.read(conditional_run)} == {"train", "validation"}
    _, data = runs.read_run(conditional_run)
    assert (data.num_train, data.num_validation, data.num_test) == (1400, 100, 297)


def test_pictures_of_every_nth_epoch(train, tmp_path):
    train(tmp_path, num_epochs=3, picture_epochs=2)
    assert [path.name for path in tmp_path.glob("epoch-*")] == ["epoch-2"]
    picture(tmp_path / "epoch-2" / "samples.png")


def test_step_is_traced_once_a_run_however_often_it_is_called(train, tmp_path, no_pictures, interrupt, monkeypatch):
    traces = []
    make_train = update.make_train

    def counted(*args):
        train = make_train(*args)
        return lambda *args: traces.append(1) or train(*args)

    interrupt(20)
    monkeypatch.setattr(update, "make_train", counted)
    train(tmp_path, **DYNAMIC)
    assert len(traces) == 1
    train(tmp_path, **DYNAMIC)
    assert len(traces) == 2


def test_objective_is_traced_as_often_in_a_long_run_as_in_a_short_one(train, tmp_path, no_pictures, monkeypatch):
    traces = []
    negative_elbo = objectives.negative_elbo
    monkeypatch.setattr(objectives, "negative_elbo", lambda *a, **k: traces.append(1) or negative_elbo(*a, **k))
    train(tmp_path / "short", num_epochs=1)
    short = len(traces)
    train(tmp_path / "long", num_epochs=5)
    assert len(traces) == 2 * short


# stopping and resuming


@pytest.fixture(scope="module")
def unbroken(train, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    train(run_dir, **DYNAMIC)
    return run_dir


def test_seed_decides_everything(unbroken, train, tmp_path, no_pictures):
    train(tmp_path / "same", **DYNAMIC)
    assert_bit_equal(final_state(tmp_path / "same"), final_state(unbroken))
    assert_same_records(tmp_path / "same", unbroken)
    train(tmp_path / "other", **DYNAMIC, seed=1)
    weights = [jax.tree.leaves(final_state(run_dir)[0].params) for run_dir in (unbroken, tmp_path / "other")]
    assert all(np.any(one != other) for one, other in zip(*weights, strict=True))


@pytest.mark.parametrize(
    "stops", [(0,), pytest.param((15,), marks=pytest.mark.slow), (7, 1, 30)], ids=lambda stops: f"after {stops}"
)
def test_stopped_and_resumed_equals_unbroken(unbroken, stops, train, tmp_path, no_pictures, interrupt, capsys):
    for done, steps in zip(np.cumsum(stops), stops, strict=True):
        interrupt(steps)
        train(tmp_path, **DYNAMIC)
        assert f"stopped at step {done} of 45; the same command resumes it" in capsys.readouterr().err
        assert checkpoints.load(tmp_path).step == done
    interrupt(None)
    train(tmp_path, **DYNAMIC)
    if stops[0]:
        assert f"resumed at step {sum(stops)} of 45" in capsys.readouterr().err
    assert_bit_equal(final_state(tmp_path), final_state(unbroken))
    assert_same_records(tmp_path, unbroken)


@pytest.mark.robust
@pytest.mark.parametrize("lost", ["record", "checkpoint"])
def test_a_crash_between_record_and_checkpoint_leaves_no_trace(
    unbroken, lost, train, tmp_path, no_pictures, monkeypatch
):
    module, name = {"record": (metrics, "append"), "checkpoint": (checkpoints, "save")}[lost]
    original, calls = getattr(module, name), count()

    def crash_at_second(*args):
        if next(calls) == 1:
            raise RuntimeError("power cut")
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, crash_at_second)
        with pytest.raises(RuntimeError):
            train(tmp_path, **DYNAMIC)
    train(tmp_path, **DYNAMIC)
    assert_bit_equal(final_state(tmp_path), final_state(unbroken))
    assert_same_records(tmp_path, unbroken)


@pytest.mark.slow
def test_stopped_between_two_evaluations_without_an_average(train, tmp_path, no_pictures, interrupt):
    fields = {"num_epochs": 4, "eval_epochs": 2}
    train(tmp_path / "unbroken", **fields)
    interrupt(15)
    train(tmp_path / "broken", **fields)
    interrupt(None)
    train(tmp_path / "broken", **fields)
    assert_bit_equal(final_state(tmp_path / "broken"), final_state(tmp_path / "unbroken"))
    assert_same_records(tmp_path / "broken", tmp_path / "unbroken")
    assert [record["step"] for record in metrics.read(tmp_path / "broken")] == [30, 30, 60, 60]


@pytest.mark.robust
def test_a_crash_far_from_an_evaluation_loses_little(train, tmp_path, no_pictures, monkeypatch):
    fields = {"num_epochs": 4, "eval_epochs": 4}
    train(tmp_path / "unbroken", **fields)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "MAX_SECONDS", -1)
        patch.setattr(metrics, "append", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path / "broken", **fields)
    assert 0 < checkpoints.load(tmp_path / "broken").step < 60
    train(tmp_path / "broken", **fields)
    assert_bit_equal(final_state(tmp_path / "broken"), final_state(tmp_path / "unbroken"))
    assert_same_records(tmp_path / "broken", tmp_path / "unbroken")


def test_finished_run_stays_as_it_is(train, digits_run):
    before = contents(digits_run)
    result = train(digits_run, num_epochs=6)
    assert result["step"] == 90
    assert contents(digits_run) == before


@pytest.mark.robust
def test_pictures_lost_to_a_crash_are_drawn_by_the_same_command(train, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(views, "draw_run", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path)
    train(tmp_path)
    assert {path.stem for path in tmp_path.glob("*.png")} >= {"samples", "reconstructions", "curves"}


def test_changed_config_is_refused_with_old_and_new(train, digits_run):
    before = contents(digits_run)
    with pytest.raises(UserError) as caught:
        train(digits_run, num_epochs=6, hidden_sizes=64, beta=4)
    for part in (str(digits_run), "hidden_sizes (was [8], now [64])", "beta (was 1.0, now 4.0)", "--restart"):
        assert part in str(caught.value)
    assert "latent_dim" not in str(caught.value)
    assert contents(digits_run) == before


@pytest.mark.robust
def test_restart_moves_the_old_run_aside_intact(train, tmp_path, no_pictures, capsys):
    run_dir = tmp_path / "run"
    train(run_dir, num_epochs=1)
    first = contents(run_dir)
    train(run_dir, "--restart", num_epochs=1, seed=1)
    assert f"moved the earlier run to {run_dir}.1" in capsys.readouterr().err
    assert contents(tmp_path / "run.1") == first
    assert runs.read_run(run_dir)[0].seed == 1
    train(run_dir, "--restart", num_epochs=1, seed=2)
    assert contents(tmp_path / "run.1") == first and (tmp_path / "run.2").is_dir()


# more epochs


@pytest.mark.robust
@pytest.mark.parametrize(
    "fields",
    [{"schedule": "burda", "warmup_steps": 4}, pytest.param({"schedule": "constant"}, marks=pytest.mark.slow)],
    ids=str,
)
def test_more_epochs_end_as_if_they_had_been_asked_for_at_once(fields, train, tmp_path, no_pictures, capsys):
    fields = DYNAMIC | {"batch_size": 500, "num_epochs": 6} | fields  # a stage of burda begins after 1 and 4 epochs
    train(tmp_path / "unbroken", **fields)
    for num_epochs in (2, 6):
        train(tmp_path / "longer", **fields | {"num_epochs": num_epochs})
    assert "resumed at step 6 of 18" in capsys.readouterr().err
    assert_bit_equal(final_state(tmp_path / "longer"), final_state(tmp_path / "unbroken"))
    assert_same_records(tmp_path / "longer", tmp_path / "unbroken")
    runs_json = [(tmp_path / name / "run.json").read_bytes() for name in ("longer", "unbroken")]
    assert runs_json[0] == runs_json[1]


@pytest.mark.robust
def test_more_epochs_than_a_schedule_has_go_on_as_the_error_says(train, tmp_path, no_pictures):
    run_dir, fields = tmp_path / "run", {"schedule": "cosine", "batch_size": 500}
    train(run_dir, num_epochs=1, **fields)
    before = contents(run_dir)
    with pytest.raises(UserError) as caught:
        train(run_dir, num_epochs=2, **fields)
    flags = re.findall(r"--(?:config\.init_from|workdir)=[^ ]*[^ .]", str(caught.value))
    result = train(run_dir, *flags, num_epochs=2, **fields)
    assert result["run_dir"] == f"{run_dir}-more" and result["step"] == 6
    assert result["loss"] < metrics.read(run_dir)[-1]["loss"] and contents(run_dir) == before


# a run that begins with the weights of another one

STILL = {"optimizer": "sgd", "learning_rate": 1e-30, "ema_decay": 0}  # what it adds is lost in rounding


@pytest.mark.robust
def test_run_begins_with_the_averaged_weights_of_another(train, tmp_path, no_pictures, monkeypatch):
    train(tmp_path / "first", **DYNAMIC)
    monkeypatch.chdir(tmp_path)
    train(tmp_path / "second", num_epochs=1, init_from="first", objective="iwae", num_samples=3, **STILL)
    assert_bit_equal(checkpoints.load(tmp_path / "second").params, checkpoints.load(tmp_path / "first").params)
    assert runs.read_run(tmp_path / "second")[0].init_from == str(tmp_path / "first")


@pytest.mark.slow
def test_resumed_run_needs_no_other_one(train, tmp_path, interrupt, no_pictures):
    train(tmp_path / "first", **DYNAMIC)
    fields = {**DYNAMIC, "init_from": tmp_path / "first"}
    train(tmp_path / "unbroken", **fields)
    interrupt(20)
    assert train(tmp_path / "broken", **fields)["step"] == 15
    interrupt(None)
    (tmp_path / "first").rename(tmp_path / "gone")
    train(tmp_path / "broken", **fields)
    assert_bit_equal(final_state(tmp_path / "broken"), final_state(tmp_path / "unbroken"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"activation": "tanh"}, r"activation \(there 'gelu', here 'tanh'\)\. Set the same"),
        ({"hidden_sizes": "8,8", "latent_dim": 3}, r"hidden_sizes .*, latent_dim \(there 2, here 3\)"),
        ({"dataset": "vectors"}, r"the shape of an example \(there \(8, 8, 1\), here \(6,\)\)"),
        ({"init_from": "nothing"}, "nothing is not a directory; expected a run directory"),
        ({"init_from": "."}, "has no run.json; expected a run directory"),
    ],
)
def test_weights_of_another_model_are_refused(fields, says, train, digits_run, vectors_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if fields.get("dataset") == "vectors":
        fields = {"dataset": vectors_file, "batch_size": 20, "likelihood": "gaussian"}
    with pytest.raises(UserError, match=says):
        train(tmp_path / "run", **{"init_from": digits_run, **fields})
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_are_refused(train, tmp_path, no_pictures, monkeypatch):
    train(tmp_path / "first", num_epochs=1)
    source = checkpoints.load(tmp_path / "first")
    source.params["decoder"]["output"]["bias"] = source.params["decoder"]["output"]["bias"].at[3].set(np.inf)
    monkeypatch.setattr(checkpoints, "load", lambda _, vae: source)
    with pytest.raises(UserError, match=r"not finite at its step 15 \(decoder/output/bias\)\. Choose another run"):
        train(tmp_path / "run", num_epochs=1, init_from=tmp_path / "first")
    assert not (tmp_path / "run").exists()


def test_weights_of_other_classes_are_refused(train, conditional_run, tmp_path):
    with pytest.raises(UserError, match=r"the classes \(there 'the classes 0 to 9', here 'the classes 0 to 1'\)"):
        train(tmp_path / "run", init_from=conditional_run, conditional="true", classes="0,1")


def test_restart_with_its_own_weights_is_refused(train, tmp_path, no_pictures):
    train(tmp_path / "run", num_epochs=1)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="which --restart would move aside"):
        train(tmp_path / "run", "--restart", num_epochs=1, init_from=tmp_path / "run")
    assert contents(tmp_path) == before


# signals


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=["SIGTERM", "Ctrl-C"]
)
def test_signal_saves_and_says_so_by_the_exit_status(number, train, tmp_path):
    fields = {"num_epochs": 100_000, "eval_epochs": 1000}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *train_flags(tmp_path / "run", **fields)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / "checkpoints").is_dir():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        time.sleep(0.7)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, err
    assert err.splitlines()[-1].endswith("of 1500000; the same command resumes it") and "Traceback" not in err
    assert json.loads(out)["run_dir"] == str(tmp_path / "run")
    step = checkpoints.load(tmp_path / "run").step
    assert f"stopped at step {step} of" in err


def test_second_interrupt_interrupts():
    with console.stop_signals() as stopped:
        assert stopped() == 0
        signal.raise_signal(signal.SIGTERM)
        assert stopped() == 143
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with console.stop_signals() as stopped:
        signal.raise_signal(signal.SIGINT)
        assert stopped() == 130
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# one's own data


def grey(n=40, size=6):
    """Pictures of a bright square somewhere."""
    rng = np.random.default_rng(0)
    x = np.zeros((n, size, size), np.uint8)
    for image in x:
        row, column = rng.integers(0, size - 2, 2)
        image[row : row + 3, column : column + 3] = 250
    return x


def npy(folder):
    np.save(folder / "x.npy", grey())
    return folder / "x.npy"


def npz_with_labels(folder):
    np.savez(folder / "x.npz", x=np.repeat(grey()[..., None], 3, -1), y=np.arange(40) % 2)
    return folder / "x.npz"


def png_folder(folder):
    (folder / "images").mkdir()
    for i, image in enumerate(grey()):
        Image.fromarray(image).save(folder / "images" / f"{i:02}.png")
    return folder / "images"


@pytest.mark.robust
@pytest.mark.parametrize(
    ("make", "fields", "shape"),
    mostly_slow(
        [
            (npy, {"binarization": "static"}, (6, 6, 1)),
            (npz_with_labels, {"conditional": "true", "likelihood": "gaussian_scalar"}, (6, 6, 3)),
            (
                png_folder,
                {"binarization": "dynamic", "network": "convolutional", "network_options": '{"channels": [4]}'},
                (6, 6, 1),
            ),
        ],
        lambda case: case[0] is png_folder,
    ),
    ids=["npy", "npz with labels", "folder"],
)
def test_own_data(make, fields, shape, train, tmp_path):
    run_dir = tmp_path / "run"
    result = train(run_dir, dataset=make(tmp_path), num_epochs=8, batch_size=12, **fields)
    assert runs.read_run(run_dir)[1].shape == shape
    assert result["step"] == 24
    losses = [record["loss"] for record in metrics.read(run_dir) if record["split"] == "train"]
    assert losses[-1] < losses[0]
    for name in ("reconstructions", "samples", "latents", "manifold", "curves"):
        picture(run_dir / f"{name}.png")


def test_static_binarisation_is_the_same_in_every_run_and_dynamic_is_not():
    dataset = datasets.load("digits")
    static, dynamic = (config.Config(binarization=name) for name in ("static", "dynamic"))
    x, again = (inputs.training_examples(dataset, static).x for _ in range(2))
    assert_bit_equal(x, again)
    assert set(np.unique(x)) == {0, 1}
    prepare = inputs.make_prepare(dynamic)
    stored = inputs.training_examples(dataset, dynamic).x
    a, b = (prepare(jax.random.key(seed), stored) for seed in (0, 1))
    assert np.any(np.asarray(a) != np.asarray(b)) and set(np.unique(a)) == {0, 1}
    for split in ("train", "test"):
        held_out = [inputs.evaluation_examples(dataset, split, c).x for c in (static, dynamic)]
        assert_bit_equal(*held_out)
