"""What training minimises: pure functions of (params, key, x, vae), in nats an example."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.config import Config
from vae_jax.core import VAE, Params
from vae_jax.distributions import kl_by_dimension, kl_divergence, kl_monte_carlo
from vae_jax.errors import UserError


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
    kl: Callable[..., Array] = kl_divergence,
    estimator: str = "pathwise",
) -> Elbo:
    """The two terms of the evidence lower bound, log p(x | z) - KL(q(z | x) || p(z)) at z ~ q(z | x).

    x: [B, ...]; terms: [B], in nats, each the average over `num_samples` samples of z. `kl(q, p, z)`: `kl_divergence`
    (closed form between Gaussians) or `kl_monte_carlo`. Kingma & Welling 2014 (arXiv:1312.6114), equations 3 and 7.

    estimator: 'pathwise', or 'stl', sticking the landing (Roeder et al. 2017, arXiv:1703.09194): the same value, but
    the parameters of log q(z | x) get no gradient, only z does. Its variance vanishes where q is the posterior. It
    needs `kl_monte_carlo`. ValueError for another estimator or combination.
    """
    if estimator not in ("pathwise", "stl"):
        raise ValueError(f"The ELBO has no estimator {estimator!r}. Choose one of: pathwise, stl.")
    if estimator == "stl" and kl is not kl_monte_carlo:
        raise ValueError("The estimator 'stl' needs the Monte-Carlo KL: a closed form has no log q(z | x).")
    q, p = vae.encode(params, x), vae.prior(params)
    z = q.sample(key, (_positive(num_samples),))
    if estimator == "stl":
        q = vae.encode(jax.lax.stop_gradient(params), x)

    def one(z: Any) -> Elbo:
        return Elbo(vae.decode(params, z).log_prob(x), kl(q, p, z))

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
    kl: Callable[..., Array] = kl_divergence,
    estimator: str = "pathwise",
    free_bits: float = 0.0,
) -> tuple[Array, dict[str, Array]]:
    """(loss, metrics): the mean over the batch of -alpha * log p(x | z) + beta * KL, in nats an example.

    The metrics `elbo`, `log_likelihood` and `kl` are those of the bound itself, whatever the weights. `alpha` and
    `beta` may be traced. beta-VAE: Higgins et al. 2017, equation 4.

    free_bits: the KL of each latent dimension, averaged over the batch, costs at least so many nats (Kingma et al.
    2016, arXiv:1606.04934, equation 15); for diagonal Gaussians in closed form, else ValueError.
    """
    terms = elbo(params, key, x, vae, num_samples=num_samples, kl=kl, estimator=estimator)
    log_likelihood, divergence = (jnp.mean(term) for term in terms)
    metrics = {"elbo": log_likelihood - divergence, "log_likelihood": log_likelihood, "kl": divergence}
    if free_bits:
        if kl is not kl_divergence:
            raise ValueError("free_bits needs the closed-form KL of each latent dimension: kl_divergence.")
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
    z = vae.encode(params, x).sample(key, (_positive(num_samples),))
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
    z = vae.encode(params, x).sample(key, (_positive(num_samples),))
    return _log_weights(params, params, x, vae, z)[1]


def importance_bound(log_w: Array) -> Array:
    """log mean_k exp(log_w_k), [K, B] -> [B]: a lower bound of log p(x) that rises with K.

    Burda et al. 2016 (arXiv:1509.00519), equation 8.
    """
    return jax.nn.logsumexp(log_w, axis=0) - jnp.log(log_w.shape[0])


def build(config: Config) -> Callable[..., tuple[Array, dict[str, Array]]]:
    """The objective that `config` names: (params, key, x, vae) -> (loss, metrics). UserError for a contradiction."""
    if config.objective == "iwae":
        weights = {"alpha": 1.0, "beta": 1.0, "beta_warmup_steps": 0, "free_bits": 0.0, "kl": "analytic"}
        for name, neutral in weights.items():
            if getattr(config, name) != neutral:
                raise UserError(
                    f"{name} is {getattr(config, name)!r}, which objective 'iwae' has no place for. Leave it out."
                )
        if config.estimator == "stl":
            raise UserError("estimator 'stl' is biased for objective 'iwae'. Choose dreg, which is stl at K = 1.")
        return partial(negative_iwae, num_samples=config.num_samples, estimator=config.estimator)
    if config.estimator == "dreg":
        raise UserError("estimator 'dreg' is of objective 'iwae'. Choose stl for objective 'elbo'.")
    if config.kl == "analytic" and config.estimator == "stl":
        raise UserError("estimator 'stl' needs --config.kl=monte_carlo: a closed form has no log q(z | x).")
    if config.kl != "analytic" and config.free_bits:
        raise UserError("free_bits needs --config.kl=analytic: the KL of each latent dimension in closed form.")
    if config.free_bits and (config.hierarchy or (config.posterior, config.prior) != ("diagonal", "standard_normal")):
        raise UserError(
            f"free_bits is {config.free_bits}, which needs posterior=diagonal, prior=standard_normal and no hierarchy: "
            "the KL of each latent dimension in closed form. Set --config.free_bits=0."
        )
    return partial(
        negative_elbo,
        alpha=config.alpha,
        beta=config.beta,
        num_samples=config.num_samples,
        kl={"analytic": kl_divergence, "monte_carlo": kl_monte_carlo}[config.kl],
        estimator=config.estimator,
        free_bits=config.free_bits,
    )


def _log_weights(params: Params, q_params: Params, x: Array, vae: VAE, z: Any) -> tuple[Array, Array]:
    """log p(x | z) and log p(x, z) - log q(z | x) at z [K, B, ...], q with parameters of its own: [K, B] each."""
    q, p = vae.encode(q_params, x), vae.prior(params)

    def one(z):
        log_likelihood = vae.decode(params, z).log_prob(x)
        return log_likelihood, log_likelihood + p.log_prob(z) - q.log_prob(z)

    return jax.vmap(one)(z)


def _dot(a: Any, b: Any) -> Array:
    """The inner product of two pytrees."""
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda a, b: jnp.sum(a * b), a, b))


def _positive(num_samples: int) -> int:
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; expected at least 1.")
    return num_samples
