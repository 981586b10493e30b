"""The ELBO with other penalties on q(z | x) than its KL: pure functions of (params, key, x, vae), in nats per example.

Some are on the aggregate posterior q(z), the average of q(z | x) over all examples, which they estimate from a batch.
Such a loss is not an average over examples: `losses.split_loss` computes the loss of a whole split.
"""

from collections.abc import Callable
from math import inf, log
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax import checks
from vae_jax.codebooks import NearestCode
from vae_jax.core import VAE, Params
from vae_jax.distributions import DiagonalGaussian, gaussian_log_prob
from vae_jax.objectives import Kl, elbo, negative_elbo

Loss = tuple[Array, dict[str, Array]]
Mapped = Callable[[Callable[..., Any]], Callable[..., Any]]  # jax.vmap, or what does the same in less memory

KINDS = ("i", "ii")  # of DIP-VAE


class Codes(NamedTuple):
    """What a penalty on q(z) needs of each example."""

    z: Array  # [N, K, L], samples of q(z | x)
    p_z: Array  # [N, L], samples of p(z)
    mean: Array  # [N, L], of q(z | x), as the next
    log_var: Array  # [N, L]; 0 if q(z | x) is not a diagonal Gaussian


class Decomposition(NamedTuple):
    """The terms whose sum is log q(z | x) - log p(z), whatever the estimate of q(z): Chen et al. 2018, equation 2."""

    mutual_information: Array  # log q(z | x) - log q(z)
    total_correlation: Array  # log q(z) - sum_d log q(z_d)
    dimension_wise_kl: Array  # sum_d log q(z_d) - log p(z)


def negative_capacity(
    params: Params, key: Array, x: Array, vae: VAE, *, gamma: float, capacity: float, num_samples: int = 1
) -> Loss:
    """The mean over the batch of -log p(x | z) + gamma |KL - C|, where C = `capacity`, which may be traced.

    The KL of each example is drawn to C nats, and C usually rises in training. See Burgess et al. 2018
    (arXiv:1804.03599), equation 8. It needs the KL in closed form, since the average of |estimate - C| is not
    |KL - C|, and raises ValueError without it.
    """
    terms = elbo(params, key, x, vae, num_samples=num_samples, kl="analytic")
    log_likelihood, kl = (jnp.mean(term) for term in terms)
    metrics = {"elbo": log_likelihood - kl, "log_likelihood": log_likelihood, "kl": kl}
    return gamma * jnp.mean(jnp.abs(terms.kl - capacity)) - log_likelihood, metrics


def negative_total_correlation(
    params: Params,
    key: Array,
    x: Array,
    vae: VAE,
    *,
    num_examples: int,
    beta: Any = 1.0,
    num_samples: int = 1,
    stratified: bool = True,
) -> Loss:
    """-log p(x | z) + I + beta TC + the KL of each dimension: the beta-TC-VAE.

    I is the mutual information of x and z, TC the total correlation of q(z), and the rest is the sum over dimensions of
    KL(q(z_d) || p(z_d)): see `Decomposition`, and Chen et al. 2018 (arXiv:1802.04942), equation 4. Their sum is an
    estimate of the KL from samples, so that beta = 1 gives the ELBO. q(z) is estimated from the batch by the weights of
    `stratified_log_weights` or, if `stratified` is false, of `minibatch_log_weights`. num_examples: of the training
    split. Raises ValueError unless q(z | x) and p(z) are diagonal Gaussians, and as these functions do.
    """
    q, p, (size,) = checks.posterior(vae, params, x), checks.prior(vae, params), checks.batch_shape(x)
    if not (isinstance(q, DiagonalGaussian) and isinstance(p, DiagonalGaussian)):
        raise ValueError(f"The total correlation needs diagonal Gaussians; got {type(q).__name__}, {type(p).__name__}.")
    log_weights = (stratified_log_weights if stratified else minibatch_log_weights)(size, num_examples)

    def one(z: Array) -> tuple[Array, Decomposition]:
        log_likelihood = checks.log_prob("log p(x | z)", vae.decode(params, z), x, (size,))
        log_q, log_p = q.log_prob(z), p.log_prob(z)
        return log_likelihood, decompose(z, log_q, log_p, q.mean, q.log_var, log_weights)

    z = q.sample(key, (num_samples,))
    terms = one(z[0]) if num_samples == 1 else jax.vmap(one)(z)
    log_likelihood, parts = jax.tree.map(jnp.mean, terms)
    kl = sum(parts[1:], parts[0])
    loss = kl + (beta - 1) * parts.total_correlation - log_likelihood
    return loss, {"elbo": log_likelihood - kl, "log_likelihood": log_likelihood, "kl": kl, **parts._asdict()}


def negative_mmd(
    params: Params,
    key: Array,
    x: Array,
    vae: VAE,
    *,
    weight: float,
    bandwidth: float = 1.0,
    alpha: Any = 1.0,
    beta: Any = 1.0,
    num_samples: int = 1,
    kl: Kl = "auto",
    estimator: str = "pathwise",
) -> Loss:
    """`negative_elbo` plus weight * MMD^2(q(z), p(z)): the InfoVAE, and with beta = 0 the MMD-VAE.

    In Zhao et al. 2017 (arXiv:1706.02262), section 3, beta is 1 - alpha and weight is alpha + lambda - 1. The other
    arguments are those of `negative_elbo` and of `mmd`, which takes one z of each example. Raises ValueError as both
    do, and if z is not an array. Gradients reach p(z) only through its samples.
    """
    elbo_key, q_key, p_key = jax.random.split(key, 3)
    loss, metrics = negative_elbo(
        params, elbo_key, x, vae, alpha=alpha, beta=beta, num_samples=num_samples, kl=kl, estimator=estimator
    )
    z = vae.encode(params, x).sample(q_key)
    if not isinstance(z, Array):
        raise ValueError(f"The MMD needs a z that is an array; got a {type(z).__name__}.")
    distance = mmd(z, vae.prior(params).sample(p_key, z.shape[:1]), bandwidth)
    return loss + weight * distance, {**metrics, "mmd": distance}


def negative_dip(
    params: Params,
    key: Array,
    x: Array,
    vae: VAE,
    *,
    off_diagonal: float,
    diagonal: float,
    kind: str = "ii",
    alpha: Any = 1.0,
    beta: Any = 1.0,
    num_samples: int = 1,
    kl: Kl = "auto",
    estimator: str = "pathwise",
) -> Loss:
    """`negative_elbo` plus `dip` of the batch: DIP-VAE I or II. The arguments are those of these two.

    Raises ValueError unless q(z | x) is a diagonal Gaussian, and as these two do.
    """
    loss, metrics = negative_elbo(
        params, key, x, vae, alpha=alpha, beta=beta, num_samples=num_samples, kl=kl, estimator=estimator
    )
    q = vae.encode(params, x)
    if not isinstance(q, DiagonalGaussian):
        raise ValueError(f"The DIP-VAE needs a diagonal Gaussian q(z | x); got a {type(q).__name__}.")
    penalty = dip(q.mean, q.log_var, off_diagonal, diagonal, kind)
    return loss + penalty, {**metrics, "dip": penalty}


def negative_vq(
    params: Params, key: Array, x: Array, vae: VAE, *, commitment: float = 0.25, alpha: Any = 1.0, beta: Any = 1.0
) -> Loss:
    """`negative_elbo` plus |sg(e) - c|^2 + commitment |e - sg(c)|^2, for the encoder's outputs e and nearest codes c.

    sg stops the gradient: the first term draws the codes to the outputs, and the second one the outputs to the codes.
    |.|^2 is the sum over the numbers of a code. It is averaged over the codes of an example and over the batch. See
    van den Oord et al. 2017 (arXiv:1711.00937), equation 3, whose average is the same. Both terms have the value of the
    metric `quantization`. The other arguments are those of `negative_elbo`. Raises ValueError unless q(z | x) is that
    of posterior vq.
    """
    loss, metrics = negative_elbo(params, key, x, vae, alpha=alpha, beta=beta)
    q = vae.encode(params, x)
    if not isinstance(q, NearestCode):
        raise ValueError(f"The objective vq needs the q(z | x) of posterior vq; got a {type(q).__name__}.")
    e, c, stop = q.outputs, q.codes.values(q.digits, q.outputs.dtype), jax.lax.stop_gradient

    def distance(a: Array, b: Array) -> Array:
        return jnp.mean(jnp.sum((a - b) ** 2, -1)) / q.codes.num_groups

    codebook = distance(stop(e), c)
    return loss + codebook + commitment * distance(e, stop(c)), {**metrics, "quantization": codebook}


def codes(params: Params, key: Array, x: Array, vae: VAE, num_samples: int) -> Codes:
    """The codes of a batch. Its z are those at which `elbo` with this key estimates its terms."""
    q = vae.encode(params, x)
    z = q.sample(jax.random.clone(key), (num_samples,))
    log_var = q.log_var if isinstance(q, DiagonalGaussian) else jnp.zeros_like(q.mean)
    p_z = vae.prior(params).sample(jax.random.fold_in(jax.random.clone(key), 1), z.shape[1:2])
    return Codes(jnp.swapaxes(z, 0, 1), p_z, q.mean, log_var)


def decompose(
    z: Array, log_q: Array, log_p: Array, mean: Array, log_var: Array, log_weights: Array, mapped: Mapped = jax.vmap
) -> Decomposition:
    """The `Decomposition` at samples z, [R, L], of each: [R].

    The aggregate posterior is q(z) = sum_j exp(log_weights_j) N(z | mean_j, exp(log_var_j)).
    log_q, log_p: log q(z | x) and log p(z) at z, [R]. mean, log_var: [N, L]. log_weights: [R, N], or [R, 1] if a row
    holds N equal ones.
    """

    def one(row: tuple[Array, ...]) -> Decomposition:
        z, log_q, log_p, log_weight = row
        each = gaussian_log_prob(z[None], mean, log_var)
        joint = jax.nn.logsumexp(jnp.sum(each, -1) + log_weight)
        product = jnp.sum(jax.nn.logsumexp(each + log_weight[:, None], 0))
        return Decomposition(log_q - joint, joint - product, product - log_p)

    return mapped(one)((z, log_q, log_p, log_weights))


def stratified_log_weights(size: int, num_examples: int) -> Array:
    """log weights, [B, B], with which row i is an unbiased estimate of q(z) at z ~ q(z | x_i), from a batch of `size`.

    The example itself is one of N, so it has the weight 1 / N. The B - 1 others stand for the N - 1 others: (N - 1) /
    (N (B - 1)) each. This is the average over the orders of the batch of the weights of Chen et al. 2018, appendix C.2,
    where one other example, the last, has a smaller weight. If B = N, q(z) is exact. Raises ValueError unless B is from
    2 to N, or both are 1.
    """
    if not (2 <= size <= num_examples or size == num_examples == 1):
        raise ValueError(f"The batch holds {size} of {num_examples} examples; expected at least 2 and at most all.")
    other = log((num_examples - 1) / num_examples / (size - 1)) if size > 1 else -inf
    return jnp.where(jnp.eye(size, dtype=bool), -log(num_examples), other)


def minibatch_log_weights(size: int, num_examples: int) -> Array:
    """-log(N B), [B, B]: minibatch-weighted sampling, Chen et al. 2018, equation 3.

    Every term is too small: that of the example itself by a factor of B, and those of the others by about N. So the
    three terms of the KL are off by much, which cancels in their sum, and their gradients are biased.
    """
    return jnp.full((size, size), -log(num_examples * size))


def mmd(z: Array, p_z: Array, bandwidth: Array | float, mapped: Mapped = jax.vmap) -> Array:
    """An unbiased estimate of MMD^2 between the distributions of z and p_z, [N, L] each, from independent rows.

    The kernel is exp(-|a - b|^2 / (2 bandwidth L)), so that `bandwidth` 1 suits N(0, I) of any dimension. The sums
    leave out the pairs of a row with itself, so that the estimate may be below 0: Gretton et al. 2012, lemma 6. Raises
    ValueError for fewer than 2 rows.
    """
    num, size = z.shape
    if num < 2:
        raise ValueError(f"The MMD is of {num} examples; expected at least 2.")

    def mean_of(a: Array, b: Array) -> Array:
        def row(one: Array) -> Array:
            return jnp.mean(jnp.exp(-jnp.sum((one[None] - b) ** 2, -1) / (2 * bandwidth * size)))

        return jnp.mean(mapped(row)(a))

    def without_itself(a: Array) -> Array:
        return (num * mean_of(a, a) - 1) / (num - 1)

    return without_itself(z) + without_itself(p_z) - 2 * mean_of(z, p_z)


def dip(mean: Array, log_var: Array, off_diagonal: float, diagonal: float, kind: str) -> Array:
    """off_diagonal * sum_{i != j} C_ij^2 + diagonal * sum_i (C_ii - 1)^2, a number, for a covariance C over examples.

    kind: with 'i', C is the covariance of the posterior means; with 'ii', that of z itself, which adds the average
    variance of q(z | x). See Kumar et al. 2018 (arXiv:1711.00848), equations 6 and 7. mean, log_var: [N, L]. Raises
    ValueError for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"The DIP-VAE has no kind {kind!r}. Choose one of: {', '.join(KINDS)}.")
    centred = mean - jnp.mean(mean, 0, keepdims=True)
    covariance = jnp.einsum("ni,nj->ij", centred, centred, precision="highest") / len(mean)
    variance = jnp.diagonal(covariance)
    others = jnp.sum(covariance**2) - jnp.sum(variance**2)
    if kind == "ii":
        variance = variance + jnp.mean(jnp.exp(log_var), 0)
    return off_diagonal * others + diagonal * jnp.sum((variance - 1) ** 2)
