"""The real MNIST, where TFDS_DATA_DIR has it."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from vae_jax.data import datasets
from vae_jax.run import metrics, runs

PREPARED = Path(os.environ.get("TFDS_DATA_DIR") or "?") / "mnist"


@pytest.mark.robust
@pytest.mark.skipif(not PREPARED.is_dir(), reason="TFDS_DATA_DIR does not name a folder with MNIST")
def test_one_epoch_of_the_recipe_and_what_it_read(train, tmp_path):
    """One test, since the images are decoded once."""
    train(tmp_path, f"--config={ROOT}/configs/mnist.py", hidden_sizes=64, latent_dim=10, num_epochs=1)
    settings, info = runs.read_run(tmp_path)
    assert settings.binarization == "dynamic" and (info.num_train, info.num_test) == (60_000, 10_000)
    train_record, test_record = metrics.read(tmp_path)
    assert test_record["loss"] < 140 and test_record["loss"] < train_record["loss"]
    assert test_record["active_units"] >= 5

    data = datasets.load("mnist", validation_size=5000)
    assert [split.x.shape for split in (data.train, data.validation, data.test)] == [
        (num, 28, 28, 1) for num in (55_000, 5_000, 10_000)
    ]
    assert data.train.x.dtype == np.uint8
    # The class counts and the pixel statistics that the field has quoted for decades.
    label = np.concatenate([data.train.label, data.validation.label])
    assert np.bincount(label).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(data.test.label).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    x = np.concatenate([data.train.x, data.validation.x])
    assert x.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert x.std() / 255 == pytest.approx(0.3081, abs=5e-5)

    assert len(list(Path(os.environ["XDG_CACHE_HOME"], "vae_jax").glob("mnist-*"))) == 1
    assert datasets.load("mnist", validation_size=5000).fingerprint == data.fingerprint
