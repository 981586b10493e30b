"""Trees of arrays in files. The one file that knows orbax.

Arrays come from the host and go to it, so that the devices that wrote them are nothing to those that read them.
"""

import errno
import logging
import os
import re
import sys
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vae_jax.errors import UserError


def write(folder: Path, **trees: Any) -> None:
    """Each tree into a folder of its name. OSError if one cannot be written."""
    ocp = _orbax()
    # When one of its writes fails, the others go on and complain from their threads, by pages, until the process ends.
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    hook, levels = sys.unraisablehook, [logger.level for logger in loggers]
    sys.unraisablehook = lambda _: None
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with _checkpointer(ocp) as checkpointer:
            for name, tree in trees.items():
                checkpointer.save((folder / name).absolute(), args=ocp.args.StandardSave(_host(tree)))
    except (OSError, ValueError, RuntimeError) as error:
        of_tensorstore = re.search(r"os_error_code='(\d+)'", str(error))
        code = int(of_tensorstore[1]) if of_tensorstore else getattr(error, "errno", None)
        reason = os.strerror(code) if code else str(error).partition("\n")[0][:200]
        raise OSError(code or errno.EIO, reason, str(folder)) from error
    sys.unraisablehook = hook
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def read(folder: Path, **likes: Any) -> list[Any]:
    """The trees of a folder, with the shapes and types of `likes`. UserError if they have others."""
    ocp, hook = _orbax(), sys.unraisablehook
    sys.unraisablehook = lambda _: None  # of its threads, which complain by pages of what they cannot read
    with _checkpointer(ocp) as checkpointer:
        trees = [_read(checkpointer, (folder / name).absolute(), like) for name, like in likes.items()]
    sys.unraisablehook = hook
    return trees


def _orbax() -> Any:
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.ERROR)  # orbax logs a hundred lines a run
    import orbax.checkpoint as ocp

    return ocp


def _checkpointer(ocp: Any) -> Any:
    """Of this process alone: it asks no other one to take part."""
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(index, {index}, "alone") if jax.process_count() > 1 else None
    options = {} if alone is None else {"multiprocessing_options": alone}
    return ocp.Checkpointer(ocp.StandardCheckpointHandler(**options), **options)


def _read(checkpointer: Any, path: Path, like: Any) -> Any:
    try:
        tree = checkpointer.metadata(path).item_metadata.tree
        held, built = _shapes(tree), _shapes(like)
        for leaf in jax.tree.leaves(tree):
            # A chunk is decoded whole, however little of it the array has.
            if prod(leaf.storage.chunk_shape or ()) > max(1, prod(leaf.shape)):
                raise ValueError(f"an array of {leaf.shape} in chunks of {leaf.storage.chunk_shape}")
        for leaf in sorted(held.keys() | built.keys()):
            if held.get(leaf) != built.get(leaf):
                raise ValueError(f"{leaf} is {held.get(leaf, 'missing')}, expected {built.get(leaf, 'none')}")
        read = checkpointer.restore(path, args=_orbax().args.StandardRestore(jax.tree.map(_empty, like)))
        return jax.tree.map(jax.device_put, read)
    except OSError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is not of the model that this version builds from run.json ({reason}). Use the version that "
            "wrote it."
        ) from error


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """By name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _host(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)


def _empty(a: Any) -> np.ndarray:
    """The shape and type of `a`, without memory of its own."""
    return np.broadcast_to(np.zeros((), a.dtype), a.shape)
