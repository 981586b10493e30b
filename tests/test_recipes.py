"""A short version of every recipe: its own model, objective and optimiser on 28x28 images, for an epoch."""

import contextlib
import io
import json

import jax
import numpy as np
import pytest
from conftest import ROOT, mostly_slow
from recipes import make_data

from vae_jax.config import load_recipe
from vae_jax.run import metrics

# One of each kind in every run of the tests; runs on the digits and conditional ones are fixtures of conftest.py.
# test_config.py traces the step of all.
FAST = ("conv", "mnist_fast", "two_layers", "table", "missing")
RECIPES = mostly_slow(sorted((ROOT / "configs").rglob("*.py")), lambda path: path.stem in FAST)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """100 grey images for training and 20 to test, of the digits 0 to 9: a bar whose place is the digit."""
    rng = np.random.RandomState(0)
    labels = np.arange(120) % 10
    x = rng.randint(0, 60, (120, 28, 28))
    for image, label in zip(x, labels, strict=True):
        image[4 + 2 * label : 7 + 2 * label] += 180
    x, path = x.astype(np.uint8), tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, x_train=x[:100], y_train=labels[:100], x_test=x[100:], y_test=labels[100:])
    return path


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe(recipe, images, train_py, no_pictures, tmp_path):
    flags = [f"--config={recipe}", f"--workdir={tmp_path / 'run'}", "--config.num_epochs=4", "--config.eval_epochs=1"]
    flags += ["--config.batch_size=10", "--config.picture_epochs=0", "--config.warmup_steps=0"]
    flags += ["--config.validation_size=0", "--config.beta_warmup_steps=0", "--config.init_from="]
    if data := make_data(recipe, tmp_path, 30):
        flags.append(f"--config.dataset={data}")
    elif load_recipe(recipe).dataset != "digits":
        flags.append(f"--config.dataset={images}")
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout), jax.numpy_dtype_promotion("standard"):
        train_py.main(flags)
    losses = [r["loss"] for r in metrics.read(tmp_path / "run") if r["split"] == "test"]
    assert json.loads(stdout.getvalue())["loss"] == losses[-1] < losses[0]
