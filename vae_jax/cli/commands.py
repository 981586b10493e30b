"""The commands of `python -m vae_jax`. Each command is a function of its flags."""

import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from math import log, prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax import build, generate, progress
from vae_jax.cli import console
from vae_jax.cli.disentangle import disentangle as disentangle
from vae_jax.cli.examples import load as examples_of, moments, training
from vae_jax.cli.explore import explore as explore
from vae_jax.cli.impute import impute as impute
from vae_jax.cli.score import score as score
from vae_jax.cli.sweep import sweep as sweep
from vae_jax.cli.train import train as train
from vae_jax.core import VAE, Examples, condition
from vae_jax.data import inputs
from vae_jax.data.csv_files import write_csv
from vae_jax.data.files import write_npz, write_whole
from vae_jax.data.splits import text_of, value_of
from vae_jax.errors import UserError
from vae_jax.evaluate import (
    HEAVY_TAIL,
    Evaluation,
    evenly,
    make_annealed,
    make_evaluate,
    make_exact,
    make_mutual_information,
    mean,
    standard_error,
    summarize,
)
from vae_jax.run import checkpoints, diagnosis, fitted
from vae_jax.run.checkpoints import Restored
from vae_jax.show import npz, pictures, views
from vae_jax.show.export import to_zip
from vae_jax.show.report import page
from vae_jax.xla import devices

MAX_EXACT = 10_000  # values of a discrete z, up to which their sum gives log p(x)
_INFORMATION, _ANNEALING = 0xFFFFFFFE, 0xFFFFFFFD  # for fold_in: no index of an example is so large


def sample(options: Namespace) -> str:
    loaded = _load(options)
    num, contexts = options.num, _contexts(options, loaded)
    config, data, vae, params, _ = restored = _with_prior(options, loaded)
    size = min(num, generate.samples_per_call(params, vae, data.context_size))

    @jax.jit
    def compiled(params, key, start):
        return generate.sample_flat(params, key, _in_turn(vae, contexts, size, start), size)

    def draw(key, start):
        return compiled(params, key, np.int32(start % (contexts.num if contexts else 1)))

    def chunks():
        with progress.bar(total=num, unit="sample", delay=2) as bar:
            for chunk in generate.in_chunks(draw, jax.random.key(options.seed), num, size):
                yield chunk
                bar.update(len(chunk.x))

    if options.out.suffix.lower() == ".npz":
        parts = (chunk._asdict() for chunk in chunks())
        return console.write(options.out, lambda path: npz.save(path, num, parts))
    if options.out.suffix.lower() == ".csv":
        if not data.columns and not inputs.is_mixed(config):
            raise UserError(f"--out is {options.out}, and the data is not a table. Give --out=x.npz.")
        x = np.concatenate([chunk.x for chunk in chunks()])
        columns = inputs.columns_of(x, config, data) | _given(restored, contexts, num)
        return console.write(options.out, lambda path: write_csv(path, columns))
    _check_pixels(num, data.shape, "fewer with --num, or for --out=x.npz")
    mean = np.concatenate([chunk.mean for chunk in chunks()])
    return console.write(options.out, lambda path: views.samples(path, mean, pictures.range_of(data)))


def reconstruct(options: Namespace) -> str:
    restored = _load(options)
    examples, *_ = examples_of(options, restored, options.num)
    data = restored.data
    _check_pixels(2 * len(examples.x), data.shape, "fewer with --num")
    return console.write(
        options.out,
        lambda path: views.reconstructions(path, restored.vae, restored.params, examples, pictures.range_of(data)),
    )


def interpolate(options: Namespace) -> str:
    restored = _continuous(options)
    examples, *_ = examples_of(options, restored, 2 * options.num)
    num = len(examples.x) // 2
    if not num:
        raise UserError(f"The split {options.split!r} has one example; expected at least 2 to interpolate between.")
    _check_pixels(12 * num, restored.data.shape, "fewer with --num")
    start, end = (jax.tree.map(lambda a, i=i: a[i * num : (i + 1) * num], examples) for i in (0, 1))
    rows = jax.jit(
        lambda params: generate.interpolate(params, start.x, end.x, condition(restored.vae, start.context), 12)
    )(restored.params)
    return console.write(
        options.out,
        lambda path: pictures.save_grid(path, rows.reshape(-1, *rows.shape[2:]), 12, pictures.range_of(restored.data)),
    )


def traverse(options: Namespace) -> str:
    restored = _continuous(options)
    examples, *_ = examples_of(options, restored, options.index + 1)
    if options.index >= len(examples.x):
        raise UserError(f"--index is {options.index}; expected one of the {len(examples.x)} examples, from 0.")
    one = jax.tree.map(lambda a: a[-1:], examples)
    vae = condition(restored.vae, one.context)
    draw = jax.jit(lambda params: generate.traverse(params, one.x, vae, 11))
    num_latents = len(jax.eval_shape(draw, restored.params))
    _check_pixels(11 * num_latents, restored.data.shape, "the command report, which draws the 12 of largest KL")
    rows = draw(restored.params)
    return console.write(
        options.out,
        lambda path: pictures.save_grid(path, rows.reshape(-1, *rows.shape[2:]), 11, pictures.range_of(restored.data)),
    )


def manifold(options: Namespace) -> str:
    restored = _continuous(options)
    draw = lambda params: restored.vae.prior(params).sample(jax.random.key(0), (1,))  # noqa: E731
    sizes = [leaf.shape[-1] for leaf in jax.tree.leaves(jax.eval_shape(draw, restored.params))]
    if sizes != [2]:
        has = " and ".join(map(str, sizes))
        raise UserError(
            f"A manifold needs a latent of 2 dimensions; {options.run_dir} has {has}. Use traverse instead."
        )
    vae = _in_turn(restored.vae, _contexts(options, restored), 1)
    _check_pixels(options.num**2, restored.data.shape, "fewer with --num")
    return console.write(
        options.out,
        lambda path: views.manifold(
            path,
            vae,
            restored.params,
            pictures.range_of(restored.data),
            options.num,
            extent=options.extent,
            gaussian=options.gaussian,
        ),
    )


def encode(options: Namespace) -> str:
    restored = _load(options)
    examples, label, names, *_ = examples_of(options, restored)
    if not options.data:
        data = restored.data
        progress.say(
            f"{restored.config.dataset}: the {options.split} split, {len(examples.x)} of "
            f"{data.num_train + data.num_validation + data.num_test} examples. --split takes another one, --data=FILE "
            "every row of a file, in its order."
        )

    arrays = moments(restored, examples)
    if label is not None:
        arrays["label"] = np.array(names)[label] if names else label
    return console.write(options.out, lambda path: write_npz(path, arrays))


def export(options: Namespace) -> str:
    contents = to_zip(_load(options))
    return console.write(options.out, lambda path: write_whole(path, lambda temporary: temporary.write_bytes(contents)))


def evaluate(options: Namespace) -> dict[str, Any]:
    restored = _load(options)
    if options.compute_dtype:
        config = replace(restored.config, compute_dtype=options.compute_dtype)
        restored = restored._replace(config=config, vae=build.make_vae(config, restored.data))
    examples, *_ = examples_of(options, restored, options.limit)
    return _evaluate(options, restored, examples)[0]


def report(options: Namespace) -> str:
    restored = _load(options)
    examples, label, names, *_ = examples_of(options, restored, options.limit)
    found = _evaluate(options, restored, examples)
    html = page(options.run_dir, restored, examples, label, *found, options.limit, options.data, names)
    return console.write(
        options.out, lambda path: write_whole(path, lambda temporary: temporary.write_text(html, "utf-8"))
    )


@np.errstate(invalid="ignore", over="ignore")  # figures that are not finite are reported below
def _evaluate(options: Namespace, restored: Restored, examples: Examples) -> tuple[dict[str, Any], Evaluation]:
    """Return the summary of the figures, and the figures of every single example."""
    config, data, vae, params, step = restored
    codes = build.make_codes(config)
    if codes and options.ais_chains:
        instead = "gives the exact log p(x) instead" if codes.num_joint <= MAX_EXACT else "gives a bound instead"
        raise UserError(
            f"--ais_chains is {options.ais_chains}; expected none for posterior {config.posterior!r}, through whose "
            f"codes no chain can move. Leave it out: evaluate {instead}."
        )
    params = devices.place(params, devices.replicated(devices.make_mesh()))
    key = jax.random.key(options.seed)
    faster = build.evaluation_options(config)
    result = make_evaluate(vae, num_samples=options.num_samples, **faster)(params, key, examples, progress.bar)
    finite = (
        np.isfinite(result.log_likelihood)
        & np.isfinite(result.kl)
        & np.isfinite(result.kl if result.log_px is None else result.log_px)
    )
    if not finite.all():
        progress.say(
            f"The figures of {np.sum(~finite)} of the {len(finite)} examples are not finite: no average over all "
            f"of them exists. The VAE was trained on data in [{data.range[0]:g}, {data.range[1]:g}]."
        )
    summary = summarize(result, options.num_samples, codes)
    levels = {f"kl_{level}": kl for level, kl in result.kl_by_level.items()}
    arrays = {**result._asdict(), "mean": generate.flat(result.mean), "kl_by_level": None, **levels}
    likelihood = build.make_likelihood(config, data.shape)
    discrete = likelihood and (likelihood.num_levels or (likelihood.whole and likelihood.independent))
    if "nll" in summary and discrete and not config.missing:
        summary["bits_per_dim"] = summary["nll"] / (log(2) * prod(data.shape))
    if result.log_px is not None:  # the posterior is not a point
        information = np.asarray(make_mutual_information(vae)(params, jax.random.fold_in(key, _INFORMATION), examples))
        bound = log(len(result.kl))
        summary |= {"mutual_information": mean(information), "mutual_information_se": standard_error(information)}
        summary["mutual_information_bound"] = bound
        if mean(information) < bound - 1:  # nearer to the bound, it only measures the number of examples
            kl = mean(result.kl[evenly(len(result.kl), len(information))])
            summary["kl_aggregate"] = kl - summary["mutual_information"]
    if codes and codes.num_joint <= MAX_EXACT:
        log_px = make_exact(vae, codes)(params, key, examples, progress.bar)
        arrays["log_px_exact"] = log_px
        summary |= {"nll_exact": -mean(log_px), "nll_exact_se": standard_error(log_px)}
    if options.ais_chains:
        run = make_annealed(vae, num_chains=options.ais_chains, num_steps=options.ais_steps)
        log_px = run(params, jax.random.fold_in(key, _ANNEALING), examples, progress.bar)
        arrays["log_px_ais"] = log_px
        summary |= {"nll_ais": -mean(log_px), "nll_ais_se": standard_error(log_px)}
        summary |= {"ais_chains": options.ais_chains, "ais_steps": options.ais_steps}
    if options.per_example:
        present = {name: array for name, array in arrays.items() if array is not None}
        console.write(options.per_example, lambda path: write_npz(path, present), "--per_example")
    if (summary.get(f"share_pareto_k_above_{HEAVY_TAIL}") or 0) > 0.1 and finite.all() and not options.ais_chains:
        check = "nll_exact is exact." if "nll_exact" in summary else "--ais_chains=16 with --limit=100 checks it."
        progress.say(
            "The importance weights of more than a tenth of the examples have a heavy tail (Pareto k above "
            f"{HEAVY_TAIL}): their NLL is a loose bound. More --num_samples lower it"
            f"{'.' if codes and 'nll_exact' not in summary else '; ' + check}"
        )
    selected_on = ("validation" if data.num_validation else "test") if options.checkpoint == "best" else None
    summary |= {
        "checkpoint": options.checkpoint,
        "selected_on": selected_on,
        "split": options.split,
        "compute_dtype": config.compute_dtype,
        "binarization": config.binarization,
        "binarization_seed": None if config.binarization == "none" else inputs.BINARIZATION_SEED,
        "step": step,
        "seed": options.seed,
    }
    found = diagnosis.notes(config, data, summary, examples.x, is_own=not options.data)
    return {**summary, **({"notes": list(found.values())} if found else {})}, result


def _load(options: Namespace) -> Restored:
    return checkpoints.load(options.run_dir, options.checkpoint, trust=options.trust)


def _with_prior(options: Namespace, restored: Restored) -> Restored:
    """The VAE with the prior that --prior names."""
    if options.prior == "own":
        if options.num_components is not None:
            raise UserError("--num_components is for a fitted prior. Give --prior=fitted too, or leave it out.")
        return restored
    advice = "Put the data of the training back, or leave --prior out."
    every = lambda: training(options, restored, sys.maxsize, advice).examples  # noqa: E731
    p = fitted.of_run(options.run_dir, restored.params, restored.vae, every, options.num_components or 10)
    return restored._replace(vae=restored.vae._replace(prior=lambda params: p))


def _continuous(options: Namespace) -> Restored:
    restored = _load(options)
    if build.make_codes(restored.config):
        raise UserError(
            f"{options.run_dir} has the posterior {restored.config.posterior!r}, and between codes there are no "
            "points. Use sample or reconstruct instead."
        )
    return restored


class Contexts(NamedTuple):
    """The contexts that samples take in turn."""

    num: int
    of: Callable[[Array], Array]  # their numbers, [N] -> [N, C]


def _contexts(options: Namespace, restored: Restored) -> Contexts | None:
    """All labels, or the one of --label, or the covariates of a split; None for an unconditional VAE."""
    conditional, classes, names = restored.config.conditional, restored.data.classes, restored.data.names
    if options.label is not None and conditional is not True:
        raise UserError(f"--label needs a conditional VAE with labels; this one has conditional={conditional}.")
    if conditional == "covariates":
        rows: Any = examples_of(options, restored)[0].context
        return Contexts(len(rows), lambda i: rows[i])
    takes_dir = getattr(options, "prior", "own") == "fitted"
    if options.data or options.split or (options.data_dir and not takes_dir):
        raise UserError(
            f"--data and --split are for a VAE with covariates; this one has conditional={conditional}. Leave them out."
        )
    if not conditional:
        return None
    label: Any = None if options.label is None else value_of(names, options.label)
    if label is not None and label not in classes:
        known = inputs.show_classes(classes, names)
        raise UserError(f"--label is {options.label}; the VAE knows {known}. Choose one of them.")
    first, num = (0, len(classes)) if label is None else (classes.index(label), 1)
    return Contexts(num, lambda i: jax.nn.one_hot(first + i, len(classes), dtype=jnp.float32))


def _given(restored: Restored, contexts: Contexts | None, num: int) -> dict[str, np.ndarray]:
    """The label or the covariates that each of `num` samples was drawn for, as columns of a table."""
    if contexts is None:
        return {}
    config, data = restored.config, restored.data
    given = np.asarray(contexts.of(jnp.arange(num) % contexts.num))
    if config.conditional == "covariates":
        return inputs.covariates_of(given, config)
    classes = np.array([text_of(data.names, label) for label in data.classes])
    return {config.label_column or "label": classes[given.argmax(-1)]}


def _in_turn(vae: VAE, contexts: Contexts | None, num: int, start: Any = 0) -> VAE:
    """The VAE of `num` latents with the contexts in turn, from number `start` on."""
    return vae if contexts is None else condition(vae, contexts.of((start + jnp.arange(num)) % contexts.num))


def _check_pixels(num: int, shape: tuple[int, ...], instead: str) -> None:
    """Raise UserError if a picture of `num` examples is too large for most programs to open."""
    pixels = num * pictures.area(shape)
    if pixels > pictures.MAX_PIXELS:
        raise UserError(
            f"A grid of {num} examples has {pixels} pixels; expected at most {pictures.MAX_PIXELS} in one picture. "
            f"Ask for {instead}."
        )
