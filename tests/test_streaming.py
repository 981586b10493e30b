"""Training on a file read piece by piece: every example once an epoch, the same bits however it is stopped."""

import contextlib
import json
import os
import subprocess
import sys
import time
from itertools import count, pairwise
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from conftest import ROOT, one_line, train_flags
from helpers import mlp_vae
from test_train import assert_bit_equal, assert_same_records, final_state

from vae_jax.__main__ import main as vae_main
from vae_jax.cli import console
from vae_jax.data import datasets, files, streaming
from vae_jax.errors import UserError
from vae_jax.objectives import negative_elbo
from vae_jax.run import checkpoints, loop, metrics, runs
from vae_jax.update import init_state, make_stream_train, make_update

pytestmark = pytest.mark.robust

KEY = (3, 4)


def numbered(folder, num, width=3):
    """A file whose rows are their numbers, as floats."""
    path = folder / f"{num}.npy"
    np.save(path, np.repeat(np.arange(num, dtype=np.float32)[:, None], width, 1))
    return path


def stream_of(path, **kwargs):
    return datasets.load(path, stream=True, **kwargs).stream


def numbers(x):
    return x[..., 0].astype(int).ravel()


def epoch(batches, number, steps):
    """The rows of an epoch, in their order."""
    return numbers(batches(number * steps, steps))


@pytest.fixture
def tiny_pieces(monkeypatch):
    """Blocks of 5 rows of 3 floats and windows of 4 such blocks."""
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 5 * 12)
    monkeypatch.setattr(streaming, "WINDOW_BYTES", 4 * 5 * 12)


# splits


def test_the_splits_are_blocks_in_a_fixed_order_and_sized_as_asked(tmp_path):
    path, num = numbered(tmp_path, 12_345), 12_345
    data = datasets.load(path, stream=True, validation_size=1000)
    assert (data.num_train, len(data.validation.x), len(data.test.x)) == (num - 1000 - 1234, 1000, 1234)
    inside = np.concatenate([np.arange(*block) for block in data.stream.blocks])
    splits = [inside, numbers(data.validation.x), numbers(data.test.x)]
    assert sorted(np.concatenate(splits)) == list(range(num))
    assert set(numbers(data.train.x)) <= set(inside) and len(data.train.x) == 10_000
    sizes = data.stream.blocks[:, 1] - data.stream.blocks[:, 0]
    assert set(sizes[:-1]) <= {12, num % 12} and sizes[-1] <= 12  # a thousandth of the file; the last one is cut
    assert all(abs(part.mean() / num - 0.5) < 0.1 for part in splits)


def test_the_splits_depend_on_the_size_of_the_file_alone(tmp_path):
    path = numbered(tmp_path, 3000)
    first = datasets.load(path, stream=True, validation_size=7)
    x = np.load(path)
    np.save(path, x[::-1])
    second = datasets.load(path, stream=True, validation_size=7)
    np.testing.assert_array_equal(second.stream.blocks, first.stream.blocks)
    np.testing.assert_array_equal(second.test.x, 2999 - first.test.x)
    assert second.fingerprint != first.fingerprint


def test_a_small_file_has_the_test_split_that_it_has_in_memory(tmp_path):
    path = numbered(tmp_path, 1999)
    whole, streamed = datasets.load(path), datasets.load(path, stream=True)
    assert set(numbers(streamed.test.x)) == set(numbers(whole.test.x))
    assert streamed.num_train == len(whole.train.x) and streamed.validation is None
    assert streamed.fingerprint != whole.fingerprint  # another order of examples, so another run


def test_what_is_kept_in_memory_is_bounded(tmp_path, monkeypatch):
    path = numbered(tmp_path, 30_000)
    monkeypatch.setattr(streaming, "MAX_KEPT", 40)
    data = datasets.load(path, stream=True)
    assert len(data.test.x) == len(data.train.x) == 40 and data.num_train == 29_960
    monkeypatch.setattr(streaming, "KEPT_BYTES", 7 * 12)
    assert len(datasets.load(path, stream=True).test.x) == 7


# reading


@pytest.mark.parametrize(
    "x",
    [
        np.random.default_rng(0).integers(0, 256, (50, 4), np.uint8),
        np.random.default_rng(0).integers(0, 256, (50, 4, 5)),
        np.random.default_rng(0).random((50, 5, 4, 3), np.float32),
        np.random.default_rng(0).normal(size=(50, 4)).astype(">f8"),
        np.random.default_rng(0).random((50, 2, 3)) > 0.5,
    ],
    ids=lambda x: f"{x.dtype} {x.shape}",
)
def test_examples_are_those_that_are_read_into_memory(tmp_path, x):
    np.save(tmp_path / "x.npy", x)
    whole, streamed = datasets.load(tmp_path / "x.npy"), datasets.load(tmp_path / "x.npy", stream=True)
    batches = streaming.make_batches(streamed.stream, 45, KEY)(2, 1)
    for ours, expected in ((batches[0], whole.train.x), (streamed.test.x, whole.test.x)):
        assert ours.dtype == expected.dtype and ours.dtype.isnative
        assert sorted(map(bytes, ours)) == sorted(map(bytes, np.ascontiguousarray(expected)))
    arrays = (whole.train.x, whole.test.x)
    assert streamed.stream.range == (min(a.min() for a in arrays), max(a.max() for a in arrays))


def test_the_fingerprint_sees_values_shapes_and_types(tmp_path):
    prints = set()
    for x in (
        np.zeros((20, 6), np.uint8),
        np.eye(20, 6, dtype=np.uint8) * np.uint8(7),
        np.zeros((20, 3, 2), np.uint8),
        np.zeros((20, 6), bool),
        np.zeros((21, 6), np.uint8),
    ):
        np.save(tmp_path / "x.npy", x)
        prints.add(datasets.load(tmp_path / "x.npy", stream=True).fingerprint)
    assert len(prints) == 5 and all(len(text) == 16 for text in prints)


# the order of examples


def test_each_epoch_sees_every_example_once_in_another_order(tmp_path, tiny_pieces):
    stream = stream_of(numbered(tmp_path, 5000))
    batches, steps = streaming.make_batches(stream, 50, KEY), 90
    rows = sorted(np.concatenate([np.arange(*block) for block in stream.blocks]))
    epochs = [epoch(batches, number, steps) for number in range(3)]
    assert all(sorted(seen) == rows for seen in epochs)
    assert all(np.mean(a == b) < 0.01 for a, b in pairwise([rows, *epochs]))


def test_the_ragged_rest_is_left_out_and_another_in_another_epoch(tmp_path, tiny_pieces):
    stream = stream_of(numbered(tmp_path, 5000))
    batches = streaming.make_batches(stream, 101, KEY)
    epochs = [set(epoch(batches, number, 44)) for number in range(3)]
    assert all(len(seen) == 4444 for seen in epochs)
    assert all(a != b for a, b in pairwise(epochs))


def test_the_order_is_that_of_the_key(tmp_path):
    stream = stream_of(numbered(tmp_path, 3000))
    one, again, other = (streaming.make_batches(stream, 50, key)(0, 54) for key in (KEY, KEY, (3, 5)))
    np.testing.assert_array_equal(one, again)
    assert np.any(one != other)


def test_any_batches_may_be_asked_for_in_any_order(tmp_path, tiny_pieces):
    stream = stream_of(numbered(tmp_path, 997))
    whole = streaming.make_batches(stream, 32, KEY)(0, 100)
    batches = streaming.make_batches(stream, 32, KEY)
    for first, num in ((0, 1), (27, 2), (3, 60), (99, 1), (0, 100), (55, 3)):
        np.testing.assert_array_equal(batches(first, num), whole[first : first + num])


def test_a_file_that_is_sorted_is_well_mixed(tmp_path):
    """Larger than the window: batches have the mean of the file, and neighbours are rarely in one batch."""
    path, num, size = tmp_path / "x.npy", 300_000, 128
    np.save(path, np.repeat(np.arange(num, dtype=np.float32)[:, None], 128, 1))
    stream = stream_of(path)
    assert num * 512 > 2 * streaming.WINDOW_BYTES
    seen = streaming.make_batches(stream, size, KEY)(0, 600)[..., 0]
    error = num / np.sqrt(12 * size)
    assert abs(np.std(seen.mean(1)) / error - 1) < 0.25
    neighbours = np.mean(np.abs(np.diff(np.sort(seen, 1), axis=1)) < 10)
    assert neighbours < 0.02


# many steps in one call


@pytest.fixture
def training(tmp_path, monkeypatch):
    """run(calls): the state and the metrics after calls of so many steps, and the shapes traced."""
    monkeypatch.setattr(streaming, "CHUNK_BYTES", 7 * 4 * 16)  # 7 batches of 4 examples of 4 floats
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).random((55, 4), np.float32))
    stream, traces = stream_of(path), []

    def objective(params, key, x, vae):
        traces.append(x.shape)
        return negative_elbo(params, key, x, vae)

    vae, optimizer = mlp_vae((4,)), optax.sgd(0.1)
    train = make_stream_train(make_update(vae, objective, optimizer, ema_decay=0.9), 4)
    start = jax.jit(lambda seed: init_state(vae, optimizer, jax.random.key(seed), stream.x, ema=True))

    def run(calls, seed=0, state=None):
        state, sums = start(np.uint32(seed)) if state is None else state, []
        for num_steps in calls:
            state, new = train(state, stream, num_steps)
            sums.append(new)
        return state, sums

    return SimpleNamespace(run=run, traces=traces, stream=stream)


def host(state):
    return jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key)))


@pytest.mark.parametrize("calls", [(1,) * 30, (0, 7, 7, 16), (3, 20, 0, 7), (29, 1)], ids=str)
def test_any_split_of_the_steps_into_calls_is_bit_equal(training, calls):
    (whole, sums), (split, parts) = training.run((30,)), training.run(calls)
    assert whole.step == 30
    assert_bit_equal(host(split), host(whole))
    np.testing.assert_allclose(sum(part["loss"] for part in parts), sums[0]["loss"], rtol=1e-6)


def test_it_compiles_once(training):
    training.run((0,))
    traced = len(training.traces)
    training.run((1, 12, 5, 40), seed=1)
    assert len(training.traces) == traced and set(training.traces) == {(4, 4)}


def test_a_call_is_a_function_of_the_state_whatever_was_called_before(training):
    whole, _ = training.run((20,))
    early, _ = training.run((11,))
    copy = jax.tree.map(lambda a: a.copy(), early)
    training.run((17,), seed=5)
    training.run((9,), state=early)
    assert_bit_equal(host(training.run((9,), state=copy)[0]), host(whole))


def test_reading_ahead_is_reading(training):
    asked = []
    read = streaming.read_ahead(lambda n: asked.append(n) or n * n)
    assert [read(n) for n in (0, 1, 2, 9, 3)] == [0, 1, 4, 81, 9]
    assert asked.count(0) == asked.count(1) == asked.count(2) == 1  # each once, as long as they follow each other


def test_what_reading_raises_is_raised_when_it_is_asked_for():
    read = streaming.read_ahead(lambda n: 1 // (3 - n))
    assert [read(n) for n in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        read(3)


# runs


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """1,900 pictures of a bright square somewhere."""
    path = tmp_path_factory.mktemp("data") / "squares.npy"
    rng = np.random.default_rng(0)
    x = np.zeros((1900, 8, 8), np.uint8)
    for image, row, column in zip(x, *rng.integers(0, 5, (2, len(x))), strict=True):
        image[row : row + 4, column : column + 4] = 250
    np.save(path, x)
    return path


STREAM = {"stream": "true", "binarization": "dynamic", "ema_decay": 0.9, "num_epochs": 3, "batch_size": 100}


@pytest.fixture(scope="module")
def streamed_run(train, squares, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "streamed"
    train(run_dir, dataset=squares, **STREAM)
    return run_dir


def test_a_streamed_run_says_what_it_is(streamed_run, squares):
    settings, data = runs.read_run(streamed_run)
    assert settings.stream and settings.dataset == str(squares)
    assert (data.num_train, data.num_validation, data.num_test) == (1710, 0, 190)
    assert data.shape == (8, 8, 1) and data.range == (0, 250 / 255)
    assert {path.stem for path in streamed_run.glob("*.png")} >= {"samples", "reconstructions", "curves"}


@pytest.mark.slow
def test_it_learns_what_a_run_in_memory_learns(squares, train, tmp_path, no_pictures):
    """In epochs of one step and without noise, where the order of examples cannot matter."""
    fields = STREAM | {"dataset": squares, "batch_size": 1710, "num_epochs": 30, "eval_epochs": 10}
    fields |= {"posterior": "delta", "binarization": "none"}
    for stream in ("true", "false"):
        train(tmp_path / stream, **fields | {"stream": stream})
    for ours, theirs in zip(metrics.read(tmp_path / "true"), metrics.read(tmp_path / "false"), strict=True):
        assert (ours["step"], ours["split"]) == (theirs["step"], theirs["split"])
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


@pytest.mark.parametrize("stops", [pytest.param((7,), marks=pytest.mark.slow), (22, 20, 1)], ids=str)
def test_stopped_and_resumed_equals_unbroken(
    streamed_run, squares, stops, train, train_py, tmp_path, no_pictures, monkeypatch
):
    for steps in stops:
        calls = count()

        @contextlib.contextmanager
        def stop_signals(calls=calls, steps=steps):
            yield lambda: next(calls) >= steps

        with monkeypatch.context() as patch:
            patch.setattr(console, "stop_signals", stop_signals)
            patch.setattr(loop, "time", SimpleNamespace(monotonic=count(1.0).__next__))  # one step per call
            train(tmp_path, dataset=squares, **STREAM)
    assert checkpoints.load(tmp_path).step == sum(stops)
    train(tmp_path, dataset=squares, **STREAM)
    assert_bit_equal(final_state(tmp_path), final_state(streamed_run))
    assert_same_records(tmp_path, streamed_run)


@pytest.mark.slow
def test_pseudo_inputs_begin_as_examples_of_the_file(squares, train, tmp_path, no_pictures):
    train(tmp_path, dataset=squares, **STREAM | {"prior": "vamp", "num_epochs": 1, "learning_rate": 1e-9})
    inputs = np.asarray(checkpoints.load(tmp_path).params["prior"]["pseudo_inputs"])
    examples = {bytes(row) for row in np.load(squares)}
    assert {bytes(row) for row in np.round(255 * inputs).astype(np.uint8)[..., 0]} <= examples


def test_the_commands_read_the_same_splits(streamed_run, squares, vae, tmp_path):
    result = json.loads(vae("evaluate", streamed_run, "--num_samples=2"))
    assert result["num_examples"] == 190
    assert result["elbo"] == pytest.approx(metrics.read(streamed_run)[-1]["elbo"], rel=0.02)
    assert json.loads(vae("evaluate", streamed_run, "--num_samples=1", "--split=train"))["num_examples"] == 1710
    vae("reconstruct", streamed_run, "--out", tmp_path / "x.png")
    vae("encode", streamed_run, "--data", squares, "--out", tmp_path / "x.npz")
    assert len(np.load(tmp_path / "x.npz")["mean"]) == 1900


# memory

# Of this process; getrusage counts in that of the one that started it.
PEAK = """
with open("/proc/self/status") as file:
    print(next(line for line in file if line.startswith("VmHWM")).split()[1])
"""
READ = """
import sys
from vae_jax.data import datasets, streaming
stream = datasets.load(sys.argv[1], stream=True).stream
batches = streaming.make_batches(stream, 128, (0, 1))
size = streaming.steps_per_chunk(stream, 128)
read = streaming.read_ahead(lambda n: batches(n * size, size))
for n in range(12):
    assert read(n).shape == (size, 128, 28, 28, 1)
"""
TRAIN = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code
"""
needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="there is no /proc")


def sparse(path, size):
    """A file of black images of 28 x 28 and `size` bytes, which takes no room on the disk."""
    np.lib.format.open_memmap(path, "w+", np.uint8, (size // 784, 28, 28))
    return path


def peak_memory(code, *argv):
    """Of a process that runs the code, in bytes."""
    command = [sys.executable, "-c", code + PEAK, *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1]) * 1024


@needs_proc
def test_memory_does_not_grow_with_the_file(tmp_path):
    small, large = (peak_memory(READ, sparse(tmp_path / f"{mb}.npy", mb << 20)) for mb in (200, 1000))
    assert large < small + 20e6
    assert large < 300e6


@needs_proc
@pytest.mark.slow
def test_memory_of_training_does_not_grow_with_the_file(tmp_path):
    """Which is read whole once, and once more by an epoch of a few large batches."""
    peaks = []
    for mb in (250, 1000):
        path = sparse(tmp_path / f"{mb}.npy", mb << 20)
        fields = {"dataset": path, "stream": "true", "num_epochs": 1, "batch_size": 4096}
        flags = train_flags(tmp_path / f"run{mb}", **fields)
        peaks.append(peak_memory(TRAIN, ROOT / "train.py", *flags))
        path.unlink()
    assert peaks[1] < peaks[0] + 50e6


# bad input


def saved(name, x):
    def write(folder):
        np.save(folder / name, x)
        return folder / name

    return write


def text_file(folder):
    (folder / "x.npy").write_text("1, 2, 3")
    return folder / "x.npy"


def shortened(folder):
    path = numbered(folder, 300)
    os.truncate(path, path.stat().st_size - 1)
    return path


GREY = np.random.default_rng(0).random((500, 6))
HOLED = np.where(np.arange(3000).reshape(500, 6) == 2345, np.nan, GREY)
REFUSED = {
    "name": (lambda folder: "digits", {}, ["stream is true, but 'digits' is not a .npy file", "--config.stream=false"]),
    "npz": (
        lambda folder: np.savez(folder / "x.npz", x=GREY) or folder / "x.npz",
        {},
        ["x.npz' is not a .npy file"],
    ),
    "missing file": (lambda folder: folder / "x.npy", {}, ["x.npy' is not a .npy file"]),
    "text": (text_file, {}, ["Cannot read", "numpy.save"]),
    "shortened": (shortened, {}, ["its header announces 3600 bytes of values, but it holds 3599"]),
    "columns": (saved("x.npy", np.asfortranarray(GREY)), {}, ["Fortran order; save numpy.ascontiguousarray(x)"]),
    "words": (saved("x.npy", np.array([["a", "b"]] * 9)), {}, ["holds values of type <U1"]),
    "one number per example": (saved("x.npy", np.zeros(9)), {}, ["has shape (9,)"]),
    "one example": (saved("x.npy", np.zeros((1, 6))), {}, ["holds one example"]),
    "not a number": (
        saved("x.npy", HOLED),
        {},
        ["x.npy' holds NaN, infinite or too large values (1; the first in row 390, column 5)"],
    ),
    "large integers": (saved("x.npy", np.arange(3000).reshape(500, 6)), {}, ["holds integers from 0 to 2999"]),
    "small integers": (saved("x.npy", np.full((500, 6), 178)), {}, ["x.npy' is a table of int64 from 178 to 178"]),
    "channels first": (saved("x.npy", np.zeros((500, 2, 6, 6))), {}, ["channels first", "x.transpose(0, 2, 3, 1)"]),
    "bits as integers": (saved("x.npy", np.eye(200, 6, dtype=np.uint8)), {}, ["Save it as bool"]),
    "outside [0, 1]": (saved("x.npy", 9 * GREY), {}, ["likelihood 'bernoulli' needs data in [0, 1]"]),
    "classes": (
        saved("x.npy", GREY),
        {"classes": "1,2"},
        ["Got classes for", "streams without labels. Leave classes empty."],
    ),
    "conditional": (saved("x.npy", GREY), {"conditional": "true"}, ["conditional is true but the data has no labels"]),
    "validation": (saved("x.npy", GREY), {"validation_size": 450}, ["validation_size=450", "from 0 to 449"]),
    "static": (saved("x.npy", GREY), {"binarization": "static"}, ["'static' keeps", "--config.binarization=dynamic"]),
    "batch above the data": (saved("x.npy", GREY), {"batch_size": 451}, ["at most the 450 training examples"]),
}


@pytest.fixture
def refused(capsys):
    """refused(main, argv): its one line; it exits with 2."""

    def call(main, argv):
        with jax.numpy_dtype_promotion("standard"):
            assert console.run(main, [str(argument) for argument in argv]) == 2
        return one_line(capsys.readouterr().err)

    return call


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, refused, train_py, tmp_path):
    write, fields, parts = REFUSED[case]
    line = refused(train_py.main, train_flags(tmp_path / "run", dataset=write(tmp_path), stream="true", **fields))
    assert all(part in line for part in parts)
    assert not (tmp_path / "run").exists()


def test_a_sweep_is_refused(refused, squares, tmp_path):
    line = refused(vae_main, ["sweep", tmp_path / "s", f"--config.dataset={squares}", "--config.stream=true"])
    assert "A sweep trains on examples in memory, and stream is true" in line and "train.py" in line
    assert not (tmp_path / "s").exists()


def test_another_file_is_another_run(refused, squares, streamed_run, train_py, tmp_path):
    flags = train_flags(streamed_run, dataset=squares, **STREAM)
    x, status = np.load(squares), squares.stat()
    try:
        np.save(squares, x[::-1])
        assert "the data (was" in refused(train_py.main, flags)
        assert "is not what the VAE was trained on" in refused(vae_main, ["evaluate", streamed_run])
    finally:
        np.save(squares, x)
        os.utime(squares, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", ["shortened", "rewritten", "replaced", "removed"])
def test_a_file_that_changes_while_it_is_read_is_refused(change, tmp_path):
    """Not even its first batch is one of another file, and a shorter file does not end the process."""
    path = numbered(tmp_path, 500)
    stream = stream_of(path)
    time.sleep(0.02)  # the clock of a file system ticks every few milliseconds
    if change == "shortened":
        os.truncate(path, 2000)
    elif change == "rewritten":
        np.save(path, np.full((500, 3), np.nan, np.float32))
    elif change == "replaced":
        numbered(tmp_path, 499).rename(path)
    else:
        path.unlink()
    with pytest.raises(UserError, match="Expected the file as it was when first read") as caught:
        streaming.make_batches(stream, 10, KEY)(0, 1)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_not_finite_is_never_trained_on(tmp_path):
    """Though the file keeps its size and its time, as after a fault of the disk."""
    path = numbered(tmp_path, 500)
    stream, status = stream_of(path), path.stat()
    x, row = np.load(path), stream.blocks[3, 0]
    x[row, 1] = np.nan
    np.save(path, x)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UserError, match=rf"holds NaN.*\(1; the first in row {row}, column 1\)"):
        streaming.make_batches(stream, 450, KEY)(0, 1)


def test_a_file_beyond_memory_is_told_of_streaming(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match=r"the limit here is 1000\. .*--config\.stream=true"):
        datasets.load(numbered(tmp_path, 500))
    assert stream_of(numbered(tmp_path, 500)).num_examples == 450
