"""Load the examples that the flags of a command ask for."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vae_jax import build, generate, progress
from vae_jax.core import Examples, condition
from vae_jax.data import datasets, images, inputs, kinds, splits
from vae_jax.data.inputs import DataInfo
from vae_jax.errors import UserError
from vae_jax.evaluate import evenly
from vae_jax.progress import plural
from vae_jax.run.checkpoints import Restored


class Chosen(NamedTuple):
    """The examples that a command uses."""

    examples: Examples  # as the model sees them
    label: np.ndarray | None  # [N]
    names: tuple[str, ...]  # of the labels 0, 1, ...; () if the labels are the numbers of the data
    factors: np.ndarray | None = None  # [N, F], the true factors of variation
    factor_names: tuple[str, ...] = ()


class Trained(NamedTuple):
    """Some of the examples that a VAE was trained on."""

    examples: Examples  # as the model sees them
    labels: Sequence[int | str] | None  # those that occurred in the training, by name if they have names


def load(options: Namespace, restored: Restored, limit: int | None = None) -> Chosen:
    """Load the first `limit` examples that the flags ask for, as the model sees them, and their labels.

    If --data has no splits of its own, all of its examples are taken in their order, and `options.split` becomes 'all'.
    """
    config = restored.config
    whole = datasets.load_whole(options.data, inputs.reading_of(config)) if options.data else None
    if whole and options.split:
        raise UserError(
            f"--split is {options.split}, but {options.data} has no splits of its own: all of its examples are taken, "
            "in their order. Leave --split out."
        )
    options.split, split = ("all", "test") if whole else (options.split or "test",) * 2
    dataset = _encoded(whole, restored) if whole else _dataset(options, restored)
    return _checked(dataset, split, restored, limit)


def of_picture(path: Path, label: str | None, restored: Restored) -> tuple[Examples, str]:
    """Read one image file as an example. It is scaled to cover the shape of the examples, and its centre is cut out.

    The second result says so, if it was of another size. label: the class of a conditional VAE. Raises UserError if the
    VAE is of something else than pictures.
    """
    config, data = restored.config, restored.data
    if len(data.shape) != 3 or data.shape[-1] not in (1, 3):
        raise UserError(f"The VAE is of examples of shape {data.shape}, and not of pictures. Give an .npz or a table.")
    if data.range[0] < 0 or data.range[1] > 1:
        raise UserError(
            f"The VAE was trained on data in [{data.range[0]:g}, {data.range[1]:g}], and a picture has values in "
            "[0, 1]. Give an .npz on that scale."
        )
    x, size = images.read_image(path, data.shape)
    arrays = {"x": x[None]}
    if label is not None:
        arrays["y"] = np.array([label])
    how = inputs.reading_of(config)._replace(layout="nhwc", counts=False)
    found = _checked(splits.whole(arrays, path.name, how), "test", restored, None)
    return found.examples, size and f", scaled and cut from {size} (height x width)"


def _checked(dataset: splits.Dataset, split: str, restored: Restored, limit: int | None) -> Chosen:
    """The first `limit` examples of a split and their labels. Raises UserError if they do not suit the VAE."""
    config, data = restored.config, restored.data
    if config.conditional is True:
        dataset = splits.renamed(dataset, data.names)
        dataset = _of_known_labels(dataset, split, data)
    shape = dataset.train.x.shape[1:]
    if shape != data.shape:
        raise UserError(
            f"{dataset.name} has examples of shape {shape}; the VAE was trained on {data.shape}. Give such data."
        )
    found = inputs.value_range(dataset)
    try:
        build.check_range(config, found, shape)
    except UserError:
        raise UserError(
            f"{dataset.name} lies in [{found[0]:g}, {found[1]:g}]; the VAE was trained on data in "
            f"[{data.range[0]:g}, {data.range[1]:g}]. Give data on that scale."
        ) from None
    likelihood = build.make_likelihood(config, shape)
    inputs.check_levels(dataset, config, likelihood and likelihood.num_levels)
    inputs.check_counts(dataset, config, likelihood is not None and likelihood.whole)
    examples = inputs.evaluation_examples(dataset, split, config, data.classes)
    label, factors = getattr(dataset, split).label, getattr(dataset, split).factors
    given = 0 if examples.context is None else examples.context.shape[1]
    if config.conditional == "covariates" and given != data.num_covariates:
        raise UserError(
            f"{dataset.name} has {given} covariates; the VAE was trained on {data.num_covariates}. Give as many."
        )
    if config.conditional is True and label is None:
        known = inputs.show_classes(data.classes, data.names)
        raise UserError(f"The VAE is conditional on {known}, and {dataset.name} has no labels. Give data with labels.")
    wanted = {splits.value_of(dataset.names, c) for c in config.classes}
    if wanted and label is not None and not set(np.unique(label).tolist()) <= wanted:
        trained = ", ".join(map(str, config.classes))
        progress.say(f"{dataset.name}: examples of all its classes are taken; the VAE was trained on {trained}")
    few = jax.tree.map(lambda a: a[:limit], examples)
    few_labels, few_factors = (None if array is None else array[:limit] for array in (label, factors))
    return Chosen(few, few_labels, dataset.names, few_factors, dataset.factors)


def moments(restored: Restored, examples: Examples) -> dict[str, np.ndarray]:
    """`generate.moments` of q(z | x) of all examples, in batches."""

    @jax.jit
    def batch(params, examples: Examples):
        return generate.moments(condition(restored.vae, examples.context).encode(params, examples.x))

    starts = range(0, len(examples.x), 2000)
    chunks = [jax.tree.map(lambda a, i=i: a[i : i + starts.step], examples) for i in starts]
    parts = [jax.tree.map(np.asarray, batch(restored.params, chunk)) for chunk in chunks]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _of_known_labels(dataset: splits.Dataset, split: str, data: DataInfo) -> splits.Dataset:
    """The data set without the examples of a split whose labels a conditional VAE does not know, unless all are so."""
    part = getattr(dataset, split)
    if part is None or part.label is None:
        return dataset
    known = np.isin(part.label, data.classes)
    if known.all() or not known.any():
        return dataset
    unknown = inputs.show_labels(part.label[~known], dataset.names)
    progress.say(
        f"{dataset.name}: {np.sum(~known)} of {plural(len(known), 'example')} are left out; the VAE does not know the "
        f"{unknown}"
    )
    few: dict[str, Any] = {split: splits.take(part, known)}
    return dataset._replace(**few)


def training(options: Namespace, restored: Restored, limit: int, advice: str) -> Trained:
    """Load at most `limit` of the examples that the VAE was trained on, evenly chosen, and the labels of all of them.

    Those of a stream are chosen among the ones that it keeps in memory. advice: what to do where the data of the
    training is not there, for the error.
    """
    config, data = restored.config, restored.data
    dataset = _trained_on(options, restored, advice, advice)
    if config.conditional is True:
        dataset = splits.renamed(dataset, data.names)
    examples, label = inputs.evaluation_examples(dataset, "train", config, data.classes), dataset.train.label
    index = evenly(len(examples.x), limit)
    labels = None if label is None else [splits.text_of(dataset.names, value) for value in np.unique(label).tolist()]
    return Trained(jax.tree.map(lambda a: a[index], examples), labels)


def _dataset(options: Namespace, restored: Restored) -> datasets.Dataset:
    """Load the data that --data names, or the data that the run was trained on."""
    if not options.data:
        return _trained_on(
            options,
            restored,
            "Give its new place with --data, which takes every example, or put it back for its splits.",
            "Give the data with --data to use it all the same.",
        )
    data_dir = options.data_dir or _known_dir(restored.data, restored.config.dataset)
    config = restored.config
    own = config.dataset_options if options.data == config.dataset else {}
    return _encoded(
        datasets.load(options.data, data_dir=data_dir, how=inputs.reading_of(config), options=own), restored
    )


def _trained_on(options: Namespace, restored: Restored, if_gone: str, if_changed: str) -> datasets.Dataset:
    """Load the data that the run was trained on. if_gone, if_changed: what to do then, for the error."""
    config, data, name = restored.config, restored.data, restored.config.dataset
    if name not in datasets.EMBEDDED and not datasets.is_tfds(name) and not Path(name).exists():
        raise UserError(f"{name}, which the VAE was trained on, is not there. {if_gone}")
    dataset = datasets.load(
        name,
        data_dir=options.data_dir or _known_dir(data, name),
        classes=config.classes,
        validation_size=config.validation_size,
        stream=config.stream,
        how=inputs.reading_of(config),
        features=config.features,
        options=config.dataset_options,
    )
    dataset = _encoded(dataset, restored)
    if dataset.fingerprint != data.fingerprint:
        raise UserError(
            f"The data of {dataset.name} is not what the VAE was trained on (fingerprint {dataset.fingerprint}, was "
            f"{data.fingerprint}). {if_changed}"
        )
    return dataset


def _encoded(dataset: datasets.Dataset, restored: Restored) -> datasets.Dataset:
    """The columns in the order of the training, and of a mixed table its numbers for names."""
    dataset = splits.in_order(dataset, restored.data.columns)
    return kinds.encode(dataset, restored.config) if inputs.is_mixed(restored.config) else dataset


def _known_dir(data: DataInfo, name: str) -> str | None:
    """The folder where the run had its data, if it still exists: a run must not decide where to download data."""
    return data.data_dir if data.data_dir and (Path(data.data_dir) / name).is_dir() else None
