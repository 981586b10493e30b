"""Parameters of any model in a directory: for training loops of your own, which need no Config.

params/         the arrays
metadata.json   what you say about them
SHA256SUMS      the digests of both
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vae_jax.errors import UserError
from vae_jax.run import arrays, digests

LIKE = ("like", "Give the shapes and types of the params that vae_jax.save wrote.")


def save(directory: str | Path, params: Any, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a pytree of arrays and `metadata`, which JSON can hold, to a new directory: completely or not at all.

    Raises UserError if the directory exists and is not empty, or for a leaf or metadata that cannot be kept. Raises
    OSError if it cannot be written.
    """
    directory = Path(directory).absolute()
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise UserError(f"{directory} exists already. Choose another directory, such as one per step.")
    for name, leaf in arrays.named(params).items():
        if not hasattr(leaf, "dtype") or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            what = f"a key {leaf.dtype}" if hasattr(leaf, "dtype") else f"a {type(leaf).__name__}"
            raise UserError(f"params holds {what} at {name!r}; expected arrays. Save jax.random.key_data of a key.")
    try:
        text = json.dumps(dict(metadata or {}), indent=2, allow_nan=False, default=_number)
    except (TypeError, ValueError) as error:
        raise UserError(f"metadata cannot be written as JSON ({error}). Give text, finite numbers and lists.") from None
    new = directory.with_name(f".{directory.name}.{os.getpid()}.new")
    new.mkdir(parents=True, exist_ok=True)
    try:
        arrays.write(new, params=params)
        (new / "metadata.json").write_text(text + "\n", "utf-8")
        digests.write(new)
        new.rename(directory)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _number(value: Any) -> Any:
    """The number in an array without axes, as `state.step` is one."""
    if getattr(value, "shape", None) != ():
        raise TypeError(f"it holds a {type(value).__name__}")
    return value.item()


def load(directory: str | Path, like: Any) -> tuple[Any, dict[str, Any]]:
    """Read what `save` wrote: (params, metadata). like: a pytree with the shapes and types of params.

    Raises UserError if the directory is damaged, or if its arrays have other names or shapes than `like`.
    """
    directory = Path(directory).absolute()
    if not (directory / "metadata.json").is_file():
        is_run = (directory / "run.json").is_file()
        advice = "Load a run directory without like=" if is_run else "Choose one that was"
        raise UserError(f"{directory} was not written by vae_jax.save: it has no metadata.json. {advice}.")
    if reason := digests.damage(directory):
        raise UserError(f"{directory} is damaged ({reason}). Choose another one.")
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), like)
    (params,) = arrays.read(directory, LIKE, params=like)
    return params, json.loads((directory / "metadata.json").read_text("utf-8"))
