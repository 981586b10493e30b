"""How disentangled the latents of a beta-TC-VAE, a beta-VAE of the same beta and a VAE are, on sprites: MIG, SAP, DCI.

    python tests/benchmarks/disentangle.py [--seeds=0,1,2] [--beta=6] [--num_epochs=45] [--tiny]

The images are sprites of 16x16 pixels with soft edges: 3 shapes, 6 scales and 32 x 32 places, 18,432 images, of which
16,589 are for training. All VAEs are 256-256-256-10 with tanh, and train with Adam at 1e-3 and batches of 256. Their
figures are of the codes of the training images, MIG, SAP and DCI by the command disentangle. The mutual information of
x and z and the total correlation of q(z) are those of the average of q(z | x) over all training images, at 500 samples.
-log p(x | z) and the KL are of the test images. --tiny tries all of it in small sizes.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from measure import print_header, print_row

from vae_jax import load
from vae_jax.__main__ import main
from vae_jax.cli.console import several
from vae_jax.core import to_float
from vae_jax.data import datasets
from vae_jax.evaluate import evenly, standard_error
from vae_jax.penalties import decompose

GRID = {"image_size": 16, "num_angles": 1, "num_positions": 32, "antialias": True}
TINY = {"image_size": 8, "num_scales": 2, "num_angles": 1, "num_positions": 4}
FIGURES = {
    "MIG, 20 bins": "mig",
    "MIG of q(z \\| x)": "mig_q",
    "SAP": "sap",
    "disentanglement (DCI)": "dci_disentanglement",
    "completeness (DCI)": "dci_completeness",
    "informativeness (DCI)": "dci_informativeness",
}


def contenders(beta: float) -> dict[str, tuple[str, float]]:
    """Each with its objective and its beta."""
    return {"beta-VAE": ("elbo", beta), "beta-TC-VAE": ("total_correlation", beta), "VAE": ("elbo", 1.0)}


def called(argv: list[str]) -> dict[str, Any]:
    """The JSON object that a command prints."""
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        if status := main(argv):
            raise SystemExit(status)  # a signal has stopped it
    return json.loads(stdout.getvalue())


def aggregate(run_dir: str, num: int = 500) -> tuple[float, float]:
    """The mutual information of x and z and the total correlation of q(z) over the training images, in nats."""
    run = load(run_dir)
    x = datasets.load("sprites", options=run.config.dataset_options).train.x
    q = run.vae.encode(run.params, to_float(jnp.asarray(x)))
    rows = jnp.asarray(evenly(len(x), num))
    own = jax.tree.map(lambda a: a[rows], q)
    z = own.sample(jax.random.key(0))
    log_weights = jnp.full((len(rows), 1), -jnp.log(len(x)))
    log_p = run.vae.prior(run.params).log_prob(z)
    terms = decompose(z, own.log_prob(z), log_p, q.mean, q.log_var, log_weights, lambda f: partial(jax.lax.map, f))
    return float(jnp.mean(terms.mutual_information)), float(jnp.mean(terms.total_correlation))


def measured(objective: str, beta: float, seed: int, num_epochs: int, tiny: bool) -> dict[str, float]:
    """The figures of one run, and the MIG of each factor."""
    sizes = {"hidden_sizes": "8", "batch_size": "20"} if tiny else {"hidden_sizes": "256,256", "batch_size": "256"}
    fields = {"dataset": "sprites", "dataset_options": json.dumps(TINY if tiny else GRID), "activation": "tanh"}
    fields |= {"objective": objective, "beta": str(beta), "seed": str(seed), "latent_dim": "10", **sizes}
    fields |= {"learning_rate": "1e-3", "schedule": "constant", "ema_decay": "0"}
    fields |= {"num_epochs": str(num_epochs), "eval_epochs": str(num_epochs)}
    few = ["--num_train=30", "--num_samples=50"] if tiny else ["--num_train=500", "--num_samples=1000"]
    with tempfile.TemporaryDirectory() as folder:
        trained = called(["train", f"--workdir={folder}", *(f"--config.{n}={v}" for n, v in fields.items())])
        found = called(["disentangle", folder, "--split=train", *few])
        information, correlation = aggregate(folder)
    return {
        **{text: found[name] for text, name in FIGURES.items()},
        **{f"MIG of {name}, 20 bins": own["mig"] for name, own in found["factors"].items()},
        "mutual information of x and z": information,
        "total correlation of q(z)": correlation,
        "-log p(x \\| z), test": -trained["log_likelihood"],
        "KL, test": trained["kl"],
    }


def cell(values: list[float]) -> str:
    """The mean of the seeds and its standard error."""
    error = standard_error(values)
    return f"{statistics.mean(values):.3f}" + ("" if error is None else f" ± {error:.3f}")


def table(rows: dict[str, list[dict[str, float]]]) -> None:
    """One row per figure, one column per contender."""
    print_header("", *rows)
    for figure in next(iter(rows.values()))[0]:
        print_row(figure, *(cell([own[figure] for own in seeds]) for seeds in rows.values()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=several(int), default=(0, 1, 2), help="(0,1,2)")
    parser.add_argument("--beta", type=float, default=6.0, help="(%(default)s)")
    parser.add_argument("--num_epochs", type=int, default=45, help="(%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try it")
    options = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in contenders(options.beta)}
    for seed in options.seeds:
        for name, kind in contenders(options.beta).items():
            rows[name].append(measured(*kind, seed, options.num_epochs, options.tiny))
            print(json.dumps({"name": name, "seed": seed, **rows[name][-1]}), file=sys.stderr, flush=True)
    table(rows)
    print(json.dumps(rows))
