"""The event files hold metrics.jsonl, each point once, whatever happened on the way."""

import struct
import sys
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import train_flags

from vae_jax.cli import console
from vae_jax.run import checkpoints, loop, metrics, tensorboard

pytestmark = pytest.mark.usefixtures("no_pictures")


def events(path):
    """The events of a file: length, its checksum, bytes and theirs, one after the other."""
    from tensorboardX.proto.event_pb2 import Event

    data, at = path.read_bytes(), 0
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        yield Event.FromString(data[at + 12 : at + 12 + size])
        at += size + 16
    assert at == len(data)


def points(run_dir):
    """(split, step) -> the points there, of the one event file of each split."""
    found = {}
    for folder in sorted((run_dir / "tensorboard").iterdir()):
        (path,) = folder.iterdir()
        version, start, *rest = events(path)
        assert version.file_version == "brain.Event:2" and start.session_log.status == start.session_log.START
        for event in rest:
            assert (folder.name, event.step) not in found
            found[folder.name, event.step] = {value.tag: value.simple_value for value in event.summary.value}
            assert len(found[folder.name, event.step]) == len(event.summary.value)
    return found


def assert_equal_metrics(run_dir):
    records = metrics.read(run_dir)
    assert records
    expected = {
        (record["split"], record["step"]): {
            name: float(np.float32(value)) for name, value in record.items() if name not in ("split", "step")
        }
        for record in records
    }
    assert points(run_dir) == expected


def test_events_are_the_metrics(train, tmp_path):
    train(tmp_path, "--tensorboard", validation_size=100)
    assert_equal_metrics(tmp_path)
    assert {(split, step) for split, step in points(tmp_path)} == {
        (split, step) for split in ("train", "validation") for step in (14, 28)
    }


def test_without_the_flag_there_are_none(train, tmp_path):
    train(tmp_path)
    assert not (tmp_path / "tensorboard").exists()


def test_a_finished_run_is_copied_by_the_same_command(train, tmp_path):
    train(tmp_path)
    train(tmp_path, "--tensorboard")
    assert_equal_metrics(tmp_path)


def test_events_are_there_as_soon_as_the_metrics(train, tmp_path, monkeypatch):
    """So that a run can be watched."""
    describe, seen = metrics.describe, []

    def watch(*args):
        if seen:
            assert_equal_metrics(tmp_path)
        seen.append(1)
        return describe(*args)

    monkeypatch.setattr(metrics, "describe", watch)
    train(tmp_path, "--tensorboard", num_epochs=3)
    assert len(seen) == 3


def test_resumed_run_writes_no_point_twice(train, train_py, tmp_path, monkeypatch):
    """Killed between an epoch's metrics and its checkpoint it goes back an epoch, stopped inside one it does not."""
    save, calls = checkpoints.save, count()

    def killed(*args):
        if next(calls) == 1:
            raise RuntimeError("power cut")
        return save(*args)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", killed)
        with pytest.raises(RuntimeError):
            train(tmp_path, "--tensorboard", num_epochs=4)
    assert {step for _, step in points(tmp_path)} == {15, 30}
    assert checkpoints.steps(tmp_path) == [15]

    with monkeypatch.context() as patch:

        @contextmanager
        def stop_signals():
            asked = count()
            yield lambda: next(asked) >= 20

        patch.setattr(console, "stop_signals", stop_signals)
        patch.setattr(loop, "time", SimpleNamespace(monotonic=count(1.0).__next__))
        train(tmp_path, "--tensorboard", num_epochs=4)
    assert checkpoints.steps(tmp_path)[-1] == 35
    assert_equal_metrics(tmp_path)

    train(tmp_path, "--tensorboard", num_epochs=4)
    assert {step for _, step in points(tmp_path)} == {15, 30, 45, 60}
    assert_equal_metrics(tmp_path)


def test_nothing_but_event_files_is_deleted(tmp_path):
    (tmp_path / "tensorboard" / "train").mkdir(parents=True)
    (tmp_path / "tensorboard" / "train" / "notes.txt").write_text("mine")
    (tmp_path / "tensorboard" / "train" / "events.out.tfevents.0.old").write_text("old")
    metrics.append(tmp_path, {"step": 1, "split": "train", "loss": 2.5})
    with tensorboard.mirror(tmp_path, True):
        pass
    names = sorted(path.name.split(".")[0] for path in (tmp_path / "tensorboard" / "train").iterdir())
    assert names == ["events", "notes"]


def test_what_is_not_finite_has_no_point(tmp_path):
    metrics.append(tmp_path, {"step": 1, "split": "train", "loss": float("nan"), "kl": 2.5})
    with tensorboard.mirror(tmp_path, True):
        pass
    assert points(tmp_path) == {("train", 1): {"kl": 2.5}}


def test_missing_package_is_one_line_before_anything_is_written(train_py, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert console.run(train_py.main, train_flags(tmp_path / "run", "--tensorboard")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --tensorboard needs") and "pip install tensorboardX" in line
    assert not (tmp_path / "run").exists()
