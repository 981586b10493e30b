"""What a person waits for first: seconds of whole processes, from their start.

    python tests/benchmarks/startup.py [--repeats=5] [--only=PATTERN]

Cold is an empty cache of compiled programs, warm the one that the run before has filled. The rows take turns.
"""

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from measure import alternate, check_some, images, load_average, parse, print_header, print_machine, print_row, spread

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sys.executable


def seconds(*command, cache, status=0):
    """Until the end of a process that exits with `status`. cache: XDG_CACHE_HOME."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"XDG_CACHE_HOME": cache}, capture_output=True, text=True)
    elapsed = time.perf_counter() - start
    if done.returncode != status:
        raise SystemExit(f"{' '.join(command)} exited with {done.returncode}: {done.stderr}")
    return elapsed


def seconds_to_metrics(cache):
    """Until train.py prints its first line of metrics, in a new run directory."""
    with tempfile.TemporaryDirectory() as folder:
        command = (PYTHON, "train.py", f"--workdir={folder}/run")
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"XDG_CACHE_HOME": cache}, stderr=subprocess.PIPE, text=True
        )
        lines = []
        for line in process.stderr:
            lines.append(line)
            if " loss " in line:
                elapsed = time.perf_counter() - start
                process.kill()
                process.communicate()
                return elapsed
        raise SystemExit(f"train.py printed no metrics: {''.join(lines)}")


def cold(measured):
    with tempfile.TemporaryDirectory() as cache:
        return measured(cache=cache)


def train_example(folder, cache):
    """A run directory of a VAE 784-400-20, trained for an epoch on a few random images."""
    np.save(folder / "x.npy", images(200))
    flags = [f"--workdir={folder}/run", f"--config.dataset={folder}/x.npy", "--config.num_epochs=1"]
    seconds(PYTHON, "train.py", "--config=configs/pytorch_example.py", *flags, cache=cache)
    return folder / "run"


def rows(folder):
    """Name -> a function that gives seconds."""
    warm = str(folder / "cache")
    vae = (PYTHON, "-m", "vae_jax")
    run_dir = train_example(folder, warm)
    draw = partial(seconds, *vae, "sample", str(run_dir), "--num=10000", f"--out={folder}/x.npz")
    yield "python -c 'import jax'", partial(seconds, PYTHON, "-c", "import jax", cache=warm)
    yield "train.py --help", partial(seconds, PYTHON, "train.py", "--help", cache=warm)
    yield "python -m vae_jax --help", partial(seconds, *vae, "--help", cache=warm)
    yield "train.py --config.bta=4", partial(seconds, PYTHON, "train.py", "--config.bta=4", cache=warm, status=2)
    yield "python -m vae_jax sample --nm=4", partial(seconds, *vae, "sample", "x", "--nm=4", cache=warm, status=2)
    yield "train.py to its first metrics (20 epochs of the digits), cold", partial(cold, seconds_to_metrics)
    yield "train.py to its first metrics (20 epochs of the digits), warm", partial(seconds_to_metrics, cache=warm)
    yield "10,000 samples of a 784-400-20 to .npz, cold", partial(cold, draw)
    yield "10,000 samples of a 784-400-20 to .npz, warm", partial(draw, cache=warm)


if __name__ == "__main__":
    options = parse(__doc__)
    print_machine(options)
    with tempfile.TemporaryDirectory() as folder:
        table = dict(rows(Path(folder)))
        check_some(table, options)
        chosen = {name: run for name, run in table.items() if options.only in name}
        for run in chosen.values():  # fills the caches
            run()
        values = alternate(chosen, options.repeats)
    print_header("row", "seconds")
    for name, each in values.items():
        print_row(name, spread(each))
    print(f"\nload average at the end {load_average()}")
