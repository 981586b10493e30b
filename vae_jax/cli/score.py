"""Score examples: how unlikely each one is under a trained VAE, and how well that tells anomalies from the rest."""

from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from vae_jax import anomalies, build, progress
from vae_jax.cli import console
from vae_jax.cli.examples import Chosen, load, training
from vae_jax.data import datasets
from vae_jax.data.csv_files import write_csv
from vae_jax.data.files import write_npz
from vae_jax.data.splits import text_of, value_of
from vae_jax.errors import UserError
from vae_jax.evaluate import make_evaluate
from vae_jax.run import checkpoints
from vae_jax.xla import devices

_TRAINING = 0xFFFFFFFC  # for fold_in: no index of an example is so large


@np.errstate(invalid="ignore", over="ignore")  # scores that are not finite are named below
def score(options: Namespace) -> dict[str, Any]:
    """Write a row per example, in the order of the data, and return what was written and how good the scores are."""
    config, data, vae, params, step = restored = checkpoints.load(
        options.run_dir, options.checkpoint, trust=options.trust
    )
    chosen = load(options, restored)
    name = options.data or config.dataset
    trained = None
    if options.num_train:
        advice = "Give --num_train=0, which leaves the shares out, or put the data of the training back."
        trained = training(options, restored, options.num_train, advice)
    known = config.classes or (trained.labels if trained else None)
    unlikely = _anomalies(options.anomaly, chosen, known, name)
    if unlikely and options.split in ("train", "all") and datasets.absolute(name) == config.dataset:
        progress.say(f"{name}: the training examples are among those scored, so that AUROC flatters.")

    params = devices.place(params, devices.replicated(devices.make_mesh()))
    key = jax.random.key(options.seed)
    evaluate = make_evaluate(vae, num_samples=options.num_samples, **build.evaluation_options(config))

    def scored(key: jax.Array, examples: Any, what: str) -> dict[str, Any]:
        result = evaluate(params, key, examples, partial(progress.bar, desc=what))
        scores = {"elbo": result.log_likelihood - result.kl, "log_likelihood": result.log_likelihood}
        scores = scores if result.log_px is None else {"log_px": result.log_px, **scores}
        finite = np.all([np.isfinite(score) for score in scores.values()], 0)
        if not finite.all():
            progress.say(
                f"The scores of {np.sum(~finite)} of the {len(finite)} {what} are not finite. The VAE was trained on "
                f"data in [{data.range[0]:g}, {data.range[1]:g}]."
            )
        return scores

    columns = scored(key, chosen.examples, f"examples of {name}")
    label = chosen.label
    figures = {} if unlikely is None or label is None else _figures(columns, np.isin(label, unlikely))
    by = next(iter(columns))
    if trained:
        reference = scored(jax.random.fold_in(key, _TRAINING), trained.examples, "training examples")
        columns["share"] = anomalies.tail(reference[by], columns[by])
    if chosen.label is not None:
        columns["label"] = np.array(chosen.names)[chosen.label] if chosen.names else chosen.label
    write = write_npz if options.out.suffix.lower() == ".npz" else write_csv
    return {
        "out": console.write(options.out, lambda path: write(path, columns)),
        "num_examples": len(columns[by]),
        "num_samples": options.num_samples,
        "num_train": len(trained.examples.x) if trained else 0,
        "share_by": by if trained else None,
        "anomalies": None if unlikely is None else [text_of(chosen.names, value) for value in unlikely],
        **figures,
        "checkpoint": options.checkpoint,
        "split": options.split,
        "step": step,
        "seed": options.seed,
    }


def _figures(columns: dict[str, Any], is_anomaly: np.ndarray) -> dict[str, Any]:
    """How well minus each score tells the anomalies from the rest."""
    figures: dict[str, Any] = {"num_anomalies": int(is_anomaly.sum())}
    for name, scores in columns.items():
        figures[f"auroc_{name}"] = anomalies.auroc(-scores, is_anomaly)
        figures[f"auroc_{name}_se"] = anomalies.auroc_error(-scores, is_anomaly)
        figures[f"average_precision_{name}"] = anomalies.average_precision(-scores, is_anomaly)
    return figures


def _anomalies(
    given: Sequence[str] | None, chosen: Chosen, known: Sequence[int | str] | None, name: str
) -> list[int] | None:
    """The labels that are anomalies, in rising order; None if nothing says which ones, with a line on stderr.

    given: the values of --anomaly. known: the labels of the training; None if they are unknown.
    """
    if chosen.label is None:
        if given:
            raise UserError(f"--anomaly is {','.join(given)}, and {name} has no labels. Give data with labels.")
        return None
    present = np.unique(chosen.label).tolist()
    texts = [str(text_of(chosen.names, value)) for value in present]
    shown = ", ".join(texts)[:200]
    if given:
        # A label may hold a comma itself.
        wanted = [part for text in given for part in ([text] if text in texts else text.split(","))]
        if unknown := [text for text in wanted if text not in texts]:
            raise UserError(f"--anomaly is {unknown[0]!r}; {name} has the labels {shown}. Choose among them.")
        found = [value for value, text in zip(present, texts, strict=True) if text in wanted]
        if len(found) == len(present):
            raise UserError(f"--anomaly names every label of {name} ({shown}). Leave one out at least.")
        return found
    normal = {value_of(chosen.names, label) for label in known or ()}
    found = [value for value in present if value not in normal]
    if 0 < len(found) < len(present) and known:
        return found
    why, how = "nothing says which labels the training had", "--anomaly=LABEL says which labels are anomalies"
    if known:
        why = f"{'none' if found else 'each'} of its labels ({shown}) occurred in the training"
    if len(present) == 1:
        why, how = f"all examples have the label {shown}", "--data=FILE takes examples of several labels"
    progress.say(f"{name}: AUROC is left out, because {why}. {how}.")
    return None
