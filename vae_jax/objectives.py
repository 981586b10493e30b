"""What training minimises: pure functions of (params, key, x, vae), in nats an example."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.config import Config
from vae_jax.core import VAE, Params
from vae_jax.distributions import kl_divergence, kl_monte_carlo


class Elbo(NamedTuple):
    log_likelihood: Array  # [B], log p(x | z), the average over the posterior samples
    kl: Array  # [B], KL(q(z | x) || p(z))


def elbo(
    params: Params, key: Array, x: Array, vae: VAE, *, num_samples: int = 1, kl: Callable[..., Array] = kl_divergence
) -> Elbo:
    """The two terms of the evidence lower bound, log p(x | z) - KL(q(z | x) || p(z)) at z ~ q(z | x).

    x: [B, ...]; terms: [B], in nats, each the average over `num_samples` samples of z. `kl(q, p, z)`: `kl_divergence`
    (closed form between Gaussians) or `kl_monte_carlo`. Kingma & Welling 2014 (arXiv:1312.6114), equations 3 and 7.
    """
    q, p = vae.encode(params, x), vae.prior(params)
    z = q.sample(key, (_positive(num_samples),))
    terms = jax.vmap(lambda z: Elbo(vae.decode(params, z).log_prob(x), kl(q, p, z)))(z)
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
) -> tuple[Array, dict[str, Array]]:
    """(loss, metrics): the mean over the batch of -alpha * log p(x | z) + beta * KL, in nats an example.

    The metrics `elbo`, `log_likelihood` and `kl` are those of the bound itself, whatever the weights. `alpha` and
    `beta` may be traced. beta-VAE: Higgins et al. 2017, equation 4.
    """
    log_likelihood, divergence = (jnp.mean(term) for term in elbo(params, key, x, vae, num_samples=num_samples, kl=kl))
    metrics = {"elbo": log_likelihood - divergence, "log_likelihood": log_likelihood, "kl": divergence}
    return beta * divergence - alpha * log_likelihood, metrics


def log_weights(params: Params, key: Array, x: Array, vae: VAE, *, num_samples: int) -> Array:
    """log p(x, z_k) - log q(z_k | x) at z_1 .. z_K ~ q(z | x): [K, B], in nats."""
    q, p = vae.encode(params, x), vae.prior(params)
    z = q.sample(key, (_positive(num_samples),))
    return jax.vmap(lambda z: vae.decode(params, z).log_prob(x) + p.log_prob(z) - q.log_prob(z))(z)


def importance_bound(log_w: Array) -> Array:
    """log mean_k exp(log_w_k), [K, B] -> [B]: a lower bound of log p(x) that rises with K.

    Burda et al. 2016 (arXiv:1509.00519), equation 8.
    """
    return jax.nn.logsumexp(log_w, axis=0) - jnp.log(log_w.shape[0])


def build(config: Config) -> Callable[..., tuple[Array, dict[str, Array]]]:
    """The objective that `config` names: (params, key, x, vae) -> (loss, metrics)."""
    kl = {"analytic": kl_divergence, "monte_carlo": kl_monte_carlo}[config.kl]
    return partial(negative_elbo, alpha=config.alpha, beta=config.beta, num_samples=config.num_samples, kl=kl)


def _positive(num_samples: int) -> int:
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; expected at least 1.")
    return num_samples
