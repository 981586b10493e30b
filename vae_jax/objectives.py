"""What training minimises: pure functions of (params, key, x, vae), in nats per example."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax import checks
from vae_jax.core import VAE, Params
from vae_jax.distributions import KL, kl_analytic, kl_by_dimension, kl_divergence

Kl = str | Callable[..., Array]  # 'auto', 'analytic', 'monte_carlo', or a function (q, p, z) -> KL(q || p), [...]


class Elbo(NamedTuple):
    log_likelihood: Array  # [B], log p(x | z), the average over the posterior samples
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

    x: [B, ...]; terms: [B], in nats, each the average over `num_samples` samples of z. kl: 'auto', the closed form
    between Gaussians and else an estimate from the samples; 'analytic', the closed form or a ValueError; 'monte_carlo';
    or a function (q, p, z) -> [B]. Kingma & Welling 2014 (arXiv:1312.6114), equations 3 and 7.

    estimator: 'pathwise', or 'stl', sticking the landing (Roeder et al. 2017, arXiv:1703.09194): the same value, but
    the parameters of log q(z | x) get no gradient, only z does. Its variance vanishes where q is the posterior. It
    needs the 'monte_carlo' KL. ValueError for another estimator or combination, for bytes or no examples, and for a
    density or a KL that is not one number per example.
    """
    if estimator not in ("pathwise", "stl"):
        raise ValueError(f"The ELBO has no estimator {estimator!r}. Choose one of: pathwise, stl.")
    divergence = _kl(kl)
    if estimator == "stl" and divergence in (kl_divergence, kl_analytic):
        raise ValueError("The estimator 'stl' needs kl='monte_carlo': a closed form has no log q(z | x).")
    batch = checks.batch_shape(x)
    q, p = checks.posterior(vae, params, x), checks.prior(vae, params)
    z = q.sample(key, (_positive(num_samples),))
    if estimator == "stl":
        q = vae.encode(jax.lax.stop_gradient(params), x)

    def one(z: Any) -> Elbo:
        log_likelihood = checks.log_prob("log p(x | z)", vae.decode(params, z), x, batch)
        return Elbo(log_likelihood, checks.per_example("KL(q(z | x) || p(z))", divergence(q, p, z), batch))

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

    The metrics `elbo`, `log_likelihood` and `kl` are those of the bound itself, whatever the weights. `alpha` and
    `beta` may be traced. beta-VAE: Higgins et al. 2017, equation 4.

    free_bits: the KL of each latent dimension, averaged over the batch, counts as at least so many nats (Kingma et al.
    2016, arXiv:1606.04934, equation 15); for diagonal Gaussians in closed form, else ValueError. Such a loss is no
    average over examples: `split_loss` gives that of a whole split.
    """
    terms = elbo(params, key, x, vae, num_samples=num_samples, kl=kl, estimator=estimator)
    log_likelihood, divergence = (jnp.mean(term) for term in terms)
    metrics = {"elbo": log_likelihood - divergence, "log_likelihood": log_likelihood, "kl": divergence}
    if free_bits:
        if _kl(kl) not in (kl_divergence, kl_analytic):
            raise ValueError("free_bits needs the closed-form KL of each latent dimension: kl='auto' or 'analytic'.")
        each = kl_by_dimension(vae.encode(params, x), vae.prior(params))
        divergence = jnp.sum(jnp.maximum(jnp.mean(each, 0), free_bits))
    return beta * divergence - alpha * log_likelihood, metrics


def negative_iwae(
    params: Params, key: Array, x: Array, vae: VAE, *, num_samples: int, estimator: str = "pathwise"
) -> tuple[Array, dict[str, Array]]:
    """(loss, metrics): minus the importance-weighted bound log mean_k p(x, z_k) / q(z_k | x), averaged over the batch.

    Burda et al. 2016 (arXiv:1509.00519), equation 8. The metrics are those of the ELBO at the same samples.

    estimator: 'pathwise', or 'dreg', doubly reparameterised (Tucker et al. 2019, arXiv:1810.04152, equation 8): the
    same value; the gradient reaches q's parameters through z alone, weighted by the squared normalised weights. At
    K = 1 it is sticking the landing. ValueError for another one.
    """
    if estimator not in ("pathwise", "dreg"):
        raise ValueError(f"The importance-weighted bound has no estimator {estimator!r}. Choose: pathwise, dreg.")
    z = checks.posterior(vae, params, x).sample(key, (_positive(num_samples),))
    if estimator == "pathwise":
        log_likelihood, log_w = _log_weights(params, params, x, vae, z)
        bound = jnp.mean(importance_bound(log_w))
    else:
        fixed = jax.lax.stop_gradient((params, z))
        (log_likelihood, log_w), pull = jax.vjp(lambda p, z: _log_weights(p, fixed[0], x, vae, z), *fixed)
        w = jax.nn.softmax(log_w, 0)
        grad_params, grad_z = pull((jnp.zeros_like(w), w))
        grad_z = jax.tree.map(lambda g: g * w.reshape(*w.shape, *(1,) * (g.ndim - w.ndim)), grad_z)
        # A function of value 0 with the gradient wanted: linear in params and z.
        linear = _dot(grad_params, params) + _dot(grad_z, z)
        bound = jnp.mean(importance_bound(log_w)) + (linear - jax.lax.stop_gradient(linear)) / w.shape[1]
    metrics = {
        "elbo": jnp.mean(log_w),
        "log_likelihood": jnp.mean(log_likelihood),
        "kl": jnp.mean(log_likelihood - log_w),
    }
    return -bound, metrics


def log_weights(params: Params, key: Array, x: Array, vae: VAE, *, num_samples: int) -> Array:
    """log p(x, z_k) - log q(z_k | x) at z_1 .. z_K ~ q(z | x): [K, B], in nats."""
    z = checks.posterior(vae, params, x).sample(key, (_positive(num_samples),))
    return _log_weights(params, params, x, vae, z)[1]


def importance_bound(log_w: Array) -> Array:
    """log mean_k exp(log_w_k), [K, B] -> [B]: a lower bound of log p(x) that rises with K.

    Burda et al. 2016 (arXiv:1509.00519), equation 8.
    """
    return jax.nn.logsumexp(log_w, axis=0) - jnp.log(log_w.shape[0])


def _log_weights(params: Params, q_params: Params, x: Array, vae: VAE, z: Any) -> tuple[Array, Array]:
    """log p(x | z) and log p(x, z) - log q(z | x) at z [K, B, ...], q with parameters of its own: [K, B] each."""
    q, p, batch = vae.encode(q_params, x), checks.prior(vae, params), checks.batch_shape(x)

    def one(z):
        return log_weight(q, vae.decode(params, z), p, x, z, batch)

    return jax.vmap(one)(z)


def log_weight(q: Any, p_x: Any, p: Any, x: Any, z: Any, batch: tuple[int, ...]) -> tuple[Array, Array]:
    """log p(x | z) and log p(x, z) - log q(z | x), [B] each, at one z [B, ...]. ValueError for another shape."""
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
