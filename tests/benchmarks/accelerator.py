"""What one accelerator reaches: speed, agreement with the CPU, and a recipe for the time that is left.

    python tests/benchmarks/accelerator.py --data=mnist.npz --out=DIR [--minutes=8] [--tiny]

The file holds x_train and x_test, [N, 28, 28] or [N, 28, 28, 1] in uint8. The results go to DIR/accelerator.json, which
is written anew after each row, and to DIR/accelerator.md. Each part has a share of the time, and what does not fit into
it is named as left out. jax, flax, optax and numpy are enough. --tiny runs all of it in small sizes, on random images
where no file is given, so that it can be tried on a CPU.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where the package is not installed

import accelerator_parts
import jax
import numpy as np
from accelerator_parts import Data, Job, Sizes
from measure import Unavailable, cpu, images, num_cores, number, spread, version

ROOT = Path(__file__).resolve().parents[2]
# The jobs of each part, and when it ends, as a share of the time. What a part leaves is for those after it.
PARTS: dict[str, tuple[Callable[[Data, Sizes, float], dict[str, Job]], float]] = {
    "speed": (accelerator_parts.speed_jobs, 0.28),
    "pytorch": (accelerator_parts.pytorch_jobs, 0.54),
    "nll": (accelerator_parts.nll_jobs, 0.64),
    "members": (accelerator_parts.members_jobs, 0.7),
    "agreement": (accelerator_parts.agreement_jobs, 0.78),
    "recipe": (accelerator_parts.recipe_jobs, 0.97),
}
FULL = Sizes(
    steps={128: 2000, 1024: 500, 8192: 100},
    dtypes=("float32", "bfloat16"),
    repeats=5,
    square=8192,
    num_train=60_000,
    num_test=10_000,
    num_samples=(5000, 500),
    nll_steps=4680,
    members=16,
    agreement={"784-400-20": 100, "convolutional": 100},
    recipe={},
)
TINY = Sizes(
    steps={16: 5},
    dtypes=("bfloat16",),
    repeats=3,
    square=64,
    num_train=228,
    num_test=40,
    num_samples=(50, 20),
    nll_steps=5,
    members=3,
    agreement={"784-400-20": 10},
    recipe={
        "network_options": {"channels": [4, 8], "decoder_channels": [8, 4]},
        "prior_options": {"hidden_size": 8, "num_couplings": 2},
        **{"hidden_sizes": (8,), "latent_dim": 4, "validation_size": 28},
        **{"batch_size": 50, "num_epochs": 2, "warmup_steps": 3},
    },
)

Rows = dict[str, dict[str, Any]]


def load(path: str | None, sizes: Sizes) -> Data:
    """x_train and x_test as [N, 28, 28, 1]. Exits with one line where the file does not hold them."""
    if path is None:
        return {"x_train": images(sizes.num_train), "x_test": images(sizes.num_test)}
    try:
        with np.load(path) as file:
            data = {name: file[name] for name in ("x_train", "x_test")}
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"error: {path}: {error}. Give an .npz file with x_train and x_test.") from None
    for name, x in data.items():
        if x.dtype != np.uint8 or x.shape[1:] not in ((28, 28), (28, 28, 1)):
            raise SystemExit(
                f"error: {name} is {x.dtype} {list(x.shape)}; expected uint8 [N, 28, 28] or [N, 28, 28, 1]."
            )
    numbers = {"x_train": sizes.num_train, "x_test": sizes.num_test}
    for name, num in numbers.items():
        if len(data[name]) < num:
            raise SystemExit(f"error: {name} holds {len(data[name])} images; expected at least {num}. Give more.")
    return {name: data[name][:num].reshape(-1, 28, 28, 1) for name, num in numbers.items()}


def attempt(
    jobs: Mapping[str, Job], end: float, rows: Rows, left_out: dict[str, str], saved: Callable[[], None]
) -> None:
    """Add the figures of each job to `rows`, or why there are none to `left_out`.

    No job begins that would pass `end`, a time, if it took as long as the longest one before it of the same kind, which
    is what its name begins with.
    """
    longest: dict[str, float] = {}
    for name, job in jobs.items():
        begin, kind = time.monotonic(), name.split(",")[0]
        if begin + longest.get(kind, 0.0) > end:
            left_out[name] = "no time was left"
            continue
        try:
            rows[name] = job()
        except Unavailable as reason:
            left_out[name] = str(reason)
        except Exception as error:  # such as a lack of memory; the other rows can still be had
            left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        seconds = time.monotonic() - begin
        longest[kind] = max(longest.get(kind, 0.0), seconds)
        print(f"{name}: {left_out.get(name, 'measured')}, {seconds:.1f} s", file=sys.stderr, flush=True)
        saved()


def machine() -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "backend": jax.default_backend(),
        "platform": device.client.platform_version.splitlines(),
        "driver": output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cpu": cpu(),
        "cores": num_cores(),
        "commit": output_of("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        **{name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy", "torch")},
    }


def output_of(*command: str) -> str | None:
    """The first line that a program prints; None where there is no such program or it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def markdown(result: Mapping[str, Any]) -> str:
    """The results as one table of trainings, one of the other figures, and what was left out."""
    about, speed = result["machine"], result["speed"]
    versions = f"{about['device']}, jax {about['jax']}, torch {about['torch']}"
    header = ("training", "images/s", "microseconds a step", "TFLOP/s", "share of the square products' rate")
    header += ("share of its own products' rate", "PyTorch, images/s", "here / PyTorch")
    lines = [
        f"{versions}; {result['seconds']:.0f} s; medians (range).",
        "",
        cells(*header),
        cells(*["---"] * len(header)),
    ]
    squares = {name: row for name, row in speed.items() if "tflops_peak" in row}
    rows = {name: row for name, row in speed.items() if name not in squares}
    lines += [cells(name, *training(row, result["pytorch"].get(name))) for name, row in rows.items()]
    lines += ["", cells("measured", "result"), cells("---", "---")]
    lines += [cells(name, f"{spread(row['tflops_peak'])} TFLOP/s") for name, row in squares.items()]
    for part, text in {"nll": nll, "members": members, "agreement": agreement, "recipe": recipe}.items():
        lines += [cells(name, text(row)) for name, row in result[part].items()]
    reasons: dict[tuple[str, str], list[str]] = {}
    for part, name, why in result["left_out"]:
        reasons.setdefault((part, why.rstrip(".")), []).append(name)
    lines += [""] + [f"- Left out of {part}: {'; '.join(names)}: {why}." for (part, why), names in reasons.items()]
    return "\n".join(lines) + "\n"


def training(row: dict[str, Any], other: dict[str, Any] | None) -> list[str]:
    """The cells of a training after its name. other: PyTorch's figures."""
    rates = row["images_per_second"]
    texts = [spread(rates), spread(row["step_microseconds"])]
    texts += [number(row[key]) for key in ("tflops", "share_of_peak", "share_of_products")]
    if other is None:
        return [*texts, "", ""]
    pairs = zip(sorted(rates), sorted(other["images_per_second"]), strict=True)
    return [*texts, f"{spread(other['images_per_second'])}, {other['variant']}", spread([a / b for a, b in pairs])]


def nll(row: dict[str, Any]) -> str:
    rate = f"{spread(row['seconds'])} s, {spread(row['images_per_second'])} images/s"
    return f"NLL of {row['num_examples']} images, K = {row['num_samples']}: {rate}; {nats(row)}"


def members(row: dict[str, Any]) -> str:
    times = f"{row['together_to_one']:.2f} together, {row['in_turn_to_one']:.2f} in turn"
    return f"{row['members']} models, in units of the time of one: {times}"


def agreement(row: dict[str, Any]) -> str:
    errors = (f"{value:.1e} at {name} precision" for name, value in row["largest_relative_difference"].items())
    return f"largest relative difference from the CPU's losses: {', '.join(errors)}"


def recipe(row: dict[str, Any]) -> str:
    epochs = f"{row['epochs']} epochs of a schedule of {row['epochs_of_schedule']} in {row['seconds']:.0f} s"
    return f"{epochs}, of {row['epochs_of_recipe']} in the recipe: {nats(row)}, K = {row['num_samples']}"


def nats(row: dict[str, Any]) -> str:
    return f"{row['nll']:.2f} ± {row['nll_se']:.2f} nats"


def cells(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"


def main() -> None:
    begin = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="an .npz file with x_train and x_test")
    parser.add_argument("--out", required=True, type=Path, help="the folder of the results")
    parser.add_argument("--minutes", type=float, default=8.0, help="(%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try it")
    options = parser.parse_args()
    if not (options.data or options.tiny):
        parser.error("--data is missing. Give an .npz file with x_train and x_test, or try it with --tiny.")
    sizes = TINY if options.tiny else FULL
    if options.tiny:  # compilation takes nearly all the time then
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    elif jax.default_backend() == "cpu":
        raise SystemExit("error: JAX finds no accelerator. Install one's JAX, such as jax[cuda13], or try --tiny.")
    data = load(options.data, sizes)
    options.out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Rows] = {part: {} for part in PARTS}
    result: dict[str, Any] = {"tiny": options.tiny, "machine": machine(), **parts, "left_out": []}

    def save(part: str, left_out: dict[str, str]) -> None:
        others = [line for line in result["left_out"] if line[0] != part]
        result["left_out"] = others + [[part, name, why] for name, why in left_out.items()]
        result["seconds"] = time.monotonic() - begin
        (options.out / "accelerator.json").write_text(json.dumps(result, indent=1) + "\n")
        (options.out / "accelerator.md").write_text(markdown(result))

    for part, (jobs_of, share) in PARTS.items():
        end, left_out = begin + 60 * options.minutes * share, {}
        attempt(jobs_of(data, sizes, end), end, result[part], left_out, lambda: save(part, left_out))  # noqa: B023
        save(part, left_out)
    print(markdown(result))


if __name__ == "__main__":
    main()
