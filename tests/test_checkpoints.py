"""A run directory is read by its path alone, keeps the latest two checkpoints and the best, and survives damage."""

import contextlib
import logging
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import contents

from vae_jax import build, update
from vae_jax.config import Config
from vae_jax.core import VAE
from vae_jax.data.inputs import DataInfo
from vae_jax.errors import UserError
from vae_jax.run import arrays as checkpoint_arrays, checkpoints, digests, metrics, runs

CONFIG = Config(hidden_sizes=(3,), latent_dim=2, batch_size=4)
DATA = DataInfo((5,), (), (0.0, 1.0), 40, 0, 10, "0123456789abcdef", None)


@pytest.fixture(scope="module")
def vae() -> VAE:
    return build.make_vae(CONFIG, DATA)


def first_state(vae, ema):
    init = jax.jit(lambda key: update.init_state(vae, optax.adam(1e-3), key, jnp.ones((4, 5)), ema=ema))
    return init(jax.random.key(3))


@pytest.fixture(scope="module")
def state(vae):
    return first_state(vae, ema=True)


def at(state, step):
    """A state like `state` after `step` steps: other numbers everywhere."""
    moved = jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a + step, state)
    return moved._replace(step=jnp.int32(step))


def arrays(state):
    return jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key)))


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def write_run(run_dir, state, losses):
    """A run with a checkpoint of every step in `losses`."""
    with runs.open_run(run_dir, CONFIG, DATA):
        for step, loss in losses.items():
            metrics.append(run_dir, {"step": step})
            checkpoints.save(run_dir, at(state, step), {"steps": step}, loss)
    return run_dir


def error(function, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def written(tmp_path_factory, state):
    return write_run(tmp_path_factory.mktemp("written"), state, {1: 5.0, 2: 3.0, 3: 4.0, 4: 4.5, 5: None})


@pytest.fixture
def run_dir(written, tmp_path):
    """A copy of a run with checkpoints of the steps 2 (the best), 4 and 5."""
    return shutil.copytree(written, tmp_path / "run")


@pytest.mark.parametrize(
    ("losses", "kept", "best"),
    [
        ([5, 4, 3, 2], [3, 4], 4),
        ([5, 1, 3, 2, 4], [2, 4, 5], 2),
        ([1, 2, 3, 4], [1, 3, 4], 1),
        ([3, 1, None, None, None], [2, 4, 5], 2),
        ([None, None, None], [2, 3], 3),
        ([2, 2, 2, 1], [3, 4], 4),
        ([-2, -3, -1, 0], [2, 3, 4], 2),
    ],
)
def test_latest_two_and_the_best_are_kept(tmp_path, state, losses, kept, best):
    run_dir = write_run(tmp_path, state, dict(enumerate(losses, 1)))
    assert [int(path.name) for path in sorted((run_dir / "checkpoints").iterdir())] == kept
    assert checkpoints.load(run_dir, "best").step == best


def test_best_outlives_a_resume(run_dir, state):
    for step in (6, 7, 8):
        checkpoints.save(run_dir, at(state, step), {}, 4.0 + step)
    assert checkpoints.steps(run_dir) == [2, 7, 8]


@pytest.mark.parametrize(("checkpoint", "step"), [("latest", 5), ("best", 2), ("4", 4)])
def test_load_needs_the_directory_alone(run_dir, state, checkpoint, step):
    """And gives the averaged weights where there are any."""
    restored = checkpoints.load(str(run_dir), checkpoint)
    assert (restored.config, restored.data, restored.step) == (CONFIG, DATA, step)
    assert_equal(restored.params, at(state, step).averaged)
    q = restored.vae.encode(restored.params, jnp.ones((2, 5)))
    assert q.mean.shape == (2, 2)


def test_load_reads_no_optimiser_state_and_writes_nothing(run_dir):
    for step in checkpoints.steps(run_dir):
        shutil.rmtree(run_dir / "checkpoints" / str(step) / "state")
    before = contents(run_dir)
    checkpoints.load(run_dir)
    assert contents(run_dir) == before


def test_load_leaves_alone_what_is_being_written(run_dir):
    """Sampling from a run while it trains does not make the run lose its checkpoint."""
    for name in (".new", ".old"):
        shutil.copytree(run_dir / "checkpoints" / "5", run_dir / "checkpoints" / name)
    before = contents(run_dir)
    assert checkpoints.load(run_dir).step == 5
    assert contents(run_dir) == before


def test_the_manager_of_orbax_reads_it_too(run_dir, state):
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(
        run_dir / "checkpoints", options=ocp.CheckpointManagerOptions(read_only=True)
    ) as manager:
        assert list(manager.all_steps()) == [2, 4, 5]
        restored = manager.restore(4, args=ocp.args.Composite(params=ocp.args.StandardRestore(state.averaged)))
    assert_equal(restored.params, at(state, 4).averaged)


def test_resume_gives_back_everything(run_dir, state):
    restored, totals = checkpoints.resume(run_dir, state)
    assert_equal(arrays(restored), arrays(at(state, 5)))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert totals == {"steps": 5}


def test_resume_at_a_step_drops_what_is_later(run_dir, state):
    restored, totals = checkpoints.resume(run_dir, state, 4)
    assert_equal(arrays(restored), arrays(at(state, 4)))
    assert totals == {"steps": 4} and checkpoints.steps(run_dir) == [2, 4]
    assert metrics.read(run_dir) == [{"step": step} for step in (1, 2, 3, 4)]


def test_a_run_without_averaged_weights(tmp_path, vae):
    state = first_state(vae, ema=False)
    write_run(tmp_path, state, {1: 5.0, 2: 3.0})
    assert_equal(checkpoints.load(tmp_path).params, at(state, 2).params)
    restored, _ = checkpoints.resume(tmp_path, state)
    assert_equal(arrays(restored), arrays(at(state, 2)))
    assert restored.ema is None


def test_resume_without_a_checkpoint_is_the_beginning(tmp_path, state):
    metrics.append(tmp_path, {"step": 3})
    restored, totals = checkpoints.resume(tmp_path, state)
    assert restored is state and totals == {} and metrics.read(tmp_path) == []


@pytest.mark.parametrize("later", [b'{"step": 6}\n', b'{"step": 6, "lo', b"\xff\n", b"1\n", b""])
def test_resume_gives_back_the_log(run_dir, state, later):
    """However it looks by now: a line may be torn, damaged or of a step that is done again."""
    whole = (run_dir / "metrics.jsonl").read_bytes()
    (run_dir / "metrics.jsonl").write_bytes(whole.replace(b"3", b"4") + later if later else b"")
    checkpoints.resume(run_dir, state)
    assert (run_dir / "metrics.jsonl").read_bytes() == whole


@pytest.mark.parametrize("broken", (False, True))
def test_the_caller_keeps_his_own_hook_and_loggers(run_dir, state, monkeypatch, broken):
    monkeypatch.setattr(sys, "unraisablehook", print)
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    before = [logger.level for logger in loggers]
    like = {"a": jnp.zeros(3)} if broken else {"params": state.params}
    with contextlib.suppress(UserError, OSError):
        checkpoint_arrays.read(run_dir / "checkpoints/15", **like)
    with contextlib.suppress(OSError):
        checkpoint_arrays.write(run_dir / "run.json/x" if broken else run_dir / "new", **like)
    assert sys.unraisablehook is print and [logger.level for logger in loggers] == before


def test_nothing_is_written_twice(run_dir, state):
    before = contents(run_dir)
    checkpoints.save(run_dir, at(state, 5), {}, 1.0)
    assert contents(run_dir) == before


@pytest.mark.parametrize("function", ["write", "rename", "rmtree"])
def test_a_crash_while_saving_leaves_whole_checkpoints(run_dir, state, monkeypatch, function):
    """Before the digests, before the name, and while an old one is deleted."""
    place = {"write": digests, "rename": type(run_dir), "rmtree": checkpoints.shutil}[function]

    class Crash(BaseException):
        pass

    def crash(*_, **__):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(place, function, crash)
        with pytest.raises(Crash):
            checkpoints.save(run_dir, at(state, 6), {}, 6.0)
    step = 6 if function == "rmtree" else 5
    assert checkpoints.load(run_dir).step == step
    with runs.open_run(run_dir, CONFIG, DATA):
        restored, _ = checkpoints.resume(run_dir, state)
        assert_equal(arrays(restored), arrays(at(state, step)))
        checkpoints.save(run_dir, at(state, 7), {}, 7.0)
    assert checkpoints.sound_steps(run_dir) == [2, step, 7]
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"2", str(step), "7"}


def test_no_checkpoint_is_written_for_a_run_that_has_vanished(run_dir, state):
    shutil.rmtree(run_dir)
    with pytest.raises(FileNotFoundError):
        checkpoints.save(run_dir, at(state, 6), {}, 6.0)
    assert contents(run_dir) == {}


def test_no_checkpoint_yet(tmp_path):
    with runs.open_run(tmp_path, CONFIG, DATA):
        assert "has no checkpoint yet" in error(checkpoints.load, tmp_path)
    (tmp_path / "checkpoints").rmdir()
    assert "has no checkpoint yet" in error(checkpoints.load, tmp_path)
    (tmp_path / "checkpoints").write_text("")
    assert "has no checkpoint yet" in error(checkpoints.load, tmp_path)


@pytest.mark.parametrize("checkpoint", ["9", "-1", "newest", "", "²", "4.0"])
def test_unknown_checkpoint_lists_the_known(run_dir, checkpoint):
    message = error(checkpoints.load, run_dir, checkpoint)
    assert f"no checkpoint {checkpoint!r}. Choose one of: latest, best, 2, 4, 5." in message


# damage


def damage(run_dir, step, name="params/manifest.ocdbt"):
    """Flip a bit; the words that name it."""
    path = run_dir / "checkpoints" / str(step) / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    return f"{run_dir / 'checkpoints' / str(step)} is damaged ({name} differs from its digest)"


@pytest.mark.parametrize("name", ["params/manifest.ocdbt", "state/manifest.ocdbt", "progress.json", "metrics.jsonl"])
def test_resume_uses_the_newest_sound_one_and_keeps_the_damaged(run_dir, state, capsys, name):
    says = damage(run_dir, 5, name)
    restored, totals = checkpoints.resume(run_dir, state)
    assert_equal(arrays(restored), arrays(at(state, 4)))
    assert totals == {"steps": 4} and metrics.read(run_dir)[-1] == {"step": 4}
    assert capsys.readouterr().err == f"{says}: set aside as 5.damaged\n"
    checkpoints.save(run_dir, at(state, 5), {}, 5.0)
    assert checkpoints.sound_steps(run_dir) == [2, 4, 5]
    damage(run_dir, 5)
    assert checkpoints.sound_steps(run_dir) == [2, 4]


@pytest.mark.parametrize(
    ("checkpoint", "broken", "step", "said"),
    [
        ("latest", [5], 4, [5]),
        ("latest", [4, 5], 2, [5, 4]),
        ("latest", [2, 4], 5, []),
        ("best", [2], 4, [2]),
        ("best", [2, 4], 5, [4, 2]),
        ("best", [5], 2, [5]),
    ],
)
def test_load_passes_over_what_is_damaged(run_dir, state, capsys, checkpoint, broken, step, said):
    says = {other: damage(run_dir, other) for other in broken}
    before = contents(run_dir)
    restored = checkpoints.load(run_dir, checkpoint)
    assert restored.step == step
    assert_equal(restored.params, at(state, step).averaged)
    assert capsys.readouterr().err.splitlines() == [f"{says[other]}: using {step} instead" for other in said]
    assert contents(run_dir) == before


def test_a_damaged_loss_decides_nothing(run_dir, state, capsys):
    path = run_dir / "checkpoints" / "5" / "progress.json"
    path.write_text(path.read_text().replace("null", "-9.0"))
    assert checkpoints.load(run_dir, "best").step == 2
    assert "5 is damaged (progress.json differs from its digest)" in capsys.readouterr().err
    checkpoints.save(run_dir, at(state, 6), {}, 6.0)
    assert checkpoints.steps(run_dir) == [2, 5, 6]


def test_a_loss_that_is_no_number_is_not_the_best(tmp_path, state):
    run_dir = write_run(tmp_path, state, {1: float("nan"), 2: 3.0, 3: float("inf"), 4: float("nan")})
    assert checkpoints.steps(run_dir) == [2, 3, 4]
    assert checkpoints.load(run_dir, "best").step == 2


def test_a_damaged_checkpoint_by_its_step_is_refused(run_dir):
    says = damage(run_dir, 4)
    assert error(checkpoints.load, run_dir, "4") == f"{says}. Choose another checkpoint."
    assert checkpoints.load(run_dir, "5").step == 5


def test_nothing_sound_is_one_error_and_stays_as_it_is(run_dir, state, capsys):
    for step in checkpoints.steps(run_dir):
        damage(run_dir, step)
    before = contents(run_dir)
    for function, *args in ((checkpoints.load, run_dir), (checkpoints.load, run_dir, "best")):
        message = error(function, *args)
        assert f"{run_dir} has only damaged checkpoints (5: params/manifest.ocdbt differs" in message
    assert "has only damaged checkpoints" in error(checkpoints.resume, run_dir, state)
    assert contents(run_dir) == before and capsys.readouterr().err == ""


def test_a_checkpoint_without_digests_is_not_used(run_dir):
    (run_dir / "checkpoints" / "5" / "SHA256SUMS").unlink()
    assert checkpoints.load(run_dir).step == 4
    assert "5 is damaged (SHA256SUMS is missing)" in error(checkpoints.load, run_dir, "5")


@pytest.mark.parametrize(
    ("config", "data", "says"),
    [
        (
            Config(hidden_sizes=(3,), latent_dim=3, batch_size=4),
            DATA,
            "decoder/Dense_0/kernel is (2, 3), expected (3, 3)",
        ),
        (Config(hidden_sizes=(3, 3), latent_dim=2, batch_size=4), DATA, "Dense_1/bias is missing, expected (3,)"),
        (CONFIG, DATA._replace(shape=(6,)), "decoder/output/bias is (5,), expected (6,)"),
    ],
)
def test_weights_of_another_architecture_are_one_line(run_dir, config, data, says, capfd):
    (run_dir / "run.json").unlink()
    with runs._write_run(run_dir / "run.json", config, data, {}):
        pass
    message = error(checkpoints.load, run_dir)
    assert f"{run_dir / 'checkpoints' / '5' / 'params'} does not fit the model that" in message and says in message
    assert "Use the version of vae_jax that wrote it" in message and capfd.readouterr() == ("", "")


def test_a_model_that_this_version_cannot_build_names_run_json(run_dir):
    (run_dir / "run.json").unlink()
    with runs._write_run(run_dir / "run.json", Config(likelihood="cauchy", batch_size=4), DATA, {}):
        pass
    message = error(checkpoints.load, run_dir)
    assert f"{run_dir / 'run.json'}: Unknown likelihood 'cauchy'" in message


def test_the_optimiser_of_another_version_is_one_line(run_dir, vae):
    like = update.init_state(vae, optax.sgd(0.1, momentum=0.9), jax.random.key(3), jnp.ones((4, 5)), ema=True)
    before = contents(run_dir)
    assert "state does not fit the model that" in error(checkpoints.resume, run_dir, like)
    assert contents(run_dir) == before
