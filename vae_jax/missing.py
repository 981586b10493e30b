"""Values that were not observed, NaN in x: p of the observed values alone, which is the marginal of p(x | z)."""

from dataclasses import is_dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.core import Likelihood
from vae_jax.distributions import distribution, mixture_mean, static, sum_event

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

    def mixture_mean(self, w: Array) -> Array:
        return mixture_mean(self.base, w)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.base.sample(key, sample_shape)

    def log_prob(self, value: Array) -> Array:
        missing = jnp.isnan(value)
        each = self.base.log_prob(jnp.where(missing, _FILL, value))
        return sum_event(jnp.where(missing, 0, each), self.event_dim)


def observed(likelihood: Likelihood, shape: tuple[int, ...]) -> Likelihood:
    """The likelihood of the elements of x that are not NaN, for examples x of `shape`.

    The encoder sees 0 for a missing element, which is the mean of standardised data. The first parameters are about
    those of the observed values. Raises ValueError if p(x | z) does not give the density of each element.
    """
    if not likelihood.independent:
        raise ValueError("its elements depend on one another given z, so none of them may be missing")

    def build(params: Any, outputs: Array) -> Observed:
        p = likelihood.build(params, outputs)
        if not (is_dataclass(p) and hasattr(p, "event_dim")):
            raise ValueError(f"missing values need a distribution with a field event_dim; got a {type(p).__name__}.")
        return Observed(replace(p, event_dim=0), len(shape))

    def features(x: Array) -> Array:
        missing = jnp.isnan(x)
        seen = likelihood.features(jnp.where(missing, _FILL, x))
        return jnp.where(missing.reshape(*x.shape, *(1,) * (seen.ndim - x.ndim)), 0, seen)

    return likelihood._replace(
        build=build,
        init=lambda x: likelihood.init(_filled(x)),
        average=lambda x: likelihood.average(_filled(x)),
        features=features,
    )


def _filled(x: Array) -> Array:
    """x [N, *shape] where NaN is replaced by the value before it in the same column, and at its begin by the last one.

    So that an average is about that of the observed values, a variance too, and every value is in the support.
    """
    seen = ~jnp.isnan(x)
    row = jnp.where(seen, jnp.arange(len(x)).reshape(-1, *(1,) * (x.ndim - 1)), -1)
    before = jax.lax.cummax(row)
    before = jnp.where(before < 0, row.max(0, keepdims=True), before)
    return jnp.where(before < 0, _FILL, jnp.take_along_axis(x, jnp.maximum(before, 0), 0))
