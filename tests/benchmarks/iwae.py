"""Table 1 of Burda et al. 2016 (arXiv:1509.00519), and DReG beside it, after a number of epochs of its schedule.

    python tests/benchmarks/iwae.py [--num_epochs=4] [--seeds=0,1,2] [--num_samples=500] [--only=PATTERN]

Dynamically binarised MNIST, all 10,000 test images. Each cell is one sweep over the seeds, in checkpoints/iwae, and a
line of iwae.jsonl beside this file; a cell that has its line is not run again, until the line is deleted. Then it
prints what the file has of such a number of epochs. The whole schedule is --num_epochs=3280.

`cores` of a line: XLA:CPU orders its sums by their number, on which the figures of an IWAE depend therefore
(`taskset -c 0` runs a cell on one). The lines without it are of an unrecorded number.
"""

import argparse
import json
import statistics
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

from measure import num_cores

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_suffix(".jsonl")
LAYERS = ("one_layer", "two_layers")
FLAGS = {
    "VAE": ["--config.kl=monte_carlo"],
    "IWAE": ["--config.objective=iwae"],
    "DReG": ["--config.objective=iwae", "--config.estimator=dreg"],
}
# NLL of K = 5,000 after 3,280 epochs, with one stochastic layer and with two.
PUBLISHED = {
    ("VAE", 1): (86.76, 85.33),
    ("VAE", 5): (86.47, 85.01),
    ("VAE", 50): (86.35, 84.78),
    ("IWAE", 5): (85.54, 83.89),
    ("IWAE", 50): (84.78, 82.90),
    ("DReG", 50): None,
}


def measure(layers: str, objective: str, k: int, options: argparse.Namespace) -> dict:
    """The line of one cell: means over the seeds, and the standard error of the NLL."""
    sweep_dir = ROOT / "checkpoints" / "iwae" / f"{options.num_epochs}_{layers}_{objective}_{k}"
    flags = [f"--config={ROOT / 'configs' / 'iwae' / layers}.py", f"--config.num_epochs={options.num_epochs}"]
    flags += [*FLAGS[objective], f"--config.num_samples={k}"]
    flags += [f"--seeds={options.seeds}", f"--num_samples={options.num_samples}"]
    command = [sys.executable, "-m", "vae_jax", "sweep", sweep_dir, *flags]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    result = json.loads((sweep_dir / "sweep.json").read_text())
    (row,), members = result["table"], result["members"]
    names = [name for name in members[0] if name.startswith("active_units_")] or ["active_units"]
    return {
        **{"layers": layers, "objective": objective, "k": k, "num_epochs": options.num_epochs},
        **{"num_samples": options.num_samples, "num_seeds": row["num_seeds"], "cores": num_cores()},
        **{name: row[name] for name in ("nll", "nll_se", "elbo", "elbo_se")},
        "active_units": [statistics.mean(own[name] for own in members) for name in names],
    }


def read() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table(rows: list[dict], num_epochs: int) -> str:
    """What `rows` have of so many epochs, in Markdown: NLL, and mean active units in parentheses."""
    own = {(row["layers"], row["objective"], row["k"]): row for row in rows if row["num_epochs"] == num_epochs}
    epochs = f"{num_epochs:,} epochs"
    heads = ["", "k", f"one layer, {epochs}", f"two layers, {epochs}", "one layer, published", "two layers, published"]
    lines = [heads, ["---"] * len(heads)]
    for (objective, k), published in PUBLISHED.items():
        cells = [cell(own.get((layers, objective, k))) for layers in LAYERS]
        lines.append([objective, str(k), *cells, *(f"{nll:.2f}" for nll in published or ())])
        lines[-1] += [""] * (len(heads) - len(lines[-1]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(row: dict | None) -> str:
    if row is None:
        return ""
    error = "" if row["nll_se"] is None else f" ± {row['nll_se']:.2f}"
    return f"{row['nll']:.2f}{error} ({' + '.join(f'{units:.1f}' for units in row['active_units'])})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_epochs", type=int, default=4)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--num_samples", type=int, default=500)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="cells by name: one_layer_IWAE_50, or *_DReG_*")
    options = parser.parse_args()
    for objective, k in PUBLISHED:
        for layers in LAYERS:
            at = {"layers": layers, "objective": objective, "k": k, "num_epochs": options.num_epochs}
            there = any(at.items() <= row.items() for row in read())
            if fnmatch(f"{layers}_{objective}_{k}", options.only) and not there:
                line = json.dumps(measure(layers, objective, k, options))
                with RESULTS.open("a") as file:
                    file.write(f"{line}\n")
    print(table(read(), options.num_epochs))
