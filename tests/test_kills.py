"""A run that is killed and resumed is the run that was not: the same bits in its weights, the same lines of metrics."""

import random
import time

import pytest
from faults import assert_equals_unbroken, finish, kill, kills, start

from vae_jax.run import metrics


@pytest.mark.slow
def test_two_kills(tmp_path):
    """Each as soon as an epoch is in the metrics: before or within the saving of its checkpoint."""
    finish(tmp_path / "unbroken", 8)
    for epochs in (3, 6):
        process = start(tmp_path / "run", 8)
        while len(metrics.read(tmp_path / "run")) < 2 * epochs:
            assert process.poll() is None
            time.sleep(0.001)
        kill(process)
    finish(tmp_path / "run", 8)
    assert_equals_unbroken(tmp_path / "run", tmp_path / "unbroken", 8)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_ten_kills_at_random_moments(seed, tmp_path):
    assert kills(tmp_path, 10, random.Random(seed)).total() == 10
