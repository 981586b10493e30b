"""How disentangled the latents of a beta-TC-VAE and of a beta-VAE are at one beta, on sprites: MIG, SAP and DCI.

    python tests/benchmarks/disentangle.py [--seeds=0,1,2] [--beta=6] [--num_epochs=60] [--tiny]

The images are the sprites at 32x32 pixels: 3 shapes, 6 scales, 10 angles, 8 x 8 places, 11,520 images, of which 10,368
are for training. Both VAEs are 1024-400-400-10 with GELU, and train with Adam at 1e-3 and batches of 256. Their figures
are of the codes of the training images, by the command disentangle, and -log p(x|z) and the KL are of the test images.
--tiny tries all of it in small sizes.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from typing import Any

from measure import print_header, print_row

from vae_jax.__main__ import main
from vae_jax.cli.console import several
from vae_jax.evaluate import standard_error

CONTENDERS = {"beta-VAE": "elbo", "beta-TC-VAE": "total_correlation"}
GRID = {"num_angles": 10}
TINY = {"image_size": 8, "num_scales": 2, "num_angles": 2, "num_positions": 3}
FIGURES = ("mig", "mig_q", "sap", "dci_disentanglement", "dci_completeness", "dci_informativeness")
LOSSES = ("-log p(x|z)", "KL")


def called(argv: list[str]) -> dict[str, Any]:
    """The JSON object that a command prints."""
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        if status := main(argv):
            raise SystemExit(status)  # a signal has stopped it
    return json.loads(stdout.getvalue())


def measured(objective: str, seed: int, beta: float, num_epochs: int, tiny: bool) -> dict[str, float]:
    """The figures of one run, and the MIG of each factor."""
    sizes = {"hidden_sizes": "8", "batch_size": "20"} if tiny else {"hidden_sizes": "400,400", "batch_size": "256"}
    fields = {"dataset": "sprites", "dataset_options": json.dumps(TINY if tiny else GRID), "activation": "gelu"}
    fields |= {"objective": objective, "beta": str(beta), "seed": str(seed), "latent_dim": "10", **sizes}
    fields |= {"learning_rate": "1e-3", "schedule": "constant", "ema_decay": "0"}
    fields |= {"num_epochs": str(num_epochs), "eval_epochs": str(num_epochs)}
    with tempfile.TemporaryDirectory() as folder:
        trained = called(["train", f"--workdir={folder}", *(f"--config.{n}={v}" for n, v in fields.items())])
        found = called(
            ["disentangle", folder, "--split=train", *(["--num_train=30", "--num_samples=50"] if tiny else [])]
        )
    each = {f"MIG of {name}": own["mig"] for name, own in found["factors"].items()}
    losses = dict(zip(LOSSES, (-trained["log_likelihood"], trained["kl"]), strict=True))
    return {name: found[name] for name in FIGURES} | losses | each


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
    parser.add_argument("--num_epochs", type=int, default=60, help="(%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try it")
    options = parser.parse_args()
    common = (options.beta, options.num_epochs, options.tiny)
    rows = {name: [measured(kind, seed, *common) for seed in options.seeds] for name, kind in CONTENDERS.items()}
    table(rows)
    print(json.dumps(rows))
