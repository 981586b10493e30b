"""A run directory is begun once, held by one process, and believed only as it was written."""

import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
from conftest import contents

from vae_jax.config import Config, to_json
from vae_jax.data.inputs import DataInfo
from vae_jax.errors import UserError
from vae_jax.run import digests, runs

CONFIG = Config(hidden_sizes=(3,), latent_dim=2, batch_size=4)
DATA = DataInfo((5,), (), (0.0, 1.0), 40, 0, 10, "0123456789abcdef", None)


def begin(*args, **kwargs):
    with runs.open_run(*args, **kwargs):
        pass


def error(function, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def trained(run_dir, step=30, config=CONFIG):
    """A run with something to lose: a checkpoint. Of CONFIG, an epoch has 10 steps."""
    begin(run_dir, config, DATA)
    (run_dir / "checkpoints" / str(step)).mkdir()


def test_begin_twice_is_the_same_run(tmp_path):
    begin(tmp_path / "a" / "run", CONFIG, DATA)
    before = contents(tmp_path)
    begin(tmp_path / "a" / "run", CONFIG, DATA)
    assert contents(tmp_path) == before
    assert runs.read_run(tmp_path / "a" / "run") == (CONFIG, DATA)


@pytest.mark.parametrize(
    ("config", "data", "says"),
    [
        (Config(hidden_sizes=(4,), latent_dim=2, batch_size=4), DATA, "hidden_sizes (was [3], now [4])"),
        (Config(hidden_sizes=(3,), latent_dim=2, batch_size=4, seed=1), DATA, "seed (was 0, now 1)"),
        (CONFIG, DATA._replace(fingerprint="f" * 16), "the data (was 0123456789abcdef, now ffffffffffffffff)"),
    ],
)
def test_another_config_or_data_is_refused(tmp_path, config, data, says):
    trained(tmp_path)
    message = error(begin, tmp_path, config, data)
    assert says in message and "--restart" in message and "another directory" in message
    assert runs.read_run(tmp_path) == (CONFIG, DATA)


@pytest.mark.parametrize("conditional", (True, False))
def test_a_run_of_the_format_before_this_one_is_read_and_resumed(tmp_path, conditional):
    """It knew of the labels only their number, and called 'analytic' what is 'auto' now."""
    config, data = replace(CONFIG, conditional=conditional), DATA._replace(classes=(0, 1, 2) if conditional else ())
    old = data._asdict()
    del old["classes"]
    run = {
        "format": 3,
        "config": to_json(config) | {"kl": "analytic"},
        "data": old | {"num_classes": 3},
        "versions": {},
    }
    (tmp_path / "run.json").write_text(json.dumps({**run, "sha256": digests.of_json(run)}))
    assert runs.read_run(tmp_path) == (config, data)
    begin(tmp_path, config, data)


@pytest.mark.parametrize("left", ["", "metrics.jsonl", "checkpoints/.new", ".curves.png.1.tmp"])
def test_a_run_with_nothing_to_lose_begins_anew_with_any_config_or_data(tmp_path, left):
    begin(tmp_path, CONFIG, DATA)
    if left:
        (tmp_path / left).mkdir() if left == "checkpoints/.new" else (tmp_path / left).touch()
    for config, data in ((replace(CONFIG, seed=1), DATA), (CONFIG, DATA._replace(fingerprint="f" * 16))):
        begin(tmp_path, config, data)
        assert runs.read_run(tmp_path) == (config, data)


@pytest.mark.parametrize("kept", ["samples.png", "checkpoints/5", "checkpoints/5.damaged", "notes.txt"])
def test_what_could_be_lost_is_kept(tmp_path, kept):
    begin(tmp_path, CONFIG, DATA)
    (tmp_path / kept).mkdir()
    assert "holds a run with another config" in error(begin, tmp_path, replace(CONFIG, seed=1), DATA)


# more epochs


@pytest.mark.parametrize("schedule", ["constant", "burda"])
def test_more_epochs_are_the_same_run(tmp_path, schedule):
    config = replace(CONFIG, schedule=schedule, num_epochs=3)
    trained(tmp_path, 30, config)
    for num_epochs in (5, 3, 4):
        longer = replace(config, num_epochs=num_epochs)
        with runs.open_run(tmp_path, longer, DATA):
            assert "in use" in error(begin, tmp_path, longer, DATA), "run.json is another file, and it is locked too"
        assert runs.read_run(tmp_path) == (longer, DATA)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "run.json"]
    (tmp_path / "checkpoints" / "31").mkdir()
    before = contents(tmp_path)
    assert "num_epochs is 3, and" in (message := error(begin, tmp_path, config, DATA))
    assert "is trained for 3.1 epochs already. Set at least as many" in message
    for other in (replace(config, num_epochs=9, seed=1), replace(config, num_epochs=9, schedule="cosine")):
        assert "another config: num_epochs (was 4, now 9), " in error(begin, tmp_path, other, DATA)
    assert contents(tmp_path) == before


def test_more_epochs_of_a_schedule_that_ends_name_the_flags_that_go_on(tmp_path):
    run_dir = tmp_path / "a run"
    trained(run_dir, 30, replace(CONFIG, schedule="cosine", num_epochs=3))
    message = error(begin, run_dir, replace(CONFIG, schedule="cosine", num_epochs=5), DATA)
    assert "cosine schedule ends with its 3 epochs" in message
    assert f"--config.init_from='{run_dir}'" in message and f"--workdir='{run_dir}'-more" in message
    assert "SWEEP_DIR" not in message


def test_more_epochs_on_other_data_are_refused(tmp_path):
    trained(tmp_path, 30, replace(CONFIG, num_epochs=3))
    other = DATA._replace(fingerprint="f" * 16)
    assert "another config: num_epochs" in error(begin, tmp_path, replace(CONFIG, num_epochs=5), other)


def test_a_run_json_that_cannot_be_written_anew_stays_as_it_was(tmp_path, monkeypatch):
    trained(tmp_path, 30, replace(CONFIG, num_epochs=3))
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(runs.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError):
            begin(tmp_path, replace(CONFIG, num_epochs=5), DATA)
    assert contents(tmp_path) == before
    begin(tmp_path, replace(CONFIG, num_epochs=5), DATA)


def test_data_may_move(tmp_path):
    begin(tmp_path, CONFIG, DATA)
    begin(tmp_path, CONFIG, DATA._replace(data_dir="elsewhere"))


def test_restart_takes_the_first_free_name(tmp_path, capsys):
    for number in range(3):
        begin(tmp_path / "run", CONFIG, DATA._replace(num_test=number), restart=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1", "run.2"]
    tests = [runs.read_run(tmp_path / name)[1].num_test for name in ("run.1", "run.2", "run")]
    assert tests == [0, 1, 2]
    assert capsys.readouterr().err.count("moved the earlier run to") == 2


def test_restart_of_nothing_begins(tmp_path):
    begin(tmp_path / "run", CONFIG, DATA, restart=True)
    assert runs.read_run(tmp_path / "run") == (CONFIG, DATA)


def test_restart_of_a_damaged_run_keeps_it(tmp_path):
    begin(tmp_path / "run", CONFIG, DATA)
    (tmp_path / "run" / "run.json").write_text("{")
    begin(tmp_path / "run", CONFIG, DATA, restart=True)
    assert runs.read_run(tmp_path / "run") == (CONFIG, DATA)
    assert (tmp_path / "run.1" / "run.json").read_text() == "{"


def test_restart_moves_nothing_that_is_no_run(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    before = contents(tmp_path)
    assert "run.json" in error(begin, tmp_path / "home", CONFIG, DATA, restart=True)
    assert contents(tmp_path) == before


def test_restart_in_the_current_directory_is_one_line(tmp_path, monkeypatch):
    begin(tmp_path / "run", CONFIG, DATA)
    monkeypatch.chdir(tmp_path / "run")
    error(begin, type(tmp_path)("."), CONFIG, DATA, restart=True)


def test_begin_again_after_a_crash_before_run_json_was_written(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "run.json").touch()
    begin(tmp_path, CONFIG, DATA)
    assert runs.read_run(tmp_path) == (CONFIG, DATA)


def test_an_emptied_run_json_is_no_new_run(tmp_path):
    begin(tmp_path, CONFIG, DATA)
    (tmp_path / "checkpoints" / "5").mkdir()
    (tmp_path / "run.json").write_text("")
    assert "is damaged" in error(begin, tmp_path, CONFIG, DATA)


def test_what_a_crash_left_half_written_is_cleared(tmp_path):
    begin(tmp_path, CONFIG, DATA)
    before = contents(tmp_path)
    (tmp_path / ".curves.png.123.tmp").touch()
    for name in (".new", ".old"):
        (tmp_path / "checkpoints" / name / "params").mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "params" / "d").touch()
    begin(tmp_path, CONFIG, DATA)
    assert contents(tmp_path) == before and not any((tmp_path / "checkpoints").iterdir())


def test_begin_again_after_a_full_disk(tmp_path):
    """A limit on file sizes stands for it."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError):
            begin(tmp_path, CONFIG, DATA)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "run.json").stat().st_size == 0
    begin(tmp_path, CONFIG, DATA)
    assert runs.read_run(tmp_path) == (CONFIG, DATA)


@pytest.mark.parametrize("below", ["", "a/b"])
def test_workdir_that_cannot_be(tmp_path, below):
    (tmp_path / "file").write_text("precious")
    message = error(begin, tmp_path / "file" / below, CONFIG, DATA)
    assert "cannot be written" in message and "another directory" in message
    assert (tmp_path / "file").read_text() == "precious"


def test_checkpoints_that_are_no_folder(tmp_path):
    begin(tmp_path, CONFIG, DATA)
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "checkpoints").write_text("")
    assert "cannot be written" in error(begin, tmp_path, CONFIG, DATA)


# one process at a time

HOLD = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_runs import CONFIG, DATA, runs
with runs.open_run(Path(sys.argv[1]), CONFIG, DATA):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(run_dir):
    """Another process that trains in the directory."""
    code = HOLD.format(tests=__file__.rpartition("/")[0])
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("restart", [False, True])
def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path, restart):
    run_dir = tmp_path / "run"
    with holder(run_dir) as process:
        before = contents(tmp_path)
        for _ in range(2):
            message = error(begin, run_dir, CONFIG, DATA, restart=restart)
            assert f"{run_dir} is in use: another process trains there" in message
        assert runs.read_run(run_dir) == (CONFIG, DATA)  # reading needs no lock
        assert contents(tmp_path) == before
        process.kill()  # with no chance to clean up
        process.wait()
        begin(run_dir, CONFIG, DATA, restart=restart)


def test_the_lock_ends_with_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), runs.open_run(tmp_path, CONFIG, DATA):
        error(begin, tmp_path, CONFIG, DATA)
        raise FileNotFoundError
    begin(tmp_path, CONFIG, DATA)


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    import fcntl

    def flock(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    begin(tmp_path, CONFIG, DATA)
    assert "cannot be locked" in capsys.readouterr().err


# run.json


def edited(**changes):
    """run.json as another version would write it."""

    def edit(text):
        run = json.loads(text) | changes
        del run["sha256"]
        return json.dumps({**run, "sha256": digests.of_json(run)})

    return edit


def edited_part(part, **changes):
    return lambda text: edited(**{part: json.loads(text)[part] | changes})(text)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: "", "is damaged (JSONDecodeError"),
        (lambda text: text[:100], "is damaged (JSONDecodeError"),
        (lambda text: "[]", "is damaged (TypeError"),
        (lambda text: "{}", "is damaged (KeyError: 'format'"),
        (lambda text: "[" * 100_000, "is damaged (RecursionError"),
        (
            lambda text: text.replace('"beta": 1.0', '"beta": 1.5'),
            "is damaged (ValueError: it differs from its digest)",
        ),
        (lambda text: text.replace('"beta"', '"betb"'), "is damaged (ValueError: it differs from its digest)"),
        (lambda text: text.replace('"sha256"', '"sha257"'), "is damaged (KeyError: 'sha256'"),
        (edited(format=1), "has format 1; this version reads 4. Train again, with --restart"),
        (edited(format=runs.FORMAT + 1), "has format 5; this version reads 4. Update vae_jax"),
        (edited(format="one"), "is damaged (TypeError"),
        (edited(config=None), "is damaged"),
        (edited(data={"shape": [5]}), "is damaged (TypeError"),
        (edited_part("config", flow="realnvp"), "'flow' that this version does not know. Update vae_jax"),
        (edited_part("config", latent_dim="2"), "latent_dim is '2'; expected a whole number"),
        (edited_part("data", shape=None), "is damaged (TypeError"),
        (edited_part("data", shape=["a"]), "is damaged"),
        (edited_part("data", range=[1]), "is damaged"),
    ],
)
def test_damaged_run_json(tmp_path, damage, says):
    begin(tmp_path, CONFIG, DATA)
    path = tmp_path / "run.json"
    (tmp_path / "checkpoints" / "5").mkdir()
    path.write_text(damage(path.read_text()))
    before = contents(tmp_path)
    for function, *args in ((runs.read_run, tmp_path), (begin, tmp_path, CONFIG, DATA)):
        message = error(function, *args)
        assert str(path) in message and says in message
    assert contents(tmp_path) == before


def test_binary_run_json(tmp_path):
    begin(tmp_path, CONFIG, DATA)
    (tmp_path / "run.json").write_bytes(b"\xff\xfe\x00")
    assert "is damaged" in error(runs.read_run, tmp_path)


def test_no_run(tmp_path):
    (tmp_path / "file").write_text("")
    for path, says in (
        (tmp_path / "none", "is not a directory"),
        (tmp_path, "has no run.json"),
        (tmp_path / "file", ""),
    ):
        message = error(runs.read_run, path)
        assert str(path) in message and says in message and "expected a run directory" in message
