"""How well missing values are imputed: the recipe `missing.py` trained and imputed for each seed, as JSON.

    python tests/benchmarks/missing.py [--seeds=0,1,2]

The error is the mean of the squares over all missing values of the standardised table, where the column means give 1.
"""

import argparse
import ast
import contextlib
import json
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "configs/missing.py"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--seeds", default="0,1,2")
options = parser.parse_args()

with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
    lines = ast.get_docstring(ast.parse(RECIPE.read_text()), clean=False).splitlines()
    exec(textwrap.dedent("\n".join(line for line in lines if line.startswith("    "))), {})
    whole, gaps = np.load("breast_cancer_whole.npy"), np.load("breast_cancer_missing.npz")["x_test"]
    missing = np.isnan(gaps)
    rows = [{"what": "column means", "mse": float(np.mean((np.nanmean(gaps, 0) - whole)[missing] ** 2))}]
    for seed in options.seeds.split(","):
        start = time.perf_counter()
        for command in (
            [ROOT / "train.py", f"--config={RECIPE}", f"--workdir=run-{seed}", f"--config.seed={seed}"],
            ["-m", "vae_jax", "impute", f"run-{seed}", "--num_samples=10000", "--out=full.npz"],
        ):
            subprocess.run([sys.executable, *map(str, command)], check=True, stdout=subprocess.DEVNULL)
        error = float(np.mean((np.load("full.npz")["x"] - whole)[missing] ** 2))
        rows.append({"what": "vae_jax", "seed": int(seed), "mse": error, "seconds": time.perf_counter() - start})
    print(json.dumps(rows, indent=2))
