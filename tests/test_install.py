"""Installed from a wheel, without the repository: it trains, resumes, sweeps and samples in any folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest
from conftest import ROOT

pytestmark = pytest.mark.robust

FIELDS = ("--config.hidden_sizes=8", "--config.latent_dim=2", "--config.schedule=constant", "--config.eval_epochs=1")


def without_pythonpath():
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel of a copy of the repository: building leaves its litter there."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "vae_jax", source / "vae_jax", ignore=shutil.ignore_patterns("__pycache__"))
    options = ("--no-deps", "--no-build-isolation", "--quiet", f"--wheel-dir={built}")
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, source], check=True)
    (path,) = built.glob("vae_jax-*.whl")
    return path


@pytest.fixture(
    params=[False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["with the libraries of the tests", "with its own libraries"],
)
def bin_folder(request, wheel, tmp_path):
    """The commands of an environment with nothing but the wheel and the libraries that it needs."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env/bin/python"
    options = ["--quiet"] if request.param else ["--quiet", "--no-deps", "--no-index"]
    command = [sys.executable, "-m", "pip", "--python", python, "install", *options, wheel]
    subprocess.run(command, env=without_pythonpath(), check=True)
    if not request.param:
        (packages,) = (tmp_path / "env/lib").glob("python*/site-packages")
        # A path adds the libraries alone: no .pth file beside them, such as that of `pip install -e`, is read.
        (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


def test_a_wheel_trains_resumes_sweeps_and_samples_in_another_folder(bin_folder, tmp_path):
    here = tmp_path / "here"
    here.mkdir()

    def run(*argv):
        done = subprocess.run(
            [bin_folder / argv[0], *argv[1:]], cwd=here, env=without_pythonpath(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done

    where = run("python", "-c", "import vae_jax, sys; print(vae_jax.__file__)").stdout
    assert where.startswith(str(bin_folder.parent))
    first = json.loads(run("vae-jax", "train", *FIELDS, "--config.num_epochs=1").stdout)
    assert first["run_dir"] == "checkpoints/digits" and first["step"] == 15
    again = run("python", "-m", "vae_jax", "train", *FIELDS, "--config.num_epochs=2")
    assert json.loads(again.stdout)["step"] == 30 and "resumed at step 15 of 30" in again.stderr
    assert (here / "checkpoints/digits/samples.png").exists()
    assert "0.001" in run("vae-jax", "sweep", "both", "--seeds=0,1", *FIELDS, "--config.num_epochs=1").stdout
    assert (here / "both/seed-1/run.json").exists()
    assert run("vae-jax", "sample", "checkpoints/digits").stdout == "checkpoints/digits/sample.png\n"
    assert {path.name for path in here.iterdir()} == {"checkpoints", "both"}
