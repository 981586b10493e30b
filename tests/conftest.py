"""Guards: what jax lets pass elsewhere is an error in the tests."""

import contextlib
import gc
import importlib.util
import io
import json
import os
import re
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Nearly all the time of the tests is compilation, so what is compiled is kept for all workers and for the next run.
# What is measured in time is measured in tests/benchmarks.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/vae_jax-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import numpy as np
import pytest

from vae_jax.cli import console
from vae_jax.show import pictures, views

gc.set_threshold(100_000, 50, 100)  # tracing makes so many objects that their collection takes a twentieth of the time
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


ROOT = Path(__file__).resolve().parent.parent

TINY = {
    "hidden_sizes": 8,
    "latent_dim": 2,
    "num_epochs": 2,
    "eval_epochs": 1,
    "schedule": "constant",
    "ema_decay": 0,
    "learning_rate": 0.01,
}


def mostly_slow(cases, fast):
    """Parameters of a test: each of `cases`, marked slow but for those that `fast` is true of."""
    marks = {True: (), False: pytest.mark.slow}
    return [pytest.param(*(c if isinstance(c, tuple) else (c,)), marks=marks[bool(fast(c))]) for c in cases]


def train_flags(run_dir, *flags, **fields):
    """The command line of a tiny run; a field is given as text or as a number."""
    return ["--workdir", str(run_dir), *flags, *(f"--config.{name}={value}" for name, value in (TINY | fields).items())]


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory):
    """The tests read and write no file that a user keeps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", str(ROOT))
        yield


@pytest.fixture(scope="session")
def train_py():
    """train.py as a module."""
    spec = importlib.util.spec_from_file_location("train", ROOT / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def train(train_py):
    """train(run_dir, *flags, **fields): a tiny run in this process; the JSON object on its stdout."""

    def call(run_dir, *flags, **fields):
        stdout = io.StringIO()
        # optax mixes integers and floats on purpose.
        with contextlib.redirect_stdout(stdout), jax.numpy_dtype_promotion("standard"):
            train_py.main(train_flags(run_dir, *flags, **fields))
        (line,) = stdout.getvalue().splitlines()
        return json.loads(line)

    return call


@contextlib.contextmanager
def without_pictures():
    """Runs draw none. It gives the MonkeyPatch that sees to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "draw_run", lambda *_: None)
        patch.setattr(pictures, "save_curves", lambda *_: None)
        yield patch


@pytest.fixture
def no_pictures():
    with without_pictures():
        yield


@pytest.fixture(scope="session")
def digits_run(train, tmp_path_factory):
    """A run on the digits with two latent dimensions. Leave it as it is."""
    run_dir = tmp_path_factory.mktemp("runs") / "digits"
    train(run_dir, num_epochs=6)
    return run_dir


@pytest.fixture(scope="session")
def conditional_run(train, tmp_path_factory):
    """A conditional run on the digits, with a validation split. Leave it as it is."""
    run_dir = tmp_path_factory.mktemp("runs") / "conditional"
    train(run_dir, conditional="true", binarization="static", validation_size=100, ema_decay=0.9)
    return run_dir


@pytest.fixture(scope="session")
def vectors_file(tmp_path_factory):
    """Feature vectors of 6 numbers, not in [0, 1], without labels: 120 for training, 703 for testing."""
    path = tmp_path_factory.mktemp("data") / "vectors.npz"
    rng = np.random.default_rng(0)
    np.savez(path, **{f"x_{split}": rng.normal(3, 2, (n, 6)) for split, n in (("train", 120), ("test", 703))})
    return path


@pytest.fixture(scope="session")
def vectors_run(train, vectors_file, tmp_path_factory):
    """A run on feature vectors, with three latent dimensions. Leave it as it is."""
    run_dir = tmp_path_factory.mktemp("runs") / "vectors"
    fields = {"dataset": vectors_file, "likelihood": "gaussian", "posterior": "full_covariance", "latent_dim": 3}
    train(run_dir, **fields, batch_size=20)
    return run_dir


@pytest.fixture
def vae():
    """vae(command, run_dir, *flags): `python -m vae_jax` in this process; its stdout."""
    from vae_jax.__main__ import main

    def call(*argv):
        stdout = io.StringIO()
        with contextlib.redirect_stdout(stdout):
            main([str(argument) for argument in argv])
        return stdout.getvalue()

    return call


ADVICE = (
    r"\b([Ee]xpected|needs|Choose|Give|Set|Save|See|Change|Train|Use|Leave|Rename|Rescale|Make|Update|Did you mean|Ask|"
    r"Wait|Remove|Its options|choose from)\b"
)


def one_line(err):
    """The one line of an error, without its `error: `."""
    assert "Traceback" not in err
    (line,) = err.splitlines()
    assert line.startswith("error: ") and line.isprintable() and len(line) < 2100
    assert re.search(ADVICE, line), f"no word of what is expected, or of what to do: {line}"
    return line.removeprefix("error: ")


@pytest.fixture
def refused(capsys):
    """refused(main, argv): its one line; it exits with 2 and prints nothing on stdout."""

    def call(main, argv):
        capsys.readouterr()
        with jax.numpy_dtype_promotion("standard"):
            assert console.run(main, [str(argument) for argument in argv]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        return one_line(err)

    return call


def contents(folder):
    """Every file below a folder, with its bytes."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
