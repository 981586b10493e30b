"""The commands of `python -m vae_jax`, each a function of its flags."""

from argparse import Namespace
from dataclasses import replace
from math import log, prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import checkpoints, console, datasets, devices, generate, inputs, models, pictures, views
from vae_jax.checkpoints import Restored
from vae_jax.core import VAE, condition
from vae_jax.errors import UserError
from vae_jax.evaluate import (
    Evaluation,
    make_annealed,
    make_evaluate,
    mean,
    mutual_information,
    standard_error,
    summarize,
)
from vae_jax.export import to_zip
from vae_jax.inputs import DataInfo, Examples
from vae_jax.report import page
from vae_jax.sweep import sweep as sweep

_INFORMATION, _ANNEALING = 0xFFFFFFFE, 0xFFFFFFFD  # fold_in of keys of their own; an example's index is never so large


def sample(options: Namespace) -> str:
    restored = _load(options)
    vae = _of_label(restored, options.label, options.num)
    draw = jax.jit(lambda params, key: generate.sample_flat(params, key, vae, options.num))
    drawn = draw(restored.params, jax.random.key(options.seed))
    if options.out.suffix == ".npz":
        return _write(options.out, lambda path: _save_npz(path, drawn._asdict()))
    return _write(options.out, lambda path: views.samples(path, drawn, restored.data.range))


def reconstruct(options: Namespace) -> str:
    restored = _load(options)
    examples, _ = _examples(options, restored, options.num)
    data = restored.data
    return _write(
        options.out, lambda path: views.reconstructions(path, restored.vae, restored.params, examples, data.range)
    )


def interpolate(options: Namespace) -> str:
    restored = _load(options)
    examples, _ = _examples(options, restored, 2 * options.num)
    num = len(examples.x) // 2
    if not num:
        raise UserError(f"The split {options.split!r} has one example; expected at least 2 to interpolate between.")
    start, end = (jax.tree.map(lambda a, i=i: a[i * num : (i + 1) * num], examples) for i in (0, 1))
    rows = jax.jit(
        lambda params: generate.interpolate(params, start.x, end.x, condition(restored.vae, start.context), 12)
    )(restored.params)
    return _write(
        options.out,
        lambda path: pictures.save_grid(path, rows.reshape(-1, *rows.shape[2:]), 12, restored.data.range),
    )


def traverse(options: Namespace) -> str:
    restored = _load(options)
    examples, _ = _examples(options, restored, options.index + 1)
    if options.index >= len(examples.x):
        raise UserError(f"--index is {options.index}; expected one of the {len(examples.x)} examples, from 0.")
    one = jax.tree.map(lambda a: a[-1:], examples)
    vae = condition(restored.vae, one.context)
    rows = jax.jit(lambda params: generate.traverse(params, one.x, vae, 11))(restored.params)
    return _write(
        options.out,
        lambda path: pictures.save_grid(path, rows.reshape(-1, *rows.shape[2:]), 11, restored.data.range),
    )


def manifold(options: Namespace) -> str:
    restored = _load(options)
    if restored.config.latent_dim != 2 or restored.config.hierarchy:
        has = f"{restored.config.latent_dim}{' and a latent above it' if restored.config.hierarchy else ''}"
        raise UserError(f"A manifold needs latent_dim 2; {options.run_dir} has {has}. Use traverse instead.")
    vae = _of_label(restored, options.label, 1)
    return _write(
        options.out,
        lambda path: views.manifold(
            path,
            vae,
            restored.params,
            restored.data.range,
            options.num,
            extent=options.extent,
            gaussian=options.gaussian,
        ),
    )


def encode(options: Namespace) -> str:
    restored = _load(options)
    whole = options.data and datasets.load_whole(options.data)
    dataset = datasets.Dataset(options.data, whole, None, whole) if whole else None
    examples, label = _examples(options, restored, dataset=dataset)

    @jax.jit
    def batch(params, examples: Examples):
        return generate.moments(condition(restored.vae, examples.context).encode(params, examples.x))

    starts = range(0, len(examples.x), 2000)
    chunks = [jax.tree.map(lambda a, i=i: a[i : i + starts.step], examples) for i in starts]
    parts = [jax.tree.map(np.asarray, batch(restored.params, chunk)) for chunk in chunks]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if label is not None:
        arrays["label"] = label
    return _write(options.out, lambda path: _save_npz(path, arrays))


def export(options: Namespace) -> str:
    contents = to_zip(_load(options))
    return _write(options.out, lambda path: pictures.replace(path, lambda temporary: temporary.write_bytes(contents)))


def evaluate(options: Namespace) -> dict[str, Any]:
    restored = _load(options)
    if options.compute_dtype:
        config = replace(restored.config, compute_dtype=options.compute_dtype)
        restored = restored._replace(config=config, vae=models.build(config, restored.data))
    examples, _ = _examples(options, restored, options.limit)
    return _evaluate(options, restored, examples)[0]


def report(options: Namespace) -> str:
    restored = _load(options)
    examples, label = _examples(options, restored, options.limit)
    found = _evaluate(options, restored, examples)
    html = page(options.run_dir, restored, examples, label, *found, options.limit, options.data)
    return _write(options.out, lambda path: pictures.replace(path, lambda temporary: temporary.write_text(html)))


def _evaluate(options: Namespace, restored: Restored, examples: Examples) -> tuple[dict[str, Any], Evaluation]:
    """The figures of the examples, and those of every one of them."""
    config, data, vae, params, step = restored
    params = devices.put(params, devices.everywhere(devices.make_mesh()))
    key = jax.random.key(options.seed)
    faster = models.evaluation_options(config)
    result = make_evaluate(vae, num_samples=options.num_samples, **faster)(params, key, examples, console.bar)
    summary = summarize(result, options.num_samples)
    arrays = {**result._asdict(), "mean": generate.flat(result.mean)}
    if models.likelihood_of(config, data.shape).num_levels is not None:
        summary["bits_per_dim"] = summary["nll"] / (log(2) * prod(data.shape))
    if config.posterior != "delta":
        information = np.asarray(mutual_information(vae)(params, jax.random.fold_in(key, _INFORMATION), examples))
        summary["mutual_information"] = mean(information)
        summary["mutual_information_se"] = standard_error(information)
        summary["kl_aggregate"] = mean(result.kl[: len(information)]) - summary["mutual_information"]
    if options.ais_chains:
        run = make_annealed(vae, num_chains=options.ais_chains, num_steps=options.ais_steps)
        log_px = run(params, jax.random.fold_in(key, _ANNEALING), examples, console.bar)
        arrays["log_px_ais"] = log_px
        summary |= {"nll_ais": -mean(log_px), "nll_ais_se": standard_error(log_px)}
        summary |= {"ais_chains": options.ais_chains, "ais_steps": options.ais_steps}
    if options.per_example:
        present = {name: array for name, array in arrays.items() if array is not None}
        _write(options.per_example, lambda path: _save_npz(path, present), "--per_example")
    summary |= {
        "split": options.split,
        "compute_dtype": config.compute_dtype,
        "binarization": config.binarization,
        "binarization_seed": None if config.binarization == "none" else inputs.BINARIZATION_SEED,
        "step": step,
        "seed": options.seed,
    }
    return summary, result


def _load(options: Namespace) -> Restored:
    return checkpoints.load(options.run_dir, options.checkpoint)


def _examples(
    options: Namespace, restored: Restored, limit: int | None = None, dataset: datasets.Dataset | None = None
) -> tuple[Examples, np.ndarray | None]:
    """The first `limit` examples of the split that the flags name, as the model sees them, and their labels."""
    config, data = restored.config, restored.data
    dataset = dataset or datasets.load(
        options.data or config.dataset,
        data_dir=options.data_dir or _known_dir(data, config.dataset),
        classes=() if options.data else config.classes,
        validation_size=0 if options.data else config.validation_size,
        stream=config.stream and not options.data,
    )
    shape = dataset.train.x.shape[1:]
    if shape != data.shape:
        raise UserError(
            f"{dataset.name} has examples of shape {shape}; the VAE was trained on {data.shape}. Give such data."
        )
    if not options.data and dataset.fingerprint != data.fingerprint:
        raise UserError(
            f"The data of {dataset.name} is not what the VAE was trained on (fingerprint {dataset.fingerprint}, was "
            f"{data.fingerprint}). Give the data with --data to use it all the same."
        )
    models.check_range(config, inputs.value_range(dataset))
    inputs.check_levels(dataset, config)
    examples = inputs.evaluation_examples(dataset, options.split, config)
    if config.conditional and (examples.context is None or examples.context.shape[-1] != data.num_classes):
        raise UserError(
            f"The VAE is conditional on {data.num_classes} classes; {dataset.name} has others or none. Give such data."
        )
    label = getattr(dataset, options.split).label
    return jax.tree.map(lambda a: a[:limit], examples), None if label is None else label[:limit]


def _known_dir(data: DataInfo, name: str) -> str | None:
    """Where the run had its data, if that is there: a run directory does not decide where data is downloaded to."""
    return data.data_dir if data.data_dir and (Path(data.data_dir) / name).is_dir() else None


def _of_label(restored: Restored, label: int | None, num: int) -> VAE:
    """The VAE of one class, or of all classes in turn, for `num` latents."""
    if not restored.config.conditional:
        if label is not None:
            raise UserError("--label needs a conditional VAE; this one was trained with conditional=False.")
        return restored.vae
    classes = restored.data.num_classes
    if label is not None and label >= classes:
        raise UserError(f"--label is {label}; the VAE knows the classes 0 to {classes - 1}. Choose one of them.")
    labels = jnp.arange(num) % classes if label is None else jnp.full(num, label)
    return condition(restored.vae, jax.nn.one_hot(labels, classes))


def _save_npz(path: Path, arrays: dict[str, Any]) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # given a name, numpy would append a suffix to it
            np.savez(file, **arrays)

    pictures.replace(path, write)


def _write(path: Path, save: Any, flag: str = "--out") -> str:
    try:
        save(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}). Choose another file with {flag}.") from None
    return str(path)
