"""Values that were not observed, NaN in x: p of the observed values alone, which is the marginal of p(x | z)."""

from dataclasses import is_dataclass, replace
from typing import Any

import jax.numpy as jnp
from jax import Array

from vae_jax.core import Likelihood
from vae_jax.distributions import distribution, static, sum_event

_FILL = 1.0  # in the support of every likelihood, so that no gradient of an element that is not counted is NaN


@distribution
class Observed:
    """`base`, one element of x at a time. The elements of a value that are NaN integrate to 1.

    Mattei & Frellsen 2019 (arXiv:1812.02633), section 2. The mean and the samples are of all elements.
    """

    base: Any  # with event_dim 0
    event_dim: int = static(default=1)

    @property
    def mean(self) -> Array:
        return self.base.mean

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.base.sample(key, sample_shape)

    def log_prob(self, value: Array) -> Array:
        missing = jnp.isnan(value)
        each = self.base.log_prob(jnp.where(missing, _FILL, value))
        return sum_event(jnp.where(missing, 0, each), self.event_dim)


def observed(likelihood: Likelihood, shape: tuple[int, ...]) -> Likelihood:
    """The likelihood of the elements of x that are not NaN, for examples x of `shape`.

    The encoder sees 0 for a missing element, which is the mean of standardised data. The decoder's last bias begins at
    the mean of the observed values. Raises ValueError if p(x | z) does not give the density of each element.
    """
    if not likelihood.independent:
        raise ValueError("its elements depend on one another given z, so none of them may be missing")

    def build(params: Any, outputs: Array) -> Observed:
        p = likelihood.build(params, outputs)
        if not (is_dataclass(p) and hasattr(p, "event_dim")):
            raise ValueError(f"missing values need a distribution with a field event_dim; got a {type(p).__name__}.")
        return Observed(replace(p, event_dim=0), len(shape))

    return likelihood._replace(
        build=build,
        init=lambda x: likelihood.init(_filled(x)),
        average=lambda x: likelihood.average(_filled(x)),
        features=lambda x: jnp.where(jnp.isnan(x), 0, likelihood.features(jnp.where(jnp.isnan(x), _FILL, x))),
    )


def _filled(x: Array) -> Array:
    """x [N, *shape] with the mean of the observed values of an element where it is NaN."""
    missing = jnp.isnan(x)
    mean = jnp.sum(jnp.where(missing, 0, x), 0) / jnp.maximum(jnp.sum(~missing, 0), 1).astype(x.dtype)
    mean = jnp.where(jnp.all(missing, 0), _FILL, mean)
    return jnp.where(missing, mean[None], x)
