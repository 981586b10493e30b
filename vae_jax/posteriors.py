"""The posteriors q(z | x) that a config can name: what the encoder has to give, and what distribution it makes."""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax import codebooks, flows
from vae_jax.codes import MAX_CODES, MAX_LEVELS, Categoricals, Codes, PointCode, straight_through
from vae_jax.core import Distribution, Params
from vae_jax.distributions import Delta, DiagonalGaussian, Flow, FullGaussian
from vae_jax.errors import Natural

NAMES = ("categorical", "delta", "diagonal", "flow", "fsq", "full_covariance", "vq")  # what a config may name

MAX_VECTORS = 1_000_000  # of a codebook, to each of which the distance of each output is computed
MAX_FULL = 2000  # dimensions of the largest full covariance, for which the encoder gives two million numbers


class Posterior(NamedTuple):
    num_outputs: int  # numbers per example that the encoder gives
    build: Callable[[Params, Array], Distribution]  # (params, outputs [..., num_outputs]) -> q(z | x)
    init: Callable[[Array], Params] = lambda key: {}  # key -> parameters beyond the encoder's
    codes: Codes | None = None  # what its latents are, if they are discrete; its prior is then one of codes
    relaxed: bool = False  # whether the samples in training are not codes, and so have no log q(z | x)
    prior_of: Callable[[Params, Any], Any] = lambda params, p: p  # (params, prior of `codes`) -> p(z)
    after: Callable[..., Any] | None = None  # what an update ends with: see `codebooks.restart`, without `steps`


def diagonal(latent_dim: int) -> Posterior:
    """N(mean, diag(exp(log_var))). The encoder's outputs are `mean` and `log_var`."""

    def build(params: Params, outputs: Array) -> DiagonalGaussian:
        mean, log_var = jnp.split(outputs, 2, axis=-1)
        return DiagonalGaussian(mean, log_var)

    return Posterior(2 * latent_dim, build)


def full_covariance(latent_dim: int) -> Posterior:
    """N(mean, T T') with a lower-triangular T, whose diagonal is the exponential of encoder outputs."""
    if latent_dim > MAX_FULL:
        raise ValueError(f"latent_dim is {latent_dim}; expected at most {MAX_FULL}.")
    rows, columns = jnp.tril_indices(latent_dim, -1)

    def build(params: Params, outputs: Array) -> FullGaussian:
        mean, half_log_var, below = jnp.split(outputs, (latent_dim, 2 * latent_dim), axis=-1)
        diagonal = jnp.arange(latent_dim)
        tril = jnp.zeros((*mean.shape, latent_dim), mean.dtype).at[..., diagonal, diagonal].set(jnp.exp(half_log_var))
        return FullGaussian(mean, tril.at[..., rows, columns].set(below))

    return Posterior(2 * latent_dim + len(rows), build)


def delta(latent_dim: int) -> Posterior:
    """All mass at one point. With beta = 0 the VAE is a deterministic autoencoder."""
    return Posterior(latent_dim, lambda params, outputs: Delta(outputs))


def flow(latent_dim: int, *, num_couplings: int = 4, hidden_size: int = 128, context_size: int = 32) -> Posterior:
    """A diagonal Gaussian transformed by affine couplings, which also read `context_size` numbers from the encoder.

    See Rezende & Mohamed 2015 (arXiv:1505.05770); `flows.RealNVP` describes the couplings.
    """
    couplings = flows.real_nvp(latent_dim, num_couplings, hidden_size)

    def build(params: Params, outputs: Array) -> Flow:
        mean, log_var, context = jnp.split(outputs, (latent_dim, 2 * latent_dim), -1)
        return couplings.distribution(params, DiagonalGaussian(mean, log_var), context)

    def init(key: Array) -> Params:
        return couplings.init(key, jnp.zeros((1, context_size), jnp.float32))

    return Posterior(2 * latent_dim + context_size, build, init)


def fsq(latent_dim: int, *, levels: Sequence[int] = (8, 5, 5, 5)) -> Posterior:
    """Finite scalar quantisation: all mass at one code, whose numbers are the encoder's outputs, bounded and rounded.

    Each group of len(levels) dimensions is a code: its dimension i takes levels[i] values in [-1, 1]. Gradients pass
    straight through the rounding. See Mentzer et al. 2023 (arXiv:2309.15505); `codes.Codes.quantize` has the formula.
    """
    levels = tuple(levels)
    if not levels or not all(2 <= n <= MAX_LEVELS for n in levels) or prod(levels) > MAX_CODES:
        raise ValueError(
            f"levels is {levels}; expected numbers from 2 to {MAX_LEVELS}, with a product of at most {MAX_CODES}."
        )
    if latent_dim % len(levels):
        raise ValueError(f"latent_dim is {latent_dim}; expected a multiple of the {len(levels)} levels.")
    codes = Codes(levels * (latent_dim // len(levels)), one_hot=False, group=len(levels))
    return Posterior(latent_dim, lambda params, outputs: PointCode(codes.quantize(outputs), codes), codes=codes)


def categorical(
    latent_dim: int, *, num_categories: int = 10, temperature: float = 1.0, straight_through: bool = False
) -> Posterior:
    """latent_dim / num_categories categorical variables, whose one-hot vectors make z. The outputs are their logits.

    In training, samples are relaxed (Gumbel-softmax at `temperature`), or codes with the gradient of the relaxed ones
    (`straight_through`). The KL is exact. With relaxed samples the training metrics are not those of the discrete VAE,
    and its ELBO is not a bound. The evaluation, the samples and the exported functions always use codes. See Jang et
    al. 2017 (arXiv:1611.01144); `codes.Categoricals` has the formulas.
    """
    if num_categories < 2:
        raise ValueError(f"num_categories is {num_categories}; expected at least 2.")
    if latent_dim % num_categories:
        raise ValueError(f"latent_dim is {latent_dim}; expected a multiple of num_categories, {num_categories}.")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a positive number.")
    codes = Codes((num_categories,) * (latent_dim // num_categories), one_hot=True)

    def build(params: Params, outputs: Array) -> Categoricals:
        return Categoricals(outputs, codes, temperature, straight_through)

    return Posterior(latent_dim, build, codes=codes, relaxed=not straight_through)


def vq(latent_dim: int, *, num_codes: int = 512, code_dim: int = 4, restart_steps: Natural = 100) -> Posterior:
    """Vector quantisation: all mass at the nearest of `num_codes` vectors, for each `code_dim` numbers of the outputs.

    So z holds latent_dim / code_dim vectors of one codebook, which the objective `vq` trains. Gradients pass straight
    through to the encoder's outputs. A vector that none of the outputs of `restart_steps` batches chose is moved to
    an output of the next update's batch (0: never). See van den Oord et al. 2017 (arXiv:1711.00937), section 3, and
    `codebooks.restart`.
    """
    if not 2 <= num_codes <= MAX_VECTORS:
        raise ValueError(f"num_codes is {num_codes}; expected 2 to {MAX_VECTORS}.")
    if latent_dim % code_dim:
        raise ValueError(f"latent_dim is {latent_dim}; expected a multiple of code_dim, {code_dim}.")
    rows = Codes((num_codes,) * (latent_dim // code_dim), one_hot=False)

    def build(params: Params, outputs: Array) -> codebooks.NearestCode:
        codes = codebooks.VectorCodes(params["codebook"].astype(outputs.dtype), rows)
        digits = codes.digits(outputs)
        mean = straight_through(codes.values(digits, outputs.dtype), outputs)
        return codebooks.NearestCode(mean, outputs, digits, codes)

    def init(key: Array) -> Params:
        codebook = {"codebook": jax.random.normal(key, (num_codes, code_dim), jnp.float32)}
        return {**codebook, "idle": jnp.zeros(num_codes, jnp.float32)} if restart_steps else codebook

    return Posterior(
        latent_dim,
        build,
        init,
        codes=rows,
        prior_of=lambda params, p: codebooks.with_vectors(p, params["codebook"], rows),
        after=partial(codebooks.restart, steps=restart_steps) if restart_steps else None,
    )
