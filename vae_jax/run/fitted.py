"""Keep the fitted prior of a run, which belongs to the weights that it was fitted with."""

import hashlib
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from vae_jax import fitted
from vae_jax.core import VAE, Examples, Params
from vae_jax.data.files import write_npz
from vae_jax.distributions import GaussianMixture
from vae_jax.progress import say
from vae_jax.run.arrays import named

NAME = "fitted_prior.npz"  # in a run directory


def of_run(
    run_dir: Path, params: Params, vae: VAE, examples: Callable[[], Examples], num_components: int
) -> GaussianMixture:
    """The `fit_prior` of a run with the key 0: from RUN_DIR/fitted_prior.npz, or else fitted and written there.

    The file holds the digest of the weights and is used with these weights only. examples: gives those of the training.
    """
    path, expected = run_dir / NAME, {"weights": _digest(params), "num_components": num_components}
    try:
        with np.load(path, allow_pickle=False) as file:
            if all(file[name] == value for name, value in expected.items()):
                return fitted.of_arrays(*(file[name] for name in ("logits", "mean", "scale_tril")))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        pass  # it is not there, or not whole
    fitted.check_continuous(params, vae)
    given = examples()
    p = fitted.fit_prior(params, jax.random.key(0), given, vae, num_components=num_components)
    own = {"logits": p.logits, "mean": p.components.mean, "scale_tril": p.components.scale_tril}
    write_npz(path, {**expected, **own})
    say(f"{path}: {num_components} Gaussians, fitted to a draw of q(z | x) of each of {len(given.x)} training examples")
    return p


def _digest(params: Params) -> str:
    """The SHA-256 of the names, types, shapes and values of the weights."""
    digest = hashlib.sha256()
    for name, leaf in named(params).items():
        leaf = np.asarray(leaf)
        digest.update(f"{name} {leaf.dtype} {leaf.shape} ".encode() + leaf.tobytes())
    return digest.hexdigest()
