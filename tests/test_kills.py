"""A run that is killed and resumed is the run that was not: the same bits in its weights, the same lines of metrics."""

import json
import random
import subprocess
import sys
import time

import pytest
from conftest import ROOT, train_flags
from test_train import assert_bit_equal, assert_same_records, final_state

from vae_jax import metrics


def start(run_dir, num_epochs):
    fields = {"binarization": "dynamic", "ema_decay": 0.9, "num_epochs": num_epochs}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *train_flags(run_dir, **fields)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(run_dir, num_epochs):
    """Let the command end by itself; the seconds it took."""
    begun = time.monotonic()
    process = start(run_dir, num_epochs)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return time.monotonic() - begun


def assert_equals_unbroken(run_dir, unbroken, num_epochs):
    assert_bit_equal(final_state(run_dir), final_state(unbroken))
    assert_same_records(run_dir, unbroken)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [e for e in range(1, num_epochs + 1) for _ in range(2)]
    assert {path.name for path in run_dir.glob("*.png")} == {path.name for path in unbroken.glob("*.png")}


def test_two_kills(tmp_path):
    """Each as soon as an epoch is in the metrics: before or within the saving of its checkpoint."""
    finish(tmp_path / "unbroken", 8)
    for epochs in (3, 6):
        process = start(tmp_path / "run", 8)
        while len(metrics.read(tmp_path / "run")) < 2 * epochs:
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
        process.communicate()
    finish(tmp_path / "run", 8)
    assert_equals_unbroken(tmp_path / "run", tmp_path / "unbroken", 8)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_ten_kills_at_random_moments(seed, tmp_path):
    seconds = finish(tmp_path / "unbroken", 60)
    moments = random.Random(seed)
    for _ in range(10):
        process = start(tmp_path / "run", 60)
        time.sleep(moments.uniform(0.1, 0.7) * seconds)
        process.kill()
        process.communicate()
    finish(tmp_path / "run", 60)
    assert_equals_unbroken(tmp_path / "run", tmp_path / "unbroken", 60)
