"""Everything in the README runs: its Python, and its commands on a tiny run."""

import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from vae_jax import console, inputs, likelihoods, models
from vae_jax.__main__ import main, parse
from vae_jax.objectives import negative_elbo

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"`(python (?:-m vae_jax|train\.py)[^`]*)`", README)


@pytest.fixture
def beside_a_run(tmp_path, monkeypatch, digits_run):
    """A current directory with a trained run in checkpoints/digits."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "digits").symlink_to(digits_run)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block {i}" for i in range(len(BLOCKS))])
def test_python(block, beside_a_run, monkeypatch):
    monkeypatch.setattr(likelihoods, "laplace", None, raising=False)  # taken away again after the example that sets it
    with jax.numpy_dtype_promotion("standard"):
        names = {}
        exec(compile(block, "README.md", "exec"), names)
    if "config" in names:
        trains(names["config"])


def trains(config):
    """The gradient of every parameter of the VAE that a config names."""
    vae = models.build(config, inputs.DataInfo((4, 4, 1), (), (0.0, 1.0), 128, 0, 8, "", None))
    x = jax.random.uniform(jax.random.key(1), (128, 4, 4, 1))
    params = vae.init(jax.random.key(0), x)
    loss, grads = jax.jit(jax.value_and_grad(lambda params: negative_elbo(params, jax.random.key(2), x, vae)[0]))(
        params
    )
    assert jnp.isfinite(loss) and all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))
    p = vae.decode(params, jnp.zeros((3, config.latent_dim)))
    assert p.sample(jax.random.key(3), (5,)).shape == (5, 3, 4, 4, 1)


@pytest.mark.parametrize("command", [c for c in COMMANDS if "RUN_DIR" in c or "evaluate" in c])
def test_command(command, beside_a_run, digits_run, conditional_run):
    run_dir = conditional_run if "--label" in command else digits_run
    small = command.replace("5000", "20").replace("=100", "=5")
    argv = shlex.split(re.sub(r"RUN_DIR|checkpoints/\w+", str(run_dir), small))[3:]
    if "--data=mine.npy" in argv:
        argv[argv.index("--data=mine.npy")] = "--data=digits"
    if argv[0] != "evaluate" and not any(word.startswith("--out") for word in argv):
        argv.append(
            {"encode": "--out=out.npz", "report": "--out=out.html", "export": "--out=out.zip"}.get(
                argv[0], "--out=out.png"
            )
        )
    assert console.run(main, argv) == 0
    assert argv[0] == "evaluate" or [path for path in beside_a_run.iterdir() if path.is_file()]


@pytest.mark.parametrize("command", [c for c in COMMANDS if "train.py" in c])
def test_training_command_is_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert console.parse_train(shlex.split(command)[2:])


@pytest.mark.parametrize("command", [c for c in COMMANDS if "SWEEP_DIR" in c])
def test_sweep_is_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len(parse(shlex.split(command)[3:]).members) in (3, 6)


def test_every_recipe_is_named():
    for recipe in (ROOT / "configs").rglob("*.py"):
        assert recipe.stem in README, f"README.md does not name {recipe.name}"
