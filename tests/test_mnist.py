"""The real MNIST, where TFDS_DATA_DIR has it."""

import os

import numpy as np
import pytest
from conftest import ROOT

from vae_jax import datasets, metrics, runs

pytestmark = pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="TFDS_DATA_DIR does not name prepared data")


def test_shapes():
    data = datasets.load("mnist")
    assert data.train.x.shape == (60_000, 28, 28, 1) and data.test.x.shape == (10_000, 28, 28, 1)
    assert data.train.x.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(data.test.label), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])


def test_one_epoch_of_the_recipe(train, tmp_path):
    train(tmp_path, f"--config={ROOT}/configs/mnist.py", hidden_sizes=64, latent_dim=10, num_epochs=1)
    settings, data = runs.read_run(tmp_path)
    assert settings.binarization == "dynamic" and (data.num_train, data.num_test) == (60_000, 10_000)
    train_record, test_record = metrics.read(tmp_path)
    assert test_record["loss"] < 140 and test_record["loss"] < train_record["loss"]
    assert test_record["active_units"] >= 5
