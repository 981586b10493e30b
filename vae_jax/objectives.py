"""The losses that training minimises: pure functions of (params, key, x, vae), in nats per example."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax import checks
from vae_jax.core import VAE, Params
from vae_jax.distributions import KL, kl_analytic, kl_by_dimension, kl_by_level, kl_divergence

Kl = str | Callable[..., Array]  # 'auto', 'analytic', 'monte_carlo', or a function (q, p, z) -> KL(q || p), [...]


class Elbo(NamedTuple):
    log_likelihood: Array  # [B], log p(x | z), averaged over the posterior samples
    kl: Array  # [B], KL(q(z | x) || p(z))


def elbo(
    params: Params,
    key: Array,
    x: Array,
    vae: VAE,
    *,
    num_samples: int = 1,
    kl: Kl = "auto",
    estimator: str = "pathwise",
) -> Elbo:
    """The two terms of the evidence lower bound, log p(x | z) - KL(q(z | x) || p(z)) at z ~ q(z | x).

    x: [B, ...]; terms: [B], in nats, each averaged over `num_samples` samples of z. kl: 'auto' uses the closed form
    between Gaussians and otherwise an estimate from the samples; 'analytic' uses the closed form or raises ValueError;
    'monte_carlo' always estimates; it may also be a function (q, p, z) -> [B]. See Kingma & Welling 2014
    (arXiv:1312.6114), equations 3 and 7.

    estimator: 'pathwise' is the usual gradient. 'stl', sticking the landing (Roeder et al. 2017, arXiv:1703.09194), has
    the same value, but q's parameters get a gradient through z only, not through log q(z | x). The gradient's variance
    vanishes where q is the true posterior. 'stl' needs kl='monte_carlo'. Raises ValueError for another estimator or
    combination, if x is empty or holds bytes, and if a density or the KL is not one number per example.
    """
    return _terms(params, key, x, vae, num_samples, kl, estimator)[0]


def _terms(
    params: Params, key: Array, x: Array, vae: VAE, num_samples: int, kl: Kl, estimator: str
) -> tuple[Elbo, dict[str, Array]]:
    """The terms of `elbo`, and the KL of each level of a hierarchy that has them, [B], if kl is 'auto'."""
    if estimator not in ("pathwise", "stl"):
        raise ValueError(f"The ELBO has no estimator {estimator!r}. Choose one of: pathwise, stl.")
    divergence = _kl(kl)
    if estimator == "stl" and divergence in (kl_divergence, kl_analytic):
        raise ValueError("The estimator 'stl' needs kl='monte_carlo': a closed form does not compute log q(z | x).")
    batch = checks.batch_shape(x)
    q, p = checks.posterior(vae, params, x), checks.prior(vae, params)
    z = q.sample(key, (_positive(num_samples),))
    if estimator == "stl":
        q = vae.encode(jax.lax.stop_gradient(params), x)

    def one(z: Any) -> tuple[Elbo, dict[str, Array]]:
        log_likelihood = checks.log_prob("log p(x | z)", vae.decode(params, z), x, batch)
        by_level = kl_by_level(q, p, z) if divergence is kl_divergence else {}
        return Elbo(log_likelihood, checks.per_example("KL(q(z | x) || p(z))", divergence(q, p, z), batch)), by_level

    if num_samples == 1:  # without an axis for the samples, convolutions take half the time on CPU
        return one(jax.tree.map(lambda a: a[0], z))
    terms = jax.vmap(one)(z)
    return jax.tree.map(lambda term: jnp.mean(term, 0), terms)


def negative_elbo(
    params: Params,
    key: Array,
    x: Array,
    vae: VAE,
    *,
    alpha: Any = 1.0,
    beta: Any = 1.0,
    num_samples: int = 1,
    kl: Kl = "auto",
    estimator: str = "pathwise",
    free_bits: float = 0.0,
) -> tuple[Array, dict[str, Array]]:
    """(loss, metrics): the mean over the batch of -alpha * log p(x | z) + beta * KL, in nats per example.

    The metrics `elbo`, `log_likelihood` and `kl` do not depend on alpha, beta or free_bits. `alpha` and `beta` may be
    traced. For the beta-VAE see Higgins et al. 2017, equation 4.

    Of a hierarchy whose q and p have their latents in the same order, the metrics also hold the KL of each level.

    free_bits: the KL of each latent dimension, or of each level of a hierarchy, averaged over the batch, counts as at
    least this many nats (Kingma et al. 2016, arXiv:1606.04934, equation 15). It needs the closed form between diagonal
    Gaussians, or such levels, and raises ValueError without it. Such a loss is not an average over examples:
    `build.split_loss` computes the loss of a whole split.
    """
    terms, by_level = _terms(params, key, x, vae, num_samples, kl, estimator)
    log_likelihood, divergence = (jnp.mean(term) for term in terms)
    metrics = {"elbo": log_likelihood - divergence, "log_likelihood": log_likelihood, "kl": divergence}
    levels = {f"kl_{name}": jnp.mean(term) for name, term in by_level.items()}
    if free_bits:
        if _kl(kl) not in (kl_divergence, kl_analytic):
            raise ValueError("free_bits needs the closed-form KL of each latent dimension: kl='auto' or 'analytic'.")
        if levels:
            each = jnp.stack([*levels.values()])
        else:
            each = jnp.mean(kl_by_dimension(vae.encode(params, x), vae.prior(params)), 0)
        divergence = jnp.sum(jnp.maximum(each, free_bits))
    metrics |= levels
    return beta * divergence - alpha * log_likelihood, metrics


def negative_iwae(
    params: Params, key: Array, x: Array, vae: VAE, *, num_samples: int, estimator: str = "pathwise"
) -> tuple[Array, dict[str, Array]]:
    """(loss, metrics): minus the importance-weighted bound log mean_k p(x, z_k) / q(z_k | x), averaged over the batch.

    See Burda et al. 2016 (arXiv:1509.00519), equation 8. The metrics are the ELBO and its terms at the same samples.

    estimator: 'pathwise' is the usual gradient. 'dreg', doubly reparameterised (Tucker et al. 2019, arXiv:1810.04152,
    equation 8), has the same value, but q's parameters get a gradient through z only, weighted by the squares of the
    normalised weights. At K = 1 it is sticking the landing. Raises ValueError for another estimator.
    """
    if estimator not in ("pathwise", "dreg"):
        raise ValueError(f"The importance-weighted bound has no estimator {estimator!r}. Choose: pathwise, dreg.")
    if estimator == "pathwise":
        log_likelihood, log_w, _ = sampled_weights(params, key, x, vae, num_samples=num_samples)
        bound = jnp.mean(importance_bound(log_w))
    else:
        z = checks.posterior(vae, params, x).sample(key, (_positive(num_samples),))
        fixed = jax.lax.stop_gradient((params, z))
        (log_likelihood, log_w), pull = jax.vjp(lambda p, z: weights_at(p, fixed[0], x, vae, z), *fixed)
        w = jax.nn.softmax(log_w, 0)
        grad_params, grad_z = pull((jnp.zeros_like(w), w))
        grad_z = jax.tree.map(lambda g: g * w.reshape(*w.shape, *(1,) * (g.ndim - w.ndim)), grad_z)
        # `linear`, minus its own value, adds 0 to the bound and the wanted gradient to its gradient.
        linear = _dot(grad_params, params) + _dot(grad_z, z)
        bound = jnp.mean(importance_bound(log_w)) + (linear - jax.lax.stop_gradient(linear)) / w.shape[1]
    return -bound, weight_metrics(log_likelihood, log_w)


def weight_metrics(log_likelihood: Array, log_w: Array) -> dict[str, Array]:
    """The ELBO and its terms, averaged over samples and examples, of log p(x | z) and log w, [K, B] each."""
    return {
        "elbo": jnp.mean(log_w),
        "log_likelihood": jnp.mean(log_likelihood),
        "kl": jnp.mean(log_likelihood - log_w),
    }


def log_weights(params: Params, key: Array, x: Array, vae: VAE, *, num_samples: int) -> Array:
    """log p(x, z_k) - log q(z_k | x) at z_1 .. z_K ~ q(z | x): [K, B], in nats."""
    return sampled_weights(params, key, x, vae, num_samples=num_samples)[1]


def weighted_latents(params: Params, key: Array, x: Array, vae: VAE, *, num_samples: int) -> tuple[Any, Array]:
    """z_1 .. z_K ~ q(z | x), [K, B, ...], and their `log_weights`, [K, B]."""
    _, log_w, z = sampled_weights(params, key, x, vae, num_samples=num_samples)
    return z, log_w


def sampled_weights(params: Params, key: Array, x: Array, vae: VAE, *, num_samples: int) -> tuple[Array, Array, Any]:
    """log p(x | z_k), the `log_weights`, [K, B] each, and z_1 .. z_K ~ q(z | x), [K, B, ...]."""
    z = checks.posterior(vae, params, x).sample(key, (_positive(num_samples),))
    return *weights_at(params, params, x, vae, z), z


def importance_bound(log_w: Array) -> Array:
    """log mean_k exp(log_w_k), [K, B] -> [B]: on average a lower bound of log p(x) that rises with K.

    See Burda et al. 2016 (arXiv:1509.00519), equation 8.
    """
    return jax.nn.logsumexp(log_w, axis=0) - jnp.log(log_w.shape[0])


def weights_at(params: Params, q_params: Params, x: Array, vae: VAE, z: Any) -> tuple[Array, Array]:
    """log p(x | z) and log p(x, z) - log q(z | x), [K, B] each, at z [K, B, ...]. q_params: the parameters of q."""
    q, p, batch = vae.encode(q_params, x), checks.prior(vae, params), checks.batch_shape(x)

    def one(z):
        return log_weight(q, vae.decode(params, z), p, x, z, batch)

    return jax.vmap(one)(z)


def log_weight(q: Any, p_x: Any, p: Any, x: Any, z: Any, batch: tuple[int, ...]) -> tuple[Array, Array]:
    """log p(x | z) and log p(x, z) - log q(z | x), [B] each, at one z [B, ...].

    q, p_x and p are q(z | x), p(x | z) and p(z). Raises ValueError if one of their densities is not of shape `batch`.
    """
    log_likelihood = checks.log_prob("log p(x | z)", p_x, x, batch)
    log_p, log_q = checks.log_prob("log p(z)", p, z, batch), checks.log_prob("log q(z | x)", q, z, batch)
    return log_likelihood, log_likelihood + log_p - log_q


def _dot(a: Any, b: Any) -> Array:
    """The inner product of two pytrees."""
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda a, b: jnp.sum(a * b), a, b))


def _kl(kl: Kl) -> Callable[..., Array]:
    if isinstance(kl, str) and kl not in KL:
        raise ValueError(f"Unknown kl {kl!r}. Choose one of: {', '.join(KL)}; or give a function (q, p, z).")
    return KL[kl] if isinstance(kl, str) else kl


def _positive(num_samples: int) -> int:
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; expected at least 1.")
    return num_samples
