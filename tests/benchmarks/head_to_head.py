"""Minutes to a NLL: vae_jax, PyTorch and pythae train the same VAE on the same images from the same weights.

    python -m pip install -e '.[benchmark]'
    python tests/benchmarks/head_to_head.py [--data=mnist.npz] [--seeds=0] [--only=PATTERN] [--full] [--show]

Images are binarised anew in each step. There are three models, of MNIST and of the 1,500 8x8 digits that are here:

- mnist_fast: that of configs/mnist_fast.py, for its 13 epochs, until 86.76, the published NLL of the VAE with one layer
  of Burda et al. 2016 (K = 5,000; here K = 500).
- plain: 784-400-20 with ReLU and N(0, I), Adam at 1e-3, for 13 epochs. It is what pythae trains as it comes.
- digits: the same for the digits, for 60 epochs.

The protocol:

- Each contender trains in a process of its own, and begins with the weights of train.py for this seed. PyTorch's loop
  is the fastest of those in head_to_head_torch.py, which a trial of 30 steps chooses.
- The clock counts the training steps alone. Compilation and trials are apart. It stops at the end of each epoch, where
  a copy of the weights is kept: of their average, where the recipe has one.
- Then the weights of all contenders, in vae_jax's form, go through the evaluator of vae_jax, with float32 products and
  K = 500. For each epoch it takes 500 test images, evenly spaced, and adds what the whole test split differs from them
  at the end of the training. The minutes are those of the first epoch that has the NLL by this estimate, if it then has
  it on the whole split, and else of the next one that has.

Each run is a line of head_to_head.jsonl beside this file. Then it prints the table of that file. --data is an .npz with
x_train and x_test; without it MNIST comes from tensorflow-datasets. --full adds mnist_fast with float32 products alone.
--show only prints. --tiny tries all of it in small sizes, on random images, and writes no line unless --results names a
file.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import head_to_head_jax as shared
import numpy as np
from measure import VERSIONS, Unavailable, alone, check_some, cpu, images, load_average, num_cores, version
from ours import recipe_config

from vae_jax.cli.console import several
from vae_jax.config import Config

RESULTS = Path(__file__).with_suffix(".jsonl")
TARGETS = {"mnist_fast": 86.76, "plain": 100.0, "digits": 24.0}
# What a row of the table does not share with vae_jax's row of the same model.
NOTES = {
    "PyTorch": "autocast rounds the results of the products and the activations too; oneDNN rounds the factors alone, "
    "as vae_jax does, but also those in the RealNVP; nothing skips what is not finite",
    "pythae": "its trainer as it comes, with neither a compiled step nor fused Adam, takes the images one by one from "
    "its Dataset, which here also draws the pixels, since pythae binarises nothing; its loss, the sum over pixels and "
    "the mean over the batch as in vae_jax, takes probabilities; the last batch of an epoch is smaller",
}
TINY = {"hidden_sizes": (8,), "latent_dim": 4, "num_epochs": 2, "batch_size": 50}


def configs(mnist: str, tiny: bool) -> dict[str, Config]:
    """What is trained, by the names of the models."""
    fast = recipe_config({"recipe": "mnist_fast", "dataset": mnist})
    plain = {"recipe": "pytorch_example", "dataset": mnist, "binarization": "dynamic", "num_epochs": fast.num_epochs}
    found = {"mnist_fast": fast, "plain": recipe_config(plain)}
    found["digits"] = replace(found["plain"], dataset="digits", num_epochs=60)
    if tiny:
        found = {name: replace(config, **TINY) for name, config in found.items()}
        flow = {"hidden_size": 8, "num_couplings": 2}
        found["mnist_fast"] = replace(found["mnist_fast"], prior_options=flow)
    return found


def contenders(fast: Config, full: bool) -> list[tuple[str, str, str]]:
    """(model, contender, type of the products) of each row. Our first row of mnist_fast is the recipe as it is."""
    types = dict.fromkeys((fast.compute_dtype, "float32") if full else (fast.compute_dtype,))
    rows = [("mnist_fast", name, dtype) for dtype in types for name in ("vae_jax", "PyTorch")]
    return rows + [(own, name, "float32") for own in ("plain", "digits") for name in ("vae_jax", "PyTorch", "pythae")]


def train(contender: str, config: Config, own: Any) -> shared.Trained:
    """The training run of a contender, in a process of its own. Raises Unavailable where it is not installed."""
    if contender == "vae_jax":
        return alone("head_to_head_jax.vae_jax", config)
    weights = shared.grey(own), shared.first_params(config, own)
    return alone(f"head_to_head_torch.{contender.lower()}", shared.setting(config), *weights)


def judged(trained: shared.Trained, nll: Callable[[Any, int], float], target: float, few: int) -> dict[str, Any]:
    """The figures of a training run. nll(params, num): the bound of so many test images."""
    whole = cached(lambda epoch: nll(trained.params[epoch], sys.maxsize))
    last = len(trained.params) - 1
    subset = [nll(params, few) for params in trained.params]
    curve = [value + whole(last) - subset[last] for value in subset]
    epoch = first_at(curve, target, whole)
    return {
        "minutes": None if epoch is None else trained.seconds[epoch] / 60,
        "epoch": None if epoch is None else epoch + 1,
        "nll": None if epoch is None else whole(epoch),
        "minutes_end": trained.seconds[last] / 60,
        "nll_end": whole(last),
        "compile_seconds": trained.compile_seconds,
        "choice": trained.choice,
        "minutes_each": [seconds / 60 for seconds in trained.seconds],
        "nll_each": curve,
        "loss_each": trained.losses,
    }


def first_at(curve: Sequence[float], target: float, whole: Callable[[int], float]) -> int | None:
    """The first epoch from the one on that the estimate `curve` has at the target or below, that is so by `whole` too.

    None if there is none. whole(epoch) is exact, and takes long.
    """
    epoch = next((i for i, value in enumerate(curve) if value <= target), len(curve) - 1)
    while epoch < len(curve) and whole(epoch) > target:
        epoch += 1
    return epoch if epoch < len(curve) else None


def cached(function: Callable[[int], float]) -> Callable[[int], float]:
    found: dict[int, float] = {}
    return lambda i: found[i] if i in found else found.setdefault(i, function(i))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown: those of each model and contender are means over their runs."""
    heads = ["model, NLL to reach", "contender, narrowest products", "minutes to it", "NLL there (epoch)"]
    heads += ["minutes of all epochs", "NLL at their end", "compilation, s", "loop", "runs"]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        name = f"{row['model']}, {row['target']:g}", f"{row['contender']}, {row['compute_dtype']}"
        groups.setdefault(name, []).append(row)
    lines = [heads, ["---"] * len(heads)]
    for name, own in groups.items():
        reached = all(row["minutes"] is not None for row in own)
        mean = lambda field, own=own: statistics.mean(row[field] for row in own)  # noqa: E731
        epochs = ", ".join(str(row["epoch"]) for row in own)
        minutes = lambda field, mean=mean: f"{mean(field):.{2 if mean(field) >= 0.1 else 3}f}"  # noqa: E731
        there = [minutes("minutes"), f"{mean('nll'):.2f} ({epochs})"] if reached else ["not reached", ""]
        end = [minutes("minutes_end"), f"{mean('nll_end'):.2f}", f"{mean('compile_seconds'):.1f}"]
        lines.append([*name, *there, *end, own[-1]["choice"], str(len(own))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def footer(rows: list[dict[str, Any]]) -> str:
    """What the figures hold for: machines, versions, and what the contenders do not share."""
    machines = dict.fromkeys(machine_line(row["machine"]) for row in rows)
    names = [name for name in NOTES if any(row["contender"] == name for row in rows)]
    return "\n".join([*(f"- {line}" for line in machines), *(f"- {name}: {NOTES[name]}." for name in names)])


def machine_line(machine: dict[str, Any]) -> str:
    speeds = ", ".join(f"{speed:.0f} GFLOP/s in {dtype}" for dtype, speed in machine["gflops"].items())
    versions = ", ".join(f"{name} {own}" for name, own in machine["versions"].items())
    return f"{machine['cpu']}, {machine['cores']} cores: products {speeds}; {versions}."


def machine(size: int) -> dict[str, Any]:
    """The machine, and how fast it is now."""
    return {
        "cpu": cpu(),
        "cores": num_cores(),
        "gflops": {dtype: alone("head_to_head_jax.gflops", dtype, size) for dtype in ("float32", "bfloat16")},
        "versions": {name: version(name) for name in VERSIONS},
    }


def run(options: argparse.Namespace, mnist: str) -> list[dict[str, Any]]:
    """Train and judge each contender; add its line to the file of the results. Gives the new lines."""
    found = configs(mnist, options.tiny)
    jobs = {", ".join(row): row for row in contenders(found["mnist_fast"], options.full)}
    check_some(jobs, options)
    here = machine(64 if options.tiny else 2048)
    few, num_samples = (20, 20) if options.tiny else (500, options.num_samples)
    data = {model: shared.load(config) for model, config in found.items()}
    bounds = {model: shared.make_bound(config, data[model], num_samples) for model, config in found.items()}
    new = []
    for seed in options.seeds:
        for name, (model, contender, dtype) in jobs.items():
            if options.only not in name:
                continue
            epochs = options.num_epochs or found[model].num_epochs
            config = replace(found[model], seed=seed, compute_dtype=dtype, num_epochs=epochs)
            load = load_average()
            try:
                trained = train(contender, config, data[model])
            except Unavailable as reason:
                print(f"{name}, seed {seed}: skipped: {reason}", file=sys.stderr)
                continue
            row = {"model": model, "contender": contender, "compute_dtype": dtype, "seed": seed}
            row |= {"target": TARGETS[model], "num_samples": num_samples, "num_epochs": config.num_epochs}
            row |= judged(trained, bounds[model], TARGETS[model], few)
            new.append(row | {"machine": here | {"load_before": load, "load_after": load_average()}})
            print(f"{name}, seed {seed}: {row['minutes_end']:.2f} min, NLL {row['nll_end']:.2f}", file=sys.stderr)
            if options.results:
                with options.results.open("a") as file:
                    file.write(f"{json.dumps(new[-1])}\n")
    return new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist", help="an .npz with x_train and x_test (by default %(default)s)")
    parser.add_argument("--seeds", type=several(int), default=(0,), help="(0)")
    parser.add_argument("--only", metavar="PATTERN", default="", help="only the rows whose name contains this")
    parser.add_argument("--num_samples", type=int, default=500, help="K of the bound (%(default)s)")
    parser.add_argument("--num_epochs", type=int, help="in place of the recipe's, whose schedule they become")
    parser.add_argument("--results", type=Path, help=f"the file of the lines ({RESULTS.name}, and none with --tiny)")
    parser.add_argument("--full", action="store_true", help="add mnist_fast with float32 products alone")
    parser.add_argument("--show", action="store_true", help="train nothing, print what the file has")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try it")
    options = parser.parse_args()
    if options.results is None and not options.tiny:
        options.results = RESULTS
    with tempfile.TemporaryDirectory() as folder:
        if options.tiny:
            path = os.path.join(folder, "images.npz")
            np.savez(path, x_train=images(220), x_test=images(40))
        new = [] if options.show else run(options, path if options.tiny else options.data)
    rows = read(options.results) if options.results else new
    print(f"{table(rows)}\n\n{footer(rows)}")


if __name__ == "__main__":
    main()
