"""metrics.jsonl: sums become averages, and lines are whole."""

import json

import numpy as np
import pytest

from vae_jax.data import files
from vae_jax.run import metrics

RECORDS = [{"step": step, "split": split, "loss": 1.5 * step} for step in (5, 10, 15) for split in ("train", "test")]


@pytest.fixture
def run_dir(tmp_path):
    metrics.append(tmp_path, *RECORDS)
    return tmp_path


def test_add_and_averages():
    sums = [
        {"loss": np.float32(6), "kl": np.float32(3), "skipped": np.float32(0)},
        {"loss": np.float32(4), "kl": np.float32(2), "skipped": np.float32(1)},
    ]
    totals = metrics.add(metrics.add({}, sums[0], 3, 0.5), sums[1], 3, 1.5)
    assert totals == {"loss": 10, "kl": 5, "skipped": 1, "steps": 6, "seconds": 2}
    assert json.loads(json.dumps(totals)) == totals
    assert metrics.averages(totals, 20) == {"loss": 2, "kl": 1, "skipped": 1, "examples_per_second": 60}
    lost = {**totals, "loss": 0.0, "kl": 0.0, "skipped": 6}
    averages = metrics.averages(lost, 20)
    assert averages.pop("skipped") == 6 and averages.pop("examples_per_second") == 60
    assert averages.keys() == {"loss", "kl"} and np.isnan(list(averages.values())).all()


def test_json_has_no_number_that_is_not_finite(tmp_path):
    value = {"a": float("nan"), "b": [float("inf"), {"c": (-np.inf, 1.5)}], "d": np.float64("nan"), "e": "NaN", "f": 7}
    assert metrics.to_json(value) == '{"a": null, "b": [null, {"c": [null, 1.5]}], "d": null, "e": "NaN", "f": 7}'
    metrics.append(tmp_path, value)
    assert metrics.text(tmp_path) == metrics.to_json(value) + "\n"


def test_append_then_read(run_dir):
    assert metrics.read(run_dir) == RECORDS
    metrics.append(run_dir, {"step": 20})
    assert metrics.read(run_dir) == [*RECORDS, {"step": 20}]
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 7


def test_no_file_is_no_record(tmp_path):
    assert metrics.read(tmp_path) == [] and metrics.text(tmp_path) == ""


@pytest.mark.parametrize("torn", [b'{"step": 20, "lo', b"{", b'{"step": 20, "split": "tra\n', b"\xff\x00"])
def test_torn_last_line_is_left_out(run_dir, torn):
    with open(run_dir / "metrics.jsonl", "ab") as file:
        file.write(torn)
    assert metrics.read(run_dir) == RECORDS


def test_describe_is_one_line_for_a_person():
    record = {"epoch": 2.5, "split": "test", "loss": 90.1234, "log_likelihood": -70, "kl": 20.1, "active_units": 7}
    assert metrics.describe(record, 12345.6, 3725) == (
        "epoch 2.5  test: loss 90.123  log_likelihood -70.000  kl 20.100  active_units 7  12,346 examples/s  62:05 left"
    )


def test_write_text_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    metrics.write_text(path, "old")
    monkeypatch.setattr(files.os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        metrics.write_text(path, "new")
    assert path.read_text() == "old"
