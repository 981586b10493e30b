"""What the recipes reach, and in which time: trains recipes as a user does, evaluates each, draws NLL against minutes.

    python tests/benchmarks/recipes.py mnist_fast mnist_3min [--seeds=0,1,2] [--num_samples=500]
    python tests/benchmarks/recipes.py --all
    python tests/benchmarks/recipes.py

The figure of a recipe is its NLL on the whole test split if its docstring has the command `evaluate`, and else its test
loss. The seconds are those of the whole training process, from its start to the last picture. A recipe with
`init_from` begins with the weights of another recipe: that one is trained first, if it was not, and its seconds count
too. Each figure is a line of recipes.jsonl beside this file. The run directories are in checkpoints/recipes: a run that
is there is not trained again, but with --redo, and only what its line lacks is evaluated. --all takes seed 0 of every
recipe that the file lacks, or with --redo of every recipe, but not those whose first line says that they take hours or
were never run to their end. Without recipes it prints and draws what the file has. The picture also has what
head_to_head.jsonl has.
"""

import argparse
import ast
import contextlib
import json
import re
import shlex
import statistics
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from measure import num_cores

from vae_jax.config import load_recipe

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_suffix(".jsonl")
HEAD_TO_HEAD = RESULTS.with_name("head_to_head.jsonl")
RUNS = ROOT / "checkpoints" / "recipes"
PICTURE = ROOT / ".github" / "convergence.png"
PICTURED = ("mnist_fast", "mnist_3min", "mnist_8min", "mnist_12min", "mnist_30min", "mnist_gated_iwae")
# Of 5,000 samples, on MNIST binarised in the same way.
PUBLISHED = {
    86.76: "VAE (Burda et al. 2016)",
    84.78: "IWAE, 50 samples (Burda et al. 2016)",
    82.43: "VampPrior VAE (Norouzi et al. 2020)",
    81.56: "HVAE, VampPrior (Norouzi et al. 2020)",
    80.52: "ConvHVAE (Norouzi et al. 2020)",
    79.67: "ConvHVAE, VampPrior (Norouzi et al. 2020)",
}


def path(recipe: str) -> Path:
    return ROOT / "configs" / f"{recipe}.py"


def docstring(file: Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text()), clean=False) or ""


def names() -> list[str]:
    """All recipes but those whose first line says that they take hours or were never run to their end."""
    files = sorted((ROOT / "configs").rglob("*.py"))
    files = [file for file in files if not docstring(file).startswith(("Never run", "Hours"))]
    return [file.relative_to(ROOT / "configs").with_suffix("").as_posix() for file in files]


def make_data(file: Path, folder: Path, times: int | None = None) -> Path | None:
    """Run the lines of a recipe's docstring that make its data, if it has such lines; where the data set then is.

    times: how often its loop is run instead.
    """
    lines = [line for line in docstring(file).splitlines() if line.startswith("    ") or not line.strip()]
    code = textwrap.dedent("\n".join(lines))
    if "import" not in code:
        return None
    with contextlib.chdir(folder):
        exec(code if times is None else re.sub(r"in range\(\d+\)", f"in range({times})", code), {})
    return folder / load_recipe(file).dataset


def train(recipe: str, seed: int) -> dict:
    """The seconds of a training process of its own, and the test loss at its end."""
    folder = RUNS / f"{recipe}_data"
    folder.mkdir(parents=True, exist_ok=True)
    data = make_data(path(recipe), folder)
    flags = [f"--config={path(recipe)}", f"--config.seed={seed}", "--restart"]
    flags += [] if data is None else [f"--config.dataset={data}"]
    flags += [f"--config.init_from={run_directory(first, seed)}"] if (first := begins_from(recipe)) else []
    command = [sys.executable, ROOT / "train.py", *flags, f"--workdir={run_directory(recipe, seed)}"]
    start = time.perf_counter()
    summary = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    seconds = round(time.perf_counter() - start, 1)
    return {"seconds": seconds, "cores": num_cores(), "split": summary["split"], "loss": summary["loss"]}


def begins_from(recipe: str) -> str:
    """The recipe whose weights this one begins with, or ''."""
    return Path(load_recipe(path(recipe)).init_from).name


def evaluation(file: Path) -> list[str] | None:
    """The flags of the command `evaluate` in a recipe's docstring."""
    found = re.search(r"python -m vae_jax evaluate \S+?(?=[`\s])([^`\n]*)", docstring(file))
    return shlex.split(found[1]) if found else None


def evaluate(recipe: str, seed: int, flags: list[str]) -> dict:
    command = [sys.executable, "-m", "vae_jax", "evaluate", run_directory(recipe, seed), *flags]
    summary = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    return {name: summary[name] for name in ("num_samples", "num_examples", "nll", "elbo", "active_units")}


def run_directory(recipe: str, seed: int) -> Path:
    return RUNS / f"{recipe}_{seed}"


def measure(recipe: str, seed: int, num_samples: int, redo: bool) -> None:
    """Add the figures of a recipe to RESULTS, where they are not in it. A trained run is evaluated as it is."""
    first = begins_from(recipe)
    if first:
        measure(first, seed, num_samples, redo=False)
    own = [row for row in read() if (row["recipe"], row["seed"]) == (recipe, seed)]
    if redo or not own or not run_directory(recipe, seed).exists():
        trained = {"recipe": recipe, "seed": seed, **train(recipe, seed)}
        before = [row["seconds"] for row in read() if (row["recipe"], row["seed"]) == (first, seed)]
        trained["seconds"] = round(trained["seconds"] + max(before, default=0), 1)
        write([*(row for row in read() if row not in own), trained])
        own = [trained]
    flags = evaluation(path(recipe))
    if flags is None or num_samples in [row.get("num_samples") for row in own]:
        return
    trained = {name: own[0][name] for name in ("recipe", "seed", "seconds", "cores", "split", "loss")}
    figures = evaluate(recipe, seed, [*flags, f"--num_samples={num_samples}"])
    write([*(row for row in read() if row != trained), trained | figures])


def read() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def write(rows: list[dict]) -> None:
    rows = sorted(rows, key=lambda row: (row.get("num_samples", 0), row["recipe"], row["seed"]))
    RESULTS.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def table(rows: list[dict]) -> dict[tuple[str, int], tuple[float, float, float, int]]:
    """(recipe, samples) -> mean NLL, its standard error, mean seconds, number of seeds; the fastest recipe first.

    0 samples stand for the loss in place of the NLL.
    """
    groups: dict[tuple[str, int], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["recipe"], row.get("num_samples", 0)), []).append(row)
    figures = {}
    for name, own in groups.items():
        nll = [row.get("nll", row.get("loss")) for row in own]
        error = statistics.stdev(nll) / len(nll) ** 0.5 if len(nll) > 1 else 0.0
        figures[name] = statistics.mean(nll), error, statistics.mean(row["seconds"] for row in own), len(own)
    return dict(sorted(figures.items(), key=lambda item: item[1][2]))


def contenders() -> dict[str, list[tuple[float, float]]]:
    """(minutes of training alone, NLL) of the runs of head_to_head.py with the model of mnist_fast, by contender."""
    lines = HEAD_TO_HEAD.read_text().splitlines() if HEAD_TO_HEAD.exists() else []
    points: dict[str, list[tuple[float, float]]] = {}
    for row in map(json.loads, lines):
        if row["model"] == "mnist_fast":
            own = [(row[f"minutes{at}"], row[f"nll{at}"]) for at in ("", "_end") if row[f"minutes{at}"] is not None]
            points.setdefault(f"{row['contender']}, {row['compute_dtype']}", []).extend(own)
    return points


def draw(figures: dict[tuple[str, int], tuple[float, float, float, int]]) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    shown = {name: own for (name, num_samples), own in figures.items() if num_samples == 500 and name in PICTURED}
    minutes = [own[2] / 60 for own in shown.values()]
    nll, errors = ([own[i] for own in shown.values()] for i in (0, 1))
    for value, name in PUBLISHED.items():
        axes.axhline(value, color="0.75", linewidth=1, zorder=0)
        x, side = (0.995, "right") if value > 81 else (0.005, "left")  # clear of the curve
        own = {"transform": axes.get_yaxis_transform(), "fontsize": 8, "color": "0.35", "ha": side, "va": "bottom"}
        axes.text(x, value, f"{name} {value}", **own)
    axes.errorbar(minutes, nll, errors, marker="o", capsize=3, color="C0")
    for name, x, y in zip(shown, minutes, nll, strict=True):
        own = {"ha": "right", "va": "top", "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1}}
        axes.annotate(f"{name} {y:.2f}", (x, y), (-6, -6), textcoords="offset points", fontsize=8, **own)
    for marker, (name, points) in zip("sDv^<>PX", contenders().items(), strict=False):
        label = f"{name}: model of mnist_fast, training alone"
        axes.plot(*zip(*points, strict=True), marker, markersize=5, fillstyle="none", label=label)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.52, 0.93))
    axes.set_xscale("log")
    ticks = (0.5, 1, 2, 3, 5, 8, 12, 20, 30, 60, 120)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(0.25, 150)
    axes.set_xlabel("minutes of training, the whole process")
    axes.set_ylabel("test NLL, nats (here K = 500, published K = 5,000)")
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--num_samples", type=int, default=500)
    parser.add_argument("--redo", action="store_true")
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    if options.all:
        known = [] if options.redo else [row["recipe"] for row in read() if row["seed"] == 0]
        options.seeds, options.recipes = "0", [name for name in names() if name not in known]
    for seed in map(int, options.seeds.split(",")):
        for recipe in options.recipes:
            measure(recipe, seed, options.num_samples, options.redo)
    figures = table(read())
    for (name, num_samples), (figure, error, seconds, seeds) in figures.items():
        kind = f"NLL (K = {num_samples:,})" if num_samples else "test loss"
        spread = f" +- {error:.2f}" if seeds > 1 else ""
        print(f"{name}: {kind} {figure:.2f}{spread}, seeds: {seeds}, {seconds:.0f} s")
    draw(figures)
