"""Make one HTML page about what a run has learned: figures, how they were measured, curves, pictures, the config."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np

from vae_jax import build, generate
from vae_jax.config import Config, to_json
from vae_jax.core import Examples, condition
from vae_jax.data.inputs import DataInfo
from vae_jax.data.splits import text_of
from vae_jax.evaluate import ACTIVE_VARIANCE, Evaluation
from vae_jax.names import portable
from vae_jax.run import metrics
from vae_jax.run.checkpoints import Restored
from vae_jax.show import pictures, views, webpage

MOST_NAMES = 50  # of the columns of a table, in a caption
ROWS, COLUMNS = 12, 11  # of the traversals: number of latent dimensions, and of values for each dimension


def page(
    run_dir: Path,
    restored: Restored,
    examples: Examples,
    label: np.ndarray | None,
    summary: dict[str, Any],
    result: Evaluation,
    limit: int | None = None,
    dataset: str | None = None,
    classes: tuple[str, ...] = (),
) -> str:
    """Make the page.

    examples, label: the first `limit` examples of a split and their labels; all of them if `limit` is None. summary,
    result: what the command evaluate finds for these examples. dataset: the data that they come from, if it is not the
    data set that the run was trained on. classes: the names of the labels, if they have names.
    """
    config, data, _, params, step = restored
    result = jax.tree.map(np.asarray, result)
    layers = result.mean if isinstance(result.mean, dict) else {"z": result.mean}
    codes = build.make_codes(config)
    point = "most probable code" if codes else "posterior mean"
    names = [f"{name}_{i + 1}" for name, z in layers.items() for i in range(z.shape[-1])]
    versions = json.loads((run_dir / "run.json").read_text("utf-8"))["versions"]
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    epoch = step / (data.num_train // config.batch_size)
    lines = [
        f"A VAE of {config.dataset}: step {step:,}, epoch {epoch:.4g} of {config.num_epochs}, {size:,} parameters",
        ", ".join(" ".join(package) for package in versions.items()),
    ]
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        views.draw_run(folder, restored, examples, label, result.mean, summary["seed"], classes)
        sections = {
            "Notes": [webpage.text(note) for note in summary.get("notes", ())],
            "Evaluation": _evaluation(summary, len(names), protocol(config, summary, limit, dataset)),
            "Learning curves": [_curves(folder, metrics.read(run_dir))],
            "Reconstructions": [_reconstructions(folder, summary["split"], data, point)],
            "Samples": [_samples(folder, config)],
            "Manifold": [_manifold(folder, data)],
            "Traversals": ["" if codes else _traversals(folder, restored, examples, result, names)],
            f"{point.capitalize()}s": [
                _scatter(folder, *layer, label, result.kl, classes, point) for layer in layers.items()
            ],
            "KL by latent dimension": [_kl_by_dimension(folder, result.kl_by_dimension)],
            "Configuration": [_configuration(config)],
        }
    return webpage.page(run_dir.resolve().name, lines, sections)


def protocol(config: Config, summary: dict[str, Any], limit: int | None = None, dataset: str | None = None) -> str:
    """Describe in words how the figures were measured. Without this, they cannot be compared with other figures."""
    given = {True: " | label", "covariates": " | covariates"}.get(config.conditional, "")
    log_px = f"log p(x{given})"
    binarised = f"binarised once with seed {summary['binarization_seed']}, {config.binarization} in training"
    binarised = "not binarised" if config.binarization == "none" else binarised
    split = "" if summary["split"] == "all" else f"the {summary['split']} split of "
    text = (
        f"Nats per example, over {'all' if limit is None else 'the first'} {summary['num_examples']:,} examples of "
        f"{split}{dataset or config.dataset} ({binarised}), ± the standard error over examples. "
    )
    if "nll" in summary:
        text += (
            f"NLL: the importance-weighted bound of -{log_px} with K = {summary['num_samples']:,} posterior samples, "
            f"seed {summary['seed']}. "
        )
    if "nll_exact" in summary:
        text += f"NLL_EXACT: -{log_px} itself, by the sum over all values of z. "
    if "codes_used" in summary:
        text += (
            "Codes: the most probable ones of each example, counted over all groups of variables of z. Their "
            "perplexity is exp(entropy) of their frequencies, averaged over the groups. Few examples cannot use many "
            "codes, and a posterior that has nearly collapsed may use all of them: see the KL."
        )
    else:
        text += f"Active units: latent dimensions whose posterior mean varies by more than {ACTIVE_VARIANCE}."
    free = config.prior != "standard_normal" or config.hierarchy or config.posterior == "flow"
    if (config.vae or free) and "codes_used" not in summary:
        text += (
            " That threshold is a share of the variance of N(0, I): under a learned prior, and for upper latents, the "
            "scale is free and the count says little. The posterior mean of a flow or of an upper latent is a point in "
            "place of E[z | x]."
        )
    if summary["selected_on"]:
        text += f" The checkpoint was chosen by its loss on the {summary['selected_on']} split"
        text += ", so that figures of that split flatter." if summary["selected_on"] == summary["split"] else "."
    if config.posterior == "delta" and not config.vae:
        text += " A point posterior has no density: these are terms of a loss, not bounds."
    return text


def _evaluation(summary: dict[str, Any], num_latents: int, of_what: str) -> list[str]:
    cards = {}
    for name in ("nll_exact", "nll", "elbo", "kl"):
        if name not in summary:
            continue
        error = summary.get(f"{name}_se")
        cards[name.upper()] = (f"{summary[name]:.2f}", "" if error is None else f"± {error:.2f}")
    if "codes_used" in summary:
        cards["Codes used"] = (str(summary["codes_used"]), f"of {summary['codes_used'] + summary['codes_never_used']}")
        cards["Code perplexity"] = (f"{summary['code_perplexity']:.1f}", "")
    else:
        cards["Active units"] = (str(summary["active_units"]), f"of {num_latents}")
    numbers = {name: value for name, value in summary.items() if value is None or isinstance(value, int | float)}
    numbers |= {f"kl_{level}": value for level, value in summary.get("kl_by_level", {}).items()}
    rows = [(name, "none" if value is None else f"{value:.6g}") for name, value in numbers.items()]
    every = webpage.folded("Every figure of the command evaluate", webpage.table(rows))
    return [webpage.cards(cards), webpage.text(of_what), every]


def _curves(folder: Path, records: list[dict[str, Any]]) -> str:
    if not records:
        return webpage.text("The run was not evaluated while it was trained.")
    last = {record["split"]: record for record in records}
    charts = []
    for name in ("loss", *(name for name in metrics.names_in(records[-1]) if name != "elbo")):
        ends = ", ".join(
            f"{split} {record[name]:.4g}" for split, record in last.items() if record.get(name) is not None
        )
        draw = partial(pictures.save_curves, records=records, names=(name,))
        charts.append(_chart(folder, draw, f"{name} by epoch, at the end {ends}"))
    return webpage.row(charts)


def _reconstructions(folder: Path, split: str, data: DataInfo, point: str) -> str:
    inputs = "Inputs" if split == "all" else f"Inputs of the {split} split"
    caption = f"{inputs} and, under each one, E[x | z] at its {point} z."
    if pictures.range_of(data) is not data.range:
        caption += (
            f" Each column is black {pictures.DEVIATIONS} standard deviations below its mean, white as far above. "
            "A missing value has the grey of the lines."
        )
    if data.columns and len(data.shape) == 1:
        more = f" and {len(data.columns) - MOST_NAMES} more" if len(data.columns) > MOST_NAMES else ""
        caption += f" The columns of an example, from the left: {', '.join(data.columns[:MOST_NAMES])}{more}."
    return webpage.pixels(folder / "reconstructions.png", caption)


def _samples(folder: Path, config: Config) -> str:
    each = {True: ", all classes in turn", "covariates": ", the covariates of the split in turn"}
    turns = each.get(config.conditional, "")
    caption = f"E[x | z] at samples z of the prior{turns}."
    return webpage.pixels(folder / "samples.png", caption)


def _manifold(folder: Path, data: DataInfo) -> str:
    path = folder / "manifold.png"
    first = f", of class {text_of(data.names, data.classes[0])}" if data.classes else ""
    caption = f"E[x | z] over [-2, 2] x [-2, 2], z_1 rightwards and z_2 upwards{first}."
    return webpage.pixels(path, caption) if path.exists() else ""


def _traversals(folder: Path, restored: Restored, examples: Examples, result: Evaluation, names: list[str]) -> str:
    """Draw traversals of the dimensions with the largest KL or, without a KL, with the largest variance of the mean."""
    if (folder / "manifold.png").exists():
        return ""
    one = jax.tree.map(lambda a: a[:1], examples)
    vae = condition(restored.vae, one.context)
    images = np.asarray(jax.jit(lambda params: generate.traverse(params, one.x, vae, COLUMNS))(restored.params))
    if result.kl_by_dimension is None:
        by, sizes = "variance of the posterior mean", np.concatenate([z.var(0) for z in jax.tree.leaves(result.mean)])
    else:
        by, sizes = "KL", np.mean(result.kl_by_dimension, 0)
    rows = np.argsort(-sizes, kind="stable")[:ROWS]
    drawn, path = images[rows].reshape(-1, *images.shape[2:]), folder / "traversals.png"
    pictures.save_grid(path, drawn, COLUMNS, pictures.range_of(restored.data))
    top = f"From the top, by {by}: {', '.join(names[i] for i in rows)}."
    return webpage.pixels(
        path, f"One latent dimension per row, from -3 to 3, the others at the posterior mean of one example. {top}"
    )


def _scatter(
    folder: Path, name: str, z: np.ndarray, label: np.ndarray | None, kl: Any, classes: tuple[str, ...], point: str
) -> str:
    points, axes, what = _plane(name, z.astype(np.float64), kl)
    colour = "" if label is None else ", coloured by label"
    draw = partial(pictures.save_scatter, mean=points, label=label, names=axes, classes=classes)
    return _chart(folder, draw, f"The {point}s of {len(z):,} examples{colour}: {what}.")


def _plane(name: str, z: np.ndarray, kl: np.ndarray) -> tuple[np.ndarray, tuple[str, ...], str]:
    """Return points [N, 2] that show z [N, L], the names of their axes, and a description of the points."""
    first, second = f"{name}_1", f"{name}_2"
    if z.shape[1] == 1:
        return np.stack([z[:, 0], kl], 1), (first, "KL (nats)"), f"{first} against the KL of the example"
    if z.shape[1] == 2:
        return z, (first, second), f"{first} and {second} themselves"
    centred = z - z.mean(0)
    variances, directions = np.linalg.eigh(centred.T @ centred)
    shares = variances[:-3:-1] / max(variances.sum(), 1e-12)
    axes = tuple(f"component {i + 1} ({share:.0%} of the variance)" for i, share in enumerate(shares))
    return (
        centred @ directions[:, :-3:-1],
        axes,
        f"the two principal components of the {z.shape[1]} dimensions of {name}",
    )


def _kl_by_dimension(folder: Path, kl: Any) -> str:
    if kl is None:
        return ""
    draw = partial(pictures.save_bars, values=np.asarray(np.mean(kl, 0, dtype=np.float64)))
    return _chart(folder, draw, "KL(q(z_i | x) || p(z_i)) in nats, the average over the examples, largest first.")


def _chart(folder: Path, draw: Callable[[Path], None], caption: str) -> str:
    paths = {mode: folder / f"{mode}.svg" for mode in webpage.COLOURS}
    for mode, colour in webpage.COLOURS.items():
        with pictures.transparent(colour):
            draw(paths[mode])
    return webpage.chart(paths, caption)


def _configuration(config: Config) -> str:
    values, defaults = to_json(portable(config)), to_json(Config())
    changed = [value != defaults[name] for name, value in values.items()]
    shown, usual = ([v if isinstance(v, str) and v else json.dumps(v) for v in c.values()] for c in (values, defaults))
    rows = [(name, a, b * differs) for name, a, b, differs in zip(values, shown, usual, changed, strict=True)]
    return webpage.table(rows, ("field", "value", "default, if another"), np.flatnonzero(changed).tolist())
