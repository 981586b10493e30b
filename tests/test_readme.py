"""Everything in the README runs: its Python, and its commands on a tiny run."""

import re
import shlex
from pathlib import Path

import jax
import pytest

from vae_jax import console
from vae_jax.__main__ import main

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
def test_python(block, beside_a_run):
    with jax.numpy_dtype_promotion("standard"):
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("command", [c for c in COMMANDS if "-m vae_jax" in c and "COMMAND" not in c])
def test_command(command, beside_a_run, digits_run, conditional_run):
    run_dir = conditional_run if "--label" in command else digits_run
    argv = shlex.split(re.sub(r"RUN_DIR|checkpoints/\w+", str(run_dir), command).replace("5000", "20"))[3:]
    if "--data=mine.npy" in argv:
        argv[argv.index("--data=mine.npy")] = "--data=digits"
    if argv[0] != "evaluate" and not any(word.startswith("--out") for word in argv):
        argv.append("--out=out.npz" if argv[0] == "encode" else "--out=out.png")
    assert console.run(main, argv) == 0
    assert argv[0] == "evaluate" or list(beside_a_run.glob("*.[np][pn][zg]"))


@pytest.mark.parametrize("command", [c for c in COMMANDS if "train.py" in c])
def test_training_command_is_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert console.parse_train(shlex.split(command)[2:])


def test_every_recipe_is_named():
    for recipe in (ROOT / "configs").glob("*.py"):
        assert recipe.stem in README, f"README.md does not name {recipe.name}"
