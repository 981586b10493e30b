"""Held-out log-likelihood of single cells: the likelihoods of counts beside a negative binomial without latents.

    python -m pip download celltypist==1.7.1 --no-deps
    python tests/benchmarks/counts.py celltypist-1.7.1-py3-none-any.whl

The data is the sample of celltypist (Dominguez Conde et al. 2022): 559 cells, of which a fixed permutation holds out
109, and the 3,849 genes that occur in at least 100 cells. Every VAE is trained on 400 cells, and the checkpoint is that
of the least loss on 50 more. Figures are nats per cell, the importance bound of K samples. Their standard errors over
cells are those of the totals, mostly, so the gain over the first line is averaged cell by cell. This line, without
latents, has a share and an r per gene, by maximum likelihood on all 450 cells. Where `given the total` says yes, p is
conditional on the total of the cell; the other figures hold the price of the total too.
"""

import argparse
import csv
import io
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = "celltypist/data/samples/sample_cell_by_gene.csv"
NUM_TEST, MIN_CELLS = 109, 100
SETTINGS = ["hidden_sizes=128", "latent_dim=10", "batch_size=50", "num_epochs=150", "eval_epochs=5"]
SETTINGS += ["validation_size=50", "beta_warmup_steps=200"]
SHARES = 'likelihood_options={"shares": true}'
ROWS = {
    "`negative_binomial`, shares": ("yes", ["likelihood=negative_binomial", SHARES]),
    "`zero_inflated_negative_binomial`, shares": ("yes", ["likelihood=zero_inflated_negative_binomial", SHARES]),
    "`negative_binomial`": ("no", ["likelihood=negative_binomial"]),
    "`poisson`": ("no", ["likelihood=poisson"]),
}


def read(wheel: Path) -> tuple[np.ndarray, np.ndarray]:
    """The counts of the training cells and of the cells held out, as stored: floats such as 0.999999999999999."""
    with zipfile.ZipFile(wheel) as archive, archive.open(SAMPLE) as file:
        rows = csv.reader(io.TextIOWrapper(file, "utf-8"))
        next(rows)
        x = np.array([np.array(row[1:], np.float64) for row in rows])
    x = x[:, (np.rint(x) > 0).sum(0) >= MIN_CELLS]
    order = np.random.RandomState(0).permutation(len(x))
    return x[order[NUM_TEST:]], x[order[:NUM_TEST]]


def without_latents(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """log p of each cell given its total, under one negative binomial per gene; r by a search of golden sections."""
    share = train.sum(0) / train.sum()
    mean = lambda x: share * np.maximum(x.sum(1, keepdims=True), 1)  # noqa: E731

    def log_p(x: np.ndarray, log_r: np.ndarray) -> np.ndarray:
        r, m = np.exp(log_r), mean(x)
        return stats.nbinom.logpmf(x, r, r / (r + m))

    low, high = np.full(train.shape[1], -7.0), np.full(train.shape[1], 10.0)
    ratio = (5**0.5 - 1) / 2
    for _ in range(30):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        better = log_p(train, left).sum(0) > log_p(train, right).sum(0)
        low, high = np.where(better, low, left), np.where(better, right, high)
    return log_p(test, (low + high) / 2).sum(1)


def with_latents(
    data: Path, run_dir: Path, settings: list[str], seed: int, num_samples: int
) -> tuple[dict, np.ndarray]:
    """The figures that `evaluate` prints, with the seconds of the training process, and log p of each cell."""
    flags = [f"--config.{setting}" for setting in (f"dataset={data}", f"seed={seed}", *SETTINGS, *settings)]
    start = time.perf_counter()
    command = [sys.executable, ROOT / "train.py", f"--workdir={run_dir}", *flags]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    command = [sys.executable, "-m", "vae_jax", "evaluate", run_dir, "--checkpoint=best", "--split=test"]
    command += [f"--num_samples={num_samples}", f"--per_example={run_dir / 'cells.npz'}"]
    figures = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    return figures | {"seconds": seconds}, np.load(run_dir / "cells.npz")["log_px"]


def spread(values: np.ndarray) -> str:
    """Mean and standard error."""
    return f"{values.mean():,.1f} ± {values.std(ddof=1) / len(values) ** 0.5:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_samples", type=int, default=1000, help="K (%(default)s)")
    options = parser.parse_args()
    if not options.wheel.is_file():
        print(f"Skipped: there is no {options.wheel}. Type: python -m pip download celltypist==1.7.1 --no-deps")
        return
    train, test = read(options.wheel)
    plain = without_latents(np.rint(train), np.rint(test))
    print(f"| | given the total | log p of a cell, K = {options.num_samples:,} | gain | ELBO | training |")
    print("|---|---|---|---|---|---|")
    print(f"| a negative binomial per gene, no latents | yes | {spread(plain)} | | | |")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "cells.npz")
        np.savez(data, x_train=train, x_test=test)
        for i, (name, (given, settings)) in enumerate(ROWS.items()):
            f, each = with_latents(data, Path(folder, str(i)), settings, options.seed, options.num_samples)
            row = (
                name,
                given,
                spread(each),
                spread(each - plain) if given == "yes" else "",
                f"{f['elbo']:,.1f}",
                f"{f['seconds']:.0f} s",
            )
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
