"""Write pytrees of arrays to files and read them back. Only this module uses orbax.

Arrays pass through the memory of the host, so they can be read on other devices than they were written on.
"""

import errno
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vae_jax.errors import UserError


def write(folder: Path, **trees: Any) -> None:
    """Write each tree into a subfolder with its name. Raises OSError if a tree cannot be written."""
    try:
        with _quiet(), _checkpointer() as checkpointer:
            for name, tree in trees.items():
                tree = jax.tree.map(np.asarray, tree)
                checkpointer.save((folder / name).absolute(), args=_orbax().args.StandardSave(tree))
    except (OSError, ValueError, RuntimeError) as error:
        of_tensorstore = re.search(r"os_error_code='(\d+)'", str(error))
        code = int(of_tensorstore[1]) if of_tensorstore else getattr(error, "errno", None)
        reason = os.strerror(code) if code else str(error).partition("\n")[0][:200]
        raise OSError(code or errno.EIO, reason, str(folder)) from error


OF_A_RUN = (
    "the model that this version builds from run.json",
    "Use the version of vae_jax that wrote it.",
)


def read(folder: Path, expected: tuple[str, str] = OF_A_RUN, **likes: Any) -> list[Any]:
    """Read trees from a folder, with the shapes and types of `likes`. Raises UserError if the shapes differ.

    expected: where the shapes of `likes` are from, and what to do if those of the folder differ.
    """
    with _quiet(), _checkpointer() as checkpointer:
        return [_read(checkpointer, (folder / name).absolute(), like, *expected) for name, like in likes.items()]


def _orbax() -> Any:
    import orbax.checkpoint as ocp

    return ocp


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence orbax, which logs a hundred lines per run, and pages from its threads where a file fails."""
    from absl import logging as absl_logging

    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    hook, verbosity, levels = sys.unraisablehook, absl_logging.get_verbosity(), [logger.level for logger in loggers]
    try:
        sys.unraisablehook = lambda _: None
        absl_logging.set_verbosity(absl_logging.FATAL)
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        sys.unraisablehook = hook
        absl_logging.set_verbosity(verbosity)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _checkpointer() -> Any:
    """Make a checkpointer for this process alone, which does not wait for other processes."""
    ocp, index = _orbax(), jax.process_index()
    alone = ocp.options.MultiprocessingOptions(index, {index}, "alone") if jax.process_count() > 1 else None
    options = {} if alone is None else {"multiprocessing_options": alone}
    return ocp.Checkpointer(ocp.StandardCheckpointHandler(**options), **options)


def _read(checkpointer: Any, path: Path, like: Any, of_what: str, advice: str) -> Any:
    try:
        tree = checkpointer.metadata(path).item_metadata.tree
        held, built = _shapes(tree), _shapes(like)
        for leaf in jax.tree.leaves(tree):
            # A chunk is always decoded as a whole, so a huge chunk could fill the memory even for a small array.
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
        raise UserError(f"{path} does not fit {of_what} ({reason}). {advice}") from error


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree, each under its path, such as encoder/output/bias."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in named(tree).items()}


def _empty(a: Any) -> np.ndarray:
    """An array with the shape and type of `a`, which takes the memory of one value only."""
    return np.broadcast_to(np.zeros((), a.dtype), a.shape)
