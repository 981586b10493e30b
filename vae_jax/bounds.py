"""More bounds of log p(x) from importance weights: pure functions of (params, key, x, vae), in nats per example.

They take log w_k = log p(x, z_k) - log q(z_k | x) at samples z_k ~ q(z | x). Like `objectives.negative_iwae`, each
returns (loss, metrics): the mean over the batch of minus its bound, and the ELBO and its terms at the same samples.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import exp, log

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.core import VAE, Params
from vae_jax.objectives import importance_bound, sampled_weights, weight_metrics, weights_at

Loss = tuple[Array, dict[str, Array]]

MAX_POINTS = 1000  # of the thermodynamic bound, whose weights are held for all points at once


def negative_miwae(params: Params, key: Array, x: Array, vae: VAE, *, num_groups: int, num_samples: int) -> Loss:
    """MIWAE(M, K): the average of M = `num_groups` importance bounds of K = `num_samples` weights each.

    Of M K weights, the encoder's gradient has a higher ratio of signal to noise than that of one bound of all of them.
    See Rainforth et al. 2018 (arXiv:1802.04537), section 5. M = 1 is the IWAE, and K = 1 the ELBO of M samples. The
    MIWAE of missing values is another one: it is the IWAE of p of the observed values.
    """
    log_likelihood, log_w, _ = sampled_weights(params, key, x, vae, num_samples=num_groups * num_samples)
    return -jnp.mean(grouped_bound(log_w, num_groups)), weight_metrics(log_likelihood, log_w)


def negative_piwae(params: Params, key: Array, x: Array, vae: VAE, *, num_groups: int, num_samples: int) -> Loss:
    """PIWAE(M, K): p's parameters get the gradient of IWAE of M K weights, and q's that of `negative_miwae`.

    See Rainforth et al. 2018 (arXiv:1802.04537), section 5. The loss has the value of the former. The parameters of q
    are those that `vae.encode` uses. A parameter that p uses too, as with a VampPrior, gets the sum of both gradients.
    """
    log_likelihood, log_w, z = sampled_weights(params, key, x, vae, num_samples=num_groups * num_samples)
    fixed = jax.lax.stop_gradient(params)
    of_p = importance_bound(weights_at(params, fixed, x, vae, jax.lax.stop_gradient(z))[1])
    of_q = grouped_bound(weights_at(fixed, params, x, vae, z)[1], num_groups)
    return -jnp.mean(of_p + of_q - jax.lax.stop_gradient(of_q)), weight_metrics(log_likelihood, log_w)


def negative_ciwae(params: Params, key: Array, x: Array, vae: VAE, *, elbo_weight: float, num_samples: int) -> Loss:
    """CIWAE: b ELBO + (1 - b) IWAE of K = `num_samples` weights, where b = `elbo_weight` and both share their samples.

    See Rainforth et al. 2018 (arXiv:1802.04537), section 5.
    """
    log_likelihood, log_w, _ = sampled_weights(params, key, x, vae, num_samples=num_samples)
    bound = elbo_weight * jnp.mean(log_w, 0) + (1 - elbo_weight) * importance_bound(log_w)
    return -jnp.mean(bound), weight_metrics(log_likelihood, log_w)


def negative_renyi(params: Params, key: Array, x: Array, vae: VAE, *, order: float, num_samples: int) -> Loss:
    """The variational Renyi bound of K = `num_samples` weights: see `renyi_bound`."""
    log_likelihood, log_w, _ = sampled_weights(params, key, x, vae, num_samples=num_samples)
    return -jnp.mean(renyi_bound(log_w, order)), weight_metrics(log_likelihood, log_w)


def negative_thermodynamic(
    params: Params,
    key: Array,
    x: Array,
    vae: VAE,
    *,
    num_points: int = 0,
    smallest: float = 0.0,
    points: Sequence[float] = (),
    num_samples: int,
    estimator: str = "pathwise",
) -> Loss:
    """The lower bound of the thermodynamic variational objective: see `thermodynamic_bound`.

    num_points, smallest, points: arguments of `partition`.

    estimator: 'pathwise' is the gradient of the bound as it is computed, through z. 'covariance' is that of Masrani et
    al. 2019 (arXiv:1907.00031), section 4, with z fixed: grad E_b[log w] = E_b[grad log w] + Cov_b[grad log(q w^b),
    log w], where E_b and Cov_b weigh the samples by w^b, and Cov_b holds the factor K / (K - 1), with which the
    gradient of the ELBO (b = 0) is unbiased. It needs no reparameterised q and K > 1. Raises ValueError for another
    estimator, for 'covariance' with one sample, and as `partition` does.
    """
    if estimator not in ("pathwise", "covariance"):
        raise ValueError(f"The thermodynamic bound has no estimator {estimator!r}. Choose: pathwise, covariance.")
    if estimator == "covariance" and num_samples < 2:
        raise ValueError(f"The estimator 'covariance' needs at least 2 samples; num_samples is {num_samples}.")
    where = partition(num_points, smallest, points)
    log_likelihood, log_w, z = sampled_weights(params, key, x, vae, num_samples=num_samples)
    bound, metrics = thermodynamic_bound(log_w, where), weight_metrics(log_likelihood, log_w)
    if estimator == "covariance":
        z = jax.lax.stop_gradient(z)
        linear = _covariance_gradient(
            weights_at(params, params, x, vae, z)[1], jax.vmap(vae.encode(params, x).log_prob)(z), where
        )
        bound = jax.lax.stop_gradient(bound) + linear - jax.lax.stop_gradient(linear)
    return -jnp.mean(bound), metrics


def grouped_bound(log_w: Array, num_groups: int) -> Array:
    """The average of the importance bounds of `num_groups` groups of weights, [M K, B] -> [B]."""
    return jnp.mean(jax.vmap(importance_bound)(log_w.reshape(num_groups, -1, *log_w.shape[1:])), 0)


def renyi_bound(log_w: Array, order: float) -> Array:
    """log(mean_k w_k^(1 - order)) / (1 - order), [K, B] -> [B]; at order 1 its limit, mean_k log w_k.

    See Li & Turner 2016 (arXiv:1602.02311), section 4. It falls with the order: 0 gives the importance bound, 1 the
    ELBO. On average it is a lower bound of log p(x) if the order is at least 0. A negative order gives no bound.
    """
    s = 1 - order
    if s == 0:
        return jnp.mean(log_w, 0)
    centre = jax.lax.stop_gradient(jnp.max(log_w, 0))
    scaled = s * (log_w - centre[None])
    # Near order 1, the log of a number near 1 would lose the digits that the division by s brings to the front.
    near = jnp.max(jnp.abs(scaled), 0) < 1
    small = jnp.log1p(jnp.mean(jnp.expm1(jnp.where(near[None], scaled, 0)), 0))
    return centre + jnp.where(near, small, importance_bound(scaled)) / s


def thermodynamic_bound(log_w: Array, points: Sequence[float]) -> Array:
    """The sum over points b of (the next point - b) times E_b[log w], [K, B] -> [B]; the last next point is 1.

    E_b is the average under q(z | x) w^b, normalised, estimated from the samples with weights w^b. The integral of
    E_b[log w] over [0, 1] is log p(x), and this is its left Riemann sum: see Masrani et al. 2019 (arXiv:1907.00031),
    section 3. One point, 0, gives the ELBO. With K samples the limit of many points is the importance bound, from
    below, so that it is a lower bound of log p(x) on average whatever K is.
    """
    starts, widths = _intervals(points, log_w)
    means = jnp.sum(jax.nn.softmax(starts * log_w[None], 1) * log_w[None], 1)
    return jnp.sum(widths[:, 0] * means, 0)


def partition(num_points: int = 0, smallest: float = 0.0, points: Sequence[float] = ()) -> tuple[float, ...]:
    """The points of `thermodynamic_bound`: `points` themselves, or 0 and log-uniform points from `smallest` to 1.

    Of `num_points` points, the first is 0, and 1 is not counted. Raises ValueError if both ways are given or neither,
    and unless the points rise from 0 and stay below 1.
    """
    if bool(num_points) == bool(points) or (points and smallest):
        raise ValueError(
            f"num_points is {num_points}, smallest is {smallest} and points is {list(points)}; expected either "
            "num_points and smallest, such as 5 and 0.05, or points, such as [0, 0.1, 0.3]."
        )
    if max(num_points, len(points)) > MAX_POINTS:
        raise ValueError(f"There are {max(num_points, len(points))} points; expected at most {MAX_POINTS}.")
    if num_points and not (0 < smallest < 1 if num_points > 1 else num_points == 1 and smallest == 0):
        raise ValueError(
            f"num_points is {num_points} and smallest is {smallest}; expected smallest between 0 and 1 with 2 points "
            "or more, and none with 1 point."
        )
    if num_points:
        step = log(smallest) / (num_points - 1) if num_points > 1 else 0.0
        points = [0.0, *(exp(step * i) for i in range(num_points - 1, 0, -1))]
    found = tuple(float(point) for point in points)
    if found[0] != 0 or found[-1] >= 1 or any(a >= b for a, b in pairwise(found)):
        raise ValueError(f"points is {list(points)}; expected numbers that rise from 0 and stay below 1.")
    return found


def _covariance_gradient(log_w: Array, log_q: Array, points: Sequence[float]) -> Array:
    """A function whose gradient is the covariance estimator of that of `thermodynamic_bound`, [K, B] -> [B].

    log_w and log_q are functions of the parameters at fixed z.
    """
    starts, widths = _intervals(points, log_w)
    value = jax.lax.stop_gradient(log_w)[None]
    w = jax.nn.softmax(starts * value, 1)
    centred = w * (value - jnp.sum(w * value, 1, keepdims=True)) * len(log_w) / (len(log_w) - 1)
    terms = w * log_w[None] + centred * (log_q[None] + starts * log_w[None])
    return jnp.sum(widths[:, 0] * jnp.sum(terms, 1), 0)


def _intervals(points: Sequence[float], log_w: Array) -> tuple[Array, Array]:
    """The points and their distances to the next one, [P, 1, 1] each."""
    starts = jnp.asarray(points, log_w.dtype)[:, None, None]
    return starts, jnp.diff(starts, axis=0, append=1)
