"""How well log p(x) of a VAE tells anomalies, beside PCA, factor analysis and PyOD's VAE: AUROC and average precision.

    python -m pip install -e '.[benchmark]'
    python tests/benchmarks/anomalies.py [--seeds=0,1,2] [--num_samples=500]

The data are the breast tumours of scikit-learn, 30 columns. The seed picks 250 of the 357 benign rows for training. The
other 107 benign rows and all 212 malignant ones, the anomalies, are scored. All columns are standardised by the mean
and the standard deviation of the training rows, so that all contenders see the same numbers.

- Ours is configs/anomaly.py, whose seed is the seed too, scored by the command score.
- PCA scores the squared error of its reconstruction. Its number of components is the smallest that explains 95 % of
  the variance of the training rows. Beside it is the number that is best for these anomalies, which no one can know.
- Factor analysis scores -log p(x), and the likelihood of five folds of the training rows chooses the number of factors.
- PyOD's VAE has the settings that it comes with, and once as many epochs as ours. These settings clamp the KL to 0
  (capacity=0), so that a further row lets it count. Without PyOD the rows are skipped.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure import print_header, print_row
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.model_selection import GridSearchCV

from vae_jax.__main__ import main
from vae_jax.anomalies import auroc, average_precision
from vae_jax.cli.console import several
from vae_jax.config import load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "configs" / "anomaly.py"
NUM_TRAIN = 250
EXPLAINED = 0.95


def split(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training rows, rows to score, and which of these are anomalies."""
    x, benign = load_breast_cancer(return_X_y=True)
    order = np.random.RandomState(seed).permutation(np.flatnonzero(benign))
    train, rest = x[order[:NUM_TRAIN]], np.concatenate([order[NUM_TRAIN:], np.flatnonzero(1 - benign)])
    standardised = ((a - train.mean(0)) / train.std(0) for a in (train, x[rest]))
    return *(a.astype(np.float32) for a in standardised), benign[rest] == 0


def ours(seed: int, train: np.ndarray, new: np.ndarray, num_samples: int) -> dict[str, np.ndarray]:
    """Minus each column of the command score, by its name."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        kind = np.full(len(train), "benign"), np.full(len(new), "benign")  # the labels play no part in scoring
        np.savez(f"{folder}/data.npz", x_train=train, y_train=kind[0], x_test=new, y_test=kind[1])
        flags = [f"--config.dataset={folder}/data.npz", f"--config.seed={seed}", "--config.standardize=false"]
        if status := main(["train", f"--config={RECIPE}", f"--workdir={folder}/run", *flags]):
            raise SystemExit(status)  # a signal has stopped it
        main(["score", f"{folder}/run", f"--num_samples={num_samples}", f"--out={folder}/scores.npz"])
        with np.load(f"{folder}/scores.npz") as scores:
            return {name: -scores[name] for name in ("log_px", "elbo", "log_likelihood")}


def pca_error(num_components: float, train: np.ndarray, new: np.ndarray) -> np.ndarray:
    pca = PCA(num_components, svd_solver="full").fit(train)
    return np.sum((new - pca.inverse_transform(pca.transform(new))) ** 2, 1)


def factor_analysis(train: np.ndarray, new: np.ndarray) -> np.ndarray:
    search = GridSearchCV(FactorAnalysis(), {"n_components": range(2, 30, 3)}).fit(train)
    return -search.best_estimator_.score_samples(new)


def pyod_vae(seed: int, train: np.ndarray, new: np.ndarray, **settings: int) -> np.ndarray:
    from pyod.models.vae import VAE

    detector = VAE(preprocessing=False, random_state=seed, verbose=0, **settings)
    return detector.fit(train).decision_function(new)


def rows(seed: int, num_samples: int) -> dict[str, tuple[float, float] | str]:
    """AUROC and average precision of each contender, or why it is skipped."""
    train, new, anomaly = split(seed)

    def figures(score: np.ndarray) -> tuple[float, float]:
        return auroc(score, anomaly), average_precision(score, anomaly)

    def or_reason(score: Callable[[], np.ndarray]) -> tuple[float, float] | str:
        try:
            return figures(score())
        except ModuleNotFoundError as error:
            return f"skipped: {error}; python -m pip install -e '.[benchmark]'"

    epochs = load_recipe(RECIPE).num_epochs
    return {
        **{f"ours, -{name}": figures(score) for name, score in ours(seed, train, new, num_samples).items()},
        "PCA, components for 95 % of the variance": figures(pca_error(EXPLAINED, train, new)),
        "PCA, components best for the anomalies": max(figures(pca_error(n, train, new)) for n in range(1, 30)),
        "factor analysis, -log p(x)": figures(factor_analysis(train, new)),
        "PyOD's VAE as it comes, 30 epochs": or_reason(lambda: pyod_vae(seed, train, new)),
        "PyOD's VAE, its KL counts (capacity=1000)": or_reason(lambda: pyod_vae(seed, train, new, capacity=1000)),
        f"PyOD's VAE, {epochs} epochs": or_reason(lambda: pyod_vae(seed, train, new, epoch_num=epochs)),
    }


def cells(found: list[tuple[float, float] | str]) -> list[str]:
    """The figures of all seeds, and their mean, of AUROC and of average precision."""
    if isinstance(found[0], str):
        return [found[0], ""]
    return [
        f"{statistics.mean(values):.4f} ({', '.join(f'{v:.4f}' for v in values)})"
        for values in zip(*found, strict=True)
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=several(int), default=(0, 1, 2), help="(0,1,2)")
    parser.add_argument("--num_samples", type=int, default=500, help="K of log p(x) (%(default)s)")
    options = parser.parse_args()
    measured = [rows(seed, options.num_samples) for seed in options.seeds]
    print_header("", "AUROC, mean (each seed)", "average precision, mean (each seed)")
    for name in measured[0]:
        print_row(name, *cells([each[name] for each in measured]))
    print(json.dumps({"seeds": options.seeds, "num_samples": options.num_samples}))
