"""A prior fitted after training: a mixture of Gaussians for the aggregate posterior q(z), which samples then follow.

It is the remedy where reconstructions are good and samples are not, as with a small beta or with a point posterior.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax.codes import Categoricals
from vae_jax.core import VAE, Examples, Params, condition
from vae_jax.distributions import FullGaussian, GaussianMixture
from vae_jax.errors import UserError
from vae_jax.progress import say

MAX_ITERATIONS = 1000
_BATCH = 2000  # examples that are encoded at once


def fit_prior(params: Params, key: Array, examples: Examples, vae: VAE, *, num_components: int = 10) -> GaussianMixture:
    """A mixture of Gaussians with full covariances, fitted by scikit-learn to one draw z ~ q(z | x) of each example.

    The draws follow the aggregate posterior q(z), and their covariance holds that of q(z | x), which the means of
    q(z | x) lack. `vae._replace(prior=lambda params: p)` is the VAE with this prior p, for these params only. Raises
    UserError if z is discrete or is not one vector, if a draw is not finite, or for fewer examples than components.
    """
    check_continuous(params, vae)

    @jax.jit
    def draw(params: Params, key: Array, examples: Examples) -> Array:
        return condition(vae, examples.context).encode(params, examples.x).sample(key)

    starts = range(0, len(examples.x), _BATCH)
    parts = [jax.tree.map(lambda a, i=i: a[i : i + _BATCH], examples) for i in starts]
    z = np.concatenate([draw(params, jax.random.fold_in(key, i), part) for i, part in enumerate(parts)])
    if not np.isfinite(z).all():
        raise UserError("The draws of q(z | x) are not all finite. Choose another checkpoint.")
    if len(z) < num_components:
        raise UserError(f"num_components is {num_components}; expected at most the {len(z)} training examples.")
    return _fit(z, num_components)


def check_continuous(params: Params, vae: VAE) -> None:
    """Raise UserError if z is discrete or is not one vector, and so has no such prior."""
    prior, own = vae.prior(params), "Use the prior of the VAE itself (--prior=own)."
    if isinstance(prior, Categoricals):
        raise UserError(f"z is discrete, and a mixture of Gaussians is of a continuous z. {own}")
    z = jax.eval_shape(prior.sample, jax.random.key(0))
    if not isinstance(z, jax.ShapeDtypeStruct) or len(z.shape) != 1:
        raise UserError(f"z has several parts, and the mixture is of a single vector. {own}")


def _fit(z: np.ndarray, num_components: int) -> GaussianMixture:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture as Fit

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = Fit(num_components, max_iter=MAX_ITERATIONS, random_state=0).fit(z.astype(np.float64))
    if not found.converged_:
        say(f"The fit of {num_components} Gaussians stopped after {MAX_ITERATIONS} iterations without converging.")
    return of_arrays(np.log(found.weights_), found.means_, np.linalg.cholesky(found.covariances_))


def of_arrays(logits: np.ndarray, mean: np.ndarray, scale_tril: np.ndarray) -> GaussianMixture:
    """The mixture of its log weights, [C], means, [C, L], and Cholesky factors of its covariances, [C, L, L]."""
    return GaussianMixture(
        jnp.asarray(logits, jnp.float32),
        FullGaussian(jnp.asarray(mean, jnp.float32), jnp.asarray(scale_tril, jnp.float32)),
    )
