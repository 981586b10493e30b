"""A run directory is read by its path alone, keeps the latest two checkpoints and the best, and survives damage."""

import gc
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import contents

from vae_jax import checkpoints, metrics, models, update
from vae_jax.config import Config
from vae_jax.core import VAE
from vae_jax.errors import UserError
from vae_jax.inputs import DataInfo

CONFIG = Config(hidden_sizes=(3,), latent_dim=2, batch_size=4)
DATA = DataInfo((5,), 0, (0.0, 1.0), 40, 0, 10, "0123456789abcdef", None)


@pytest.fixture(scope="module")
def vae() -> VAE:
    return models.build(CONFIG, DATA)


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


@pytest.fixture
def swept():
    """Collects what a test leaves behind before the next one begins."""
    yield
    gc.collect()


def littering(test):
    """Ignore what orbax leaves behind when its reads fail; test_bad_input looks at the stderr of a whole process."""
    messages = ("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine .* was never awaited")
    return pytest.mark.usefixtures("swept")(pytest.mark.filterwarnings(*messages)(test))


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def write_run(run_dir, state, losses):
    """A run with a checkpoint of every step in `losses`."""
    checkpoints.begin(run_dir, CONFIG, DATA)
    with checkpoints.open_checkpoints(run_dir) as manager:
        for step, loss in losses.items():
            checkpoints.save(manager, at(state, step), {"steps": step}, loss)
    return run_dir


def steps(run_dir):
    return sorted(int(path.name) for path in (run_dir / "checkpoints").iterdir())


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
    assert steps(run_dir) == kept
    assert checkpoints.load(run_dir, "best").step == best


def test_best_outlives_a_resume(run_dir, state):
    with checkpoints.open_checkpoints(run_dir) as manager:
        for step in (6, 7, 8):
            checkpoints.save(manager, at(state, step), {}, 4.0 + step)
    assert steps(run_dir) == [2, 7, 8]


@pytest.mark.parametrize(("checkpoint", "step"), [("latest", 5), ("best", 2), ("4", 4)])
def test_load_needs_the_directory_alone(run_dir, state, checkpoint, step):
    """And gives the averaged weights where there are any."""
    restored = checkpoints.load(str(run_dir), checkpoint)
    assert (restored.config, restored.data, restored.step) == (CONFIG, DATA, step)
    assert_equal(restored.params, at(state, step).averaged)
    q = restored.vae.encode(restored.params, jnp.ones((2, 5)))
    assert q.mean.shape == (2, 2)


def test_load_reads_no_optimiser_state_and_writes_nothing(run_dir):
    for step in steps(run_dir):
        shutil.rmtree(run_dir / "checkpoints" / str(step) / "state")
    before = contents(run_dir)
    checkpoints.load(run_dir)
    assert contents(run_dir) == before


def test_load_leaves_a_checkpoint_alone_that_is_being_written(run_dir):
    """Sampling from a run while it trains is no reason for the run to lose its checkpoint."""
    unfinished = run_dir / "checkpoints" / "6.orbax-checkpoint-tmp"
    shutil.copytree(run_dir / "checkpoints" / "5", unfinished)
    (unfinished / "commit_success.txt").unlink(missing_ok=True)
    before = contents(run_dir)
    assert checkpoints.load(run_dir).step == 5
    assert contents(run_dir) == before


def test_resume_gives_back_everything(run_dir, state):
    with checkpoints.open_checkpoints(run_dir) as manager:
        restored, totals = checkpoints.resume(manager, run_dir, state)
    assert_equal(arrays(restored), arrays(at(state, 5)))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert totals == {"steps": 5}


def test_a_run_without_averaged_weights(tmp_path, vae):
    state = first_state(vae, ema=False)
    write_run(tmp_path, state, {1: 5.0, 2: 3.0})
    assert_equal(checkpoints.load(tmp_path).params, at(state, 2).params)
    with checkpoints.open_checkpoints(tmp_path) as manager:
        restored, _ = checkpoints.resume(manager, tmp_path, state)
    assert_equal(arrays(restored), arrays(at(state, 2)))
    assert restored.ema is None


def test_resume_without_a_checkpoint_is_the_beginning(tmp_path, state):
    checkpoints.begin(tmp_path, CONFIG, DATA)
    metrics.append(tmp_path, {"step": 3})
    with checkpoints.open_checkpoints(tmp_path) as manager:
        restored, totals = checkpoints.resume(manager, tmp_path, state)
    assert restored is state and totals == {} and metrics.read(tmp_path) == []


def test_resume_drops_later_records(run_dir, state):
    metrics.append(run_dir, *({"step": step} for step in (3, 4, 5, 6)))
    with checkpoints.open_checkpoints(run_dir) as manager:
        checkpoints.resume(manager, run_dir, state)
    assert [record["step"] for record in metrics.read(run_dir)] == [3, 4, 5]


@pytest.mark.parametrize("lost", ["metrics", "params", "state", "totals", "commit_success.txt", "_CHECKPOINT_METADATA"])
def test_older_checkpoint_half_deleted_by_a_crash_does_no_harm(run_dir, state, lost):
    path = run_dir / "checkpoints" / "4" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with checkpoints.open_checkpoints(run_dir) as manager:
        restored, _ = checkpoints.resume(manager, run_dir, state)
        checkpoints.save(manager, at(state, 6), {}, 6.0)
        checkpoints.save(manager, at(state, 7), {}, 7.0)
    assert_equal(arrays(restored), arrays(at(state, 5)))
    assert set(steps(run_dir)) >= {2, 6, 7}
    assert checkpoints.load(run_dir, "best").step == 2


# beginning


def test_begin_twice_is_the_same_run(tmp_path):
    checkpoints.begin(tmp_path / "a" / "run", CONFIG, DATA)
    before = contents(tmp_path)
    checkpoints.begin(tmp_path / "a" / "run", CONFIG, DATA)
    assert contents(tmp_path) == before
    assert checkpoints.read_run(tmp_path / "a" / "run") == (CONFIG, DATA)


@pytest.mark.parametrize(
    ("config", "data", "says"),
    [
        (Config(hidden_sizes=(4,), latent_dim=2, batch_size=4), DATA, "hidden_sizes (was [3], now [4])"),
        (Config(hidden_sizes=(3,), latent_dim=2, batch_size=4, seed=1), DATA, "seed (was 0, now 1)"),
        (CONFIG, DATA._replace(fingerprint="f" * 16), "the data (was 0123456789abcdef, now ffffffffffffffff)"),
    ],
)
def test_another_config_or_data_is_refused(tmp_path, config, data, says):
    checkpoints.begin(tmp_path, CONFIG, DATA)
    message = error(checkpoints.begin, tmp_path, config, data)
    assert says in message and "--restart" in message and "--workdir" in message
    assert checkpoints.read_run(tmp_path) == (CONFIG, DATA)


def test_data_may_move(tmp_path):
    checkpoints.begin(tmp_path, CONFIG, DATA)
    checkpoints.begin(tmp_path, CONFIG, DATA._replace(data_dir="elsewhere"))


def test_restart_takes_the_first_free_name(tmp_path, capsys):
    for number in range(3):
        checkpoints.begin(tmp_path / "run", CONFIG, DATA._replace(num_test=number), restart=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1", "run.2"]
    tests = [checkpoints.read_run(tmp_path / name)[1].num_test for name in ("run.1", "run.2", "run")]
    assert tests == [0, 1, 2]
    assert capsys.readouterr().err.count("moved the earlier run to") == 2


def test_restart_of_nothing_begins(tmp_path):
    checkpoints.begin(tmp_path / "run", CONFIG, DATA, restart=True)
    assert checkpoints.read_run(tmp_path / "run") == (CONFIG, DATA)


def test_restart_moves_nothing_that_is_no_run(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    before = contents(tmp_path)
    assert "run.json" in error(checkpoints.begin, tmp_path / "home", CONFIG, DATA, restart=True)
    assert contents(tmp_path) == before


def test_restart_in_the_current_directory_is_one_line(tmp_path, monkeypatch):
    checkpoints.begin(tmp_path / "run", CONFIG, DATA)
    monkeypatch.chdir(tmp_path / "run")
    error(checkpoints.begin, type(tmp_path)("."), CONFIG, DATA, restart=True)


def test_begin_again_after_a_crash_while_run_json_was_written(tmp_path):
    (tmp_path / ".run.json.123.tmp").write_text('{"form')
    checkpoints.begin(tmp_path, CONFIG, DATA)
    assert checkpoints.read_run(tmp_path) == (CONFIG, DATA)


@pytest.mark.parametrize("below", ["", "a/b"])
def test_workdir_that_cannot_be(tmp_path, below):
    (tmp_path / "file").write_text("precious")
    message = error(checkpoints.begin, tmp_path / "file" / below, CONFIG, DATA)
    assert "cannot be written" in message and "--workdir" in message
    assert (tmp_path / "file").read_text() == "precious"


# damage


def test_no_run(tmp_path):
    (tmp_path / "file").write_text("")
    for path, says in ((tmp_path / "none", "is no directory"), (tmp_path, "has no run.json"), (tmp_path / "file", "")):
        message = error(checkpoints.load, path)
        assert str(path) in message and says in message and "expected a run directory" in message


def test_no_checkpoint_yet(tmp_path):
    checkpoints.begin(tmp_path, CONFIG, DATA)
    assert "has no checkpoint yet" in error(checkpoints.load, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert "has no checkpoint yet" in error(checkpoints.load, tmp_path)


@pytest.mark.parametrize("checkpoint", ["9", "-1", "newest", "", "²", "4.0"])
def test_unknown_checkpoint_lists_the_known(run_dir, checkpoint):
    message = error(checkpoints.load, run_dir, checkpoint)
    assert f"no checkpoint {checkpoint!r}. Choose one of: latest, best, 2, 4, 5." in message


def edited(**changes):
    return lambda text: json.dumps(json.loads(text) | changes)


def edited_part(part, **changes):
    return lambda text: json.dumps(json.loads(text) | {part: json.loads(text)[part] | changes})


@littering
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: "", "is damaged (JSONDecodeError"),
        (lambda text: text[:100], "is damaged (JSONDecodeError"),
        (lambda text: "[]", "is damaged (TypeError"),
        (lambda text: "{}", "is damaged (KeyError: 'format'"),
        (lambda text: "[" * 100_000, "is damaged (RecursionError"),
        (edited(format=checkpoints.FORMAT + 1), "Update vae_jax"),
        (edited(format="one"), "is damaged (TypeError"),
        (edited(config=None), "is damaged"),
        (edited(data={"shape": [5]}), "is damaged (TypeError"),
        (edited_part("config", flow="realnvp"), "'flow' that this version does not know. Update vae_jax"),
        (edited_part("config", latent_dim="2"), "latent_dim is '2'; expected a whole number"),
        (edited_part("config", likelihood="poisson"), "Unknown likelihood 'poisson'"),
        (edited_part("data", shape=None), "is damaged (TypeError"),
        (edited_part("data", shape=["a"]), "is damaged"),
        (edited_part("data", range=[1]), "is damaged"),
        (edited_part("config", latent_dim=3), "cannot be read"),
        (edited_part("config", hidden_sizes=[3, 3]), "cannot be read"),
        (edited_part("data", shape=[6]), "cannot be read"),
    ],
)
def test_damaged_run_json(run_dir, damage, says):
    path = run_dir / "run.json"
    path.write_text(damage(path.read_text()))
    before = contents(run_dir)
    message = error(checkpoints.load, run_dir)
    assert str(run_dir) in message and says in message
    assert contents(run_dir) == before


def test_binary_run_json(run_dir):
    (run_dir / "run.json").write_bytes(b"\xff\xfe\x00")
    assert "is damaged" in error(checkpoints.load, run_dir)


def damaged(run_dir, damage):
    """Damage each file of the latest parameters in turn, and undo it."""
    files = [path for path in (run_dir / "checkpoints" / "5" / "params").rglob("*") if path.stat().st_size]
    for path in [path for path in files if path.is_file()]:
        whole = path.read_bytes()
        damage(path, whole)
        yield path
        path.write_bytes(whole)


@littering
@pytest.mark.parametrize(
    "damage",
    [
        lambda path, whole: path.write_bytes(whole[: len(whole) // 2]),
        lambda path, whole: path.write_bytes(b""),
        lambda path, whole: path.write_bytes(whole[:-9] + bytes(255 - b for b in whole[-9:])),
        lambda path, whole: path.unlink(),
    ],
    ids=["truncated", "emptied", "flipped", "removed"],
)
def test_damaged_checkpoint_is_refused_in_one_line_or_of_no_account(run_dir, state, damage):
    refused = 0
    for path in damaged(run_dir, damage):
        try:
            assert_equal(checkpoints.load(run_dir).params, at(state, 5).averaged)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error), path
            assert "Checkpoint 5" in str(error) and str(run_dir / "checkpoints" / "5") in str(error)
    assert refused


@littering
def test_advice_for_a_damaged_checkpoint_holds(run_dir, state):
    shutil.rmtree(run_dir / "checkpoints" / "5" / "params" / "d")
    with checkpoints.open_checkpoints(run_dir) as manager:
        message = error(checkpoints.resume, manager, run_dir, state)
    assert f"Remove {run_dir / 'checkpoints' / '5'} to use the one before it." in message
    shutil.rmtree(run_dir / "checkpoints" / "5")
    with checkpoints.open_checkpoints(run_dir) as manager:
        restored, _ = checkpoints.resume(manager, run_dir, state)
    assert_equal(arrays(restored), arrays(at(state, 4)))


@littering
def test_refused_resume_keeps_the_records(run_dir, state):
    metrics.append(run_dir, {"step": 5}, {"step": 6})
    shutil.rmtree(run_dir / "checkpoints" / "5" / "state")
    before = contents(run_dir)
    with checkpoints.open_checkpoints(run_dir) as manager:
        error(checkpoints.resume, manager, run_dir, state)
    assert contents(run_dir) == before


@pytest.mark.parametrize("text", ["1\n", "{}\n", '{"step": "x"}\n', "null\n"])
def test_damaged_metrics_are_one_line(run_dir, state, text):
    (run_dir / "metrics.jsonl").write_text(text)
    with checkpoints.open_checkpoints(run_dir) as manager:
        assert "metrics.jsonl" in error(checkpoints.resume, manager, run_dir, state)


def test_checkpoints_that_are_no_folder(tmp_path):
    checkpoints.begin(tmp_path, CONFIG, DATA)
    (tmp_path / "checkpoints").write_text("")
    error(checkpoints.load, tmp_path)

    def train():
        with checkpoints.open_checkpoints(tmp_path):
            pass

    error(train)
