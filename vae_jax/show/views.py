"""Draw the pictures of a trained VAE as PNG files. They look the same during training and after it."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import build, generate
from vae_jax.core import VAE, Examples, Params, condition
from vae_jax.run import metrics
from vae_jax.run.checkpoints import Restored
from vae_jax.show import pictures
from vae_jax.show.pictures import Range


def reconstructions(path: Path, vae: VAE, params: Params, examples: Examples, value_range: Range) -> None:
    """Draw pairs of rows: inputs, and under each input its reconstruction."""
    x, own = examples.x, condition(vae, examples.context)
    y = jax.jit(lambda params, x: generate.reconstruct(params, x, own))(params, x)
    columns = min(len(x), pictures.columns_for(x.shape[1:], 12))
    num = len(x) // columns * columns
    rows = jnp.stack([a[:num].reshape(-1, columns, *x.shape[1:]) for a in (x, y)], 1)
    pictures.save_grid(path, rows.reshape(-1, *x.shape[1:]), columns, value_range)


def samples(path: Path, mean: Any, value_range: Range) -> None:
    """Draw a square grid of `mean`, which is E[x | z] at samples z of the prior."""
    pictures.save_grid(path, mean, pictures.columns_for(mean.shape[1:], max(1, round(len(mean) ** 0.5))), value_range)


def manifold(path: Path, vae: VAE, params: Params, value_range: Range, num: int = 20, **grid: Any) -> None:
    """Draw E[x | z] at every z of a grid of `num` x `num` points in a two-dimensional latent space."""
    images = jax.jit(lambda params: generate.manifold(params, vae, num, **grid))(params)
    pictures.save_grid(path, images.reshape(-1, *images.shape[2:]), num, value_range)


def draw_run(
    folder: Path,
    restored: Restored,
    held_out: Examples,
    label: np.ndarray | None,
    mean: Any,
    seed: int = 0,
    names: tuple[str, ...] = (),
) -> None:
    """Draw what a model has learned, in `folder`, with the learning curves if that is the run directory.

    held_out, label, mean: an evaluated split, its labels and its posterior means. names: of the labels 0, 1, ..., if
    they have other names than in training.
    """
    config, data, vae, params, _ = restored
    folder.mkdir(exist_ok=True)
    few = jax.tree.map(lambda a: a[:48], held_out)
    reconstructions(folder / "reconstructions.png", vae, params, few, pictures.range_of(data))
    context, index = held_out.context, jnp.arange(64)
    if data.classes:
        context = jax.nn.one_hot(index % len(data.classes), len(data.classes), dtype=jnp.float32)
    elif context is not None:
        context = context[index % len(context)]
    own = condition(vae, context)
    drawn = jax.jit(lambda params, key: generate.sample(params, key, own, 64))(params, jax.random.key(seed))
    samples(folder / "samples.png", drawn.mean, pictures.range_of(data))
    if isinstance(mean, np.ndarray) and mean.shape[-1] == 2:
        pictures.save_scatter(folder / "latents.png", mean, label, classes=names or data.names)
        one = condition(vae, None if context is None else context[:1])
        if not build.make_codes(config):  # between codes there are no points
            manifold(folder / "manifold.png", one, params, pictures.range_of(data))
    if (folder / "metrics.jsonl").exists():
        pictures.save_curves(folder / "curves.png", metrics.read(folder))
