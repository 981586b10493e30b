"""Log densities, KL divergences and the distributions built from them, all in nats.

A function takes plain arrays; a distribution is a frozen pytree of arrays, whose last `event_dim` axes are one event.
"""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from inspect import signature
from math import gcd, log, pi, prod
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular

from vae_jax.core import reparameterize

T = TypeVar("T")


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), elementwise: as exact as `jax.nn.softplus`, and several times faster on CPU."""
    positive = x >= 0  # with abs(x) instead, the derivative at x = 0 would be 0, where it should be 1/2
    return jnp.where(positive, x, 0) + jnp.log1p(jnp.exp(jnp.where(positive, -x, x)))


def bernoulli_log_prob(x: Array, logits: Array) -> Array:
    """log Bernoulli(x | sigmoid(logits)), elementwise.

    For grey pixels, 0 < x < 1, this is minus the cross-entropy: it can be a loss, but it is not a log-likelihood.
    """
    return x * logits - softplus(logits)  # exact even at logits of +-1e4, since it takes no log of a probability


@jax.custom_jvp
def _sum_bernoulli_log_prob(x: Array, logits: Array) -> Array:
    """The sum of `bernoulli_log_prob` over the last axis, equally exact, with one logarithm for up to 16 elements.

    It uses log(1 + a) + log(1 + b) = log(1 + (a + b + ab)). On CPU, a logarithm takes as long as everything else.
    """
    size, group = logits.shape[-1], gcd(logits.shape[-1], 16)  # a product of 16 factors <= 2 cannot overflow
    odds = jnp.exp(-jnp.abs(logits)).reshape(*logits.shape[:-1], group, size // group)
    product = jax.lax.reduce(odds, jnp.zeros((), odds.dtype), lambda a, b: a + b + a * b, (odds.ndim - 2,))
    return jnp.sum(x * logits - jnp.maximum(logits, 0), -1) - jnp.sum(jnp.log1p(product), -1)


_sum_bernoulli_log_prob.defjvps(
    lambda dx, _, x, logits: jnp.sum(logits * dx, -1),
    lambda dlogits, _, x, logits: jnp.sum((x - jax.nn.sigmoid(logits)) * dlogits, -1),
)


def gaussian_log_prob(x: Array, mean: Array, log_var: Array) -> Array:
    """log N(x | mean, exp(log_var)), elementwise."""
    return -0.5 * (log(2 * pi) + log_var + (x - mean) ** 2 * jnp.exp(-log_var))


def full_gaussian_log_prob(x: Array, mean: Array, scale_tril: Array) -> Array:
    """log N(x | mean, T T') for a lower-triangular T. x, mean: [..., L]; scale_tril: [..., L, L]; result: [...]."""
    _check_same("values", x.shape[-1:], mean.shape[-1:])
    _check_square("scale_tril", scale_tril, mean)
    distance = jnp.sum(_solve(scale_tril, (x - expand_like(mean, x))[..., None]) ** 2, (-1, -2))
    return -0.5 * (x.shape[-1] * log(2 * pi) + distance) - expand_like(_half_log_det(scale_tril), distance)


def kl_standard_normal(mean: Array, log_var: Array) -> Array:
    """KL(N(mean, exp(log_var)) || N(0, I)), [..., L] -> [...]. See Kingma & Welling 2014, appendix B."""
    return 0.5 * jnp.sum(excess(log_var) + mean**2, -1)


def kl_diagonal_gaussians(mean_q: Array, log_var_q: Array, mean_p: Array, log_var_p: Array) -> Array:
    """KL(N(mean_q, exp(log_var_q)) || N(mean_p, exp(log_var_p))), [..., L] -> [...]."""
    return jnp.sum(_kl_gaussian(mean_q, log_var_q, mean_p, log_var_p), -1)


def kl_gaussians(mean_q: Array, cov_q: Array, mean_p: Array, cov_p: Array) -> Array:
    """KL(N(mean_q, cov_q) || N(mean_p, cov_p)) for full covariances. means: [..., L]; covs: [..., L, L] -> [...].

    The KL is (log |cov_p| - log |cov_q| - L + tr(cov_p^-1 cov_q) + d' cov_p^-1 d) / 2 with d = mean_p - mean_q. The
    ratio of determinants is |cov_p| / |cov_q|; it is often printed upside down.
    """
    _check_square("cov_q", cov_q, mean_q)
    _check_square("cov_p", cov_p, mean_p)
    return kl_gaussians_tril(mean_q, jnp.linalg.cholesky(cov_q), mean_p, jnp.linalg.cholesky(cov_p))


def kl_gaussians_tril(mean_q: Array, tril_q: Array, mean_p: Array, tril_p: Array) -> Array:
    """`kl_gaussians` from the lower Cholesky factors of the covariances."""
    _check_square("tril_q", tril_q, mean_q)
    _check_square("tril_p", tril_p, mean_p)
    _check_same("means", mean_q.shape[-1:], mean_p.shape[-1:])
    mean_p, tril_p = expand_like(mean_p, mean_q), expand_like(tril_p, tril_q)
    distance = jnp.sum(_solve(tril_p, (mean_p - mean_q)[..., None]) ** 2, (-1, -2))
    # On the diagonal, the trace and the determinants nearly cancel; `excess` keeps the digits of their difference.
    below = jnp.sum(jnp.tril(_solve(tril_p, tril_q), -1) ** 2, (-1, -2))
    log_q, log_p = (jnp.log(jnp.diagonal(tril, axis1=-2, axis2=-1)) for tril in (tril_q, tril_p))
    return 0.5 * (jnp.sum(excess(2 * (log_q - log_p)), -1) + below + distance)


def kl_monte_carlo(q: Any, p: Any, z: Any) -> Array:
    """log q(z) - log p(z), [...]: for z ~ q, an unbiased estimate of KL(q || p) for any pair of distributions.

    Raises ValueError if the two densities differ in shape, because then one of them does not sum over its event axes.
    """
    log_q, log_p = q.log_prob(z), p.log_prob(z)
    if jnp.shape(log_q) != jnp.shape(log_p):
        raise ValueError(
            f"log q(z | x) has shape {jnp.shape(log_q)} and log p(z) has shape {jnp.shape(log_p)}; expected one number "
            "per example in both. Set event_dim, or call to_event on a distribution of NumPyro."
        )
    return log_q - log_p


def kl_analytic(q: Any, p: Any, z: Any = None) -> Array:
    """KL(q || p), [...], in closed form; `z` is unused.

    Raises ValueError if there is none: q has no method kl(p), and q or p is not one of the two Gaussians.
    """
    if _brings_closed_form(q):
        return q.kl(p)
    if not has_closed_form(q, p):
        kinds = f"{type(q).__name__} and {type(p).__name__}"
        raise ValueError(f"The KL of {kinds} has no closed form here. Set kl='auto' or 'monte_carlo' for its estimate.")
    q_ndim, p_ndim = (getattr(d, "event_dim", 1) for d in (q, p))
    if q_ndim != p_ndim:
        raise ValueError(f"q(z | x) has event_dim {q_ndim} and p(z) has {p_ndim}; expected the same in both.")
    if isinstance(q, DiagonalGaussian) and isinstance(p, DiagonalGaussian):
        return sum_event(_kl_gaussian(q.mean, q.log_var, p.mean, p.log_var), q.event_dim)
    return kl_gaussians_tril(q.mean, q.scale_tril, p.mean, p.scale_tril)


def has_closed_form(q: Any, p: Any) -> bool:
    gaussian = isinstance(q, DiagonalGaussian | FullGaussian) and isinstance(p, DiagonalGaussian | FullGaussian)
    return gaussian or _brings_closed_form(q)


def _brings_closed_form(q: Any) -> bool:
    """Whether q has a method kl(p). A method kl(p, z) is an estimate at z, which may hold parts in closed form."""
    return hasattr(q, "kl") and len(signature(q.kl).parameters) == 1


def kl_divergence(q: Any, p: Any, z: Any) -> Array:
    """KL(q || p), [...]: in closed form, if there is one (`z` is then unused), otherwise an estimate at z ~ q.

    There is a closed form between Gaussians, and if q has a method kl(p). The estimate is `q.kl(p, z)` if q has such a
    method, as `hierarchies.Chain` does; otherwise it is `kl_monte_carlo`.
    """
    if has_closed_form(q, p):
        return kl_analytic(q, p)
    return q.kl(p, z) if hasattr(q, "kl") else kl_monte_carlo(q, p, z)


KL = {"auto": kl_divergence, "analytic": kl_analytic, "monte_carlo": kl_monte_carlo}  # the names that `kl` can take


def kl_by_dimension(q: Any, p: Any) -> Array:
    """KL(q || p) of each latent dimension, [..., L]. Raises ValueError unless q and p are diagonal Gaussians."""
    if not (isinstance(q, DiagonalGaussian) and isinstance(p, DiagonalGaussian)):
        kinds = f"{type(q).__name__} and {type(p).__name__}"
        raise ValueError(f"The KL of each dimension has a closed form for two DiagonalGaussian; got {kinds}.")
    return _kl_gaussian(q.mean, q.log_var, p.mean, p.log_var)


def kl_by_level(q: Any, p: Any, z: Any) -> dict[str, Array]:
    """The parts of KL(q || p) that q brings, [...] each, at z ~ q, as `hierarchies.Chain` does; empty without any."""
    return q.kl_by_level(p, z) if hasattr(q, "kl_by_level") else {}


def static(*, default: Any = MISSING) -> Any:
    """Declare a field of a distribution that is not an array. JAX treats its value as a constant."""
    return field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
def distribution(cls: type[T]) -> type[T]:
    """Class decorator: make the class a frozen dataclass of arrays that is also a pytree."""
    return jax.tree_util.register_dataclass(dataclass(frozen=True)(cls))


@distribution
class DiagonalGaussian:
    """N(mean, diag(exp(log_var)))."""

    mean: Array  # [..., *event]
    log_var: Array  # [..., *event]
    event_dim: int = static(default=1)

    @property
    def scale_tril(self) -> Array:
        scale = jnp.exp(0.5 * self.log_var)[..., None]
        return scale * expand_like(jnp.eye(scale.shape[-2], dtype=scale.dtype), scale)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        shape = sample_shape + self.mean.shape
        return reparameterize(key, jnp.broadcast_to(self.mean, shape), jnp.broadcast_to(self.log_var, shape))

    def log_prob(self, value: Array) -> Array:
        x, mean, log_var = _flat(self.event_dim, value, self.mean, self.log_var)
        return jnp.sum(gaussian_log_prob(x, mean, log_var), -1)


@distribution
class FullGaussian:
    """N(mean, scale_tril scale_tril')."""

    mean: Array  # [..., L]
    scale_tril: Array  # [..., L, L], lower triangular with a positive diagonal

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        eps = jax.random.normal(key, sample_shape + self.mean.shape, self.mean.dtype)
        return expand_like(self.mean, eps) + jnp.einsum("...ij,...j->...i", self.scale_tril, eps)

    def log_prob(self, value: Array) -> Array:
        return full_gaussian_log_prob(value, self.mean, self.scale_tril)


@distribution
class Bernoulli:
    """Bernoulli(sigmoid(logits)), independent over the event axes."""

    logits: Array  # [..., *event]
    event_dim: int = static(default=1)

    @property
    def mean(self) -> Array:
        return jax.nn.sigmoid(self.logits)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        shape = sample_shape + self.logits.shape
        return jax.random.bernoulli(key, jnp.broadcast_to(self.mean, shape)).astype(self.logits.dtype)

    def log_prob(self, value: Array) -> Array:
        x, logits = _flat(self.event_dim, value, self.logits)
        return _sum_bernoulli_log_prob(x, logits)


@distribution
class Delta:
    """All the mass at `mean`. Its log density counts as 0, so a VAE with it and beta = 0 is a plain autoencoder."""

    mean: Array  # [..., *event]
    event_dim: int = static(default=1)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        return jnp.broadcast_to(self.mean, sample_shape + self.mean.shape)

    def log_prob(self, value: Array) -> Array:
        return jnp.zeros(value.shape[: value.ndim - self.event_dim], value.dtype)


@distribution
class GaussianMixture:
    """sum_c w_c N_c with w = softmax(logits), for Gaussians N_c."""

    logits: Array  # [C]
    components: DiagonalGaussian | FullGaussian  # of batch shape [C]

    @property
    def mean(self) -> Array:
        return jnp.einsum("c,cl->l", jax.nn.softmax(self.logits), self.components.mean)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        which_key, z_key = jax.random.split(key)
        which = jax.random.categorical(which_key, self.logits, shape=sample_shape)
        return jax.tree.map(lambda a: a[which], self.components).sample(z_key)

    def log_prob(self, value: Array) -> Array:
        each = self.components.log_prob(value[..., None, :])
        return jax.nn.logsumexp(each + expand_like(jax.nn.log_softmax(self.logits), each), -1)


@distribution
class Flow:
    """The distribution of z = forward(u) for u ~ base, where `forward` and its inverse both take a single pass.

    `forward(params, context, u)` gives z, and `inverse(params, context, z)` gives u, [..., L], and log |det du / dz|,
    [...]. `mean` is `forward` of the base's mean: a representative point, not the expectation.
    """

    base: DiagonalGaussian  # with arrays [..., L]
    params: Any
    context: Array | None  # [..., C]
    forward: Callable[[Any, Array | None, Array], Array] = static()
    inverse: Callable[[Any, Array | None, Array], tuple[Array, Array]] = static()

    @property
    def mean(self) -> Array:
        return self.forward(self.params, self.context, self.base.mean)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.forward(self.params, self.context, self.base.sample(key, sample_shape))

    def log_prob(self, value: Array) -> Array:
        u, log_det = self.inverse(self.params, self.context, value)
        return self.base.log_prob(u) + log_det


@distribution
class Affine:
    """The distribution of x = shift + scale * u, elementwise, for u ~ base. Its log density holds -sum(log(scale)).

    The sum is over the elements of x that are not NaN, which is a missing value.
    """

    base: Any
    shift: Array  # [*event], the shape of one example
    scale: Array  # [*event], positive

    @property
    def mean(self) -> Array:
        return self._to_x(self.base.mean)

    def mixture_mean(self, w: Array) -> Array:
        return self._to_x(mixture_mean(self.base, w))

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        return self._to_x(self.base.sample(key, sample_shape))

    def log_prob(self, value: Array) -> Array:
        u = (value - expand_like(self.shift, value)) / expand_like(self.scale, value)
        log_scale = jnp.where(jnp.isnan(u), 0, expand_like(jnp.log(self.scale), u))
        return self.base.log_prob(u) - sum_event(log_scale, self.scale.ndim)

    def _to_x(self, u: Array) -> Array:
        return expand_like(self.shift, u) + expand_like(self.scale, u) * u


def mixture_mean(p: Any, w: Array) -> Array:
    """The mean of x over a mixture, [B, ...]: p holds the distributions of K samples, [K, B], and w their weights."""
    if hasattr(p, "mixture_mean"):
        return p.mixture_mean(w)
    return jnp.einsum("kb,kb...->b...", w, p.mean)


def expand_like(a: Array, b: Array) -> Array:
    """a with axes of size 1 in front, as many as b has more. JAX would add them silently, which hides mistakes."""
    return a if a.ndim >= b.ndim else a.reshape((1,) * (b.ndim - a.ndim) + a.shape)


def sum_event(a: Array, event_dim: int) -> Array:
    return jnp.sum(a, tuple(range(-event_dim, 0)))


def _flat(event_dim: int, value: Array, *parameters: Array) -> list[Array]:
    """All arguments with as many leading axes as `value` and a single event axis, because XLA:CPU sums it faster."""
    expanded = (value, *(expand_like(a, value) for a in parameters))
    return [a.reshape(*a.shape[: a.ndim - event_dim], prod(a.shape[a.ndim - event_dim :])) for a in expanded]


def _kl_gaussian(mean_q: Array, log_var_q: Array, mean_p: Array, log_var_p: Array) -> Array:
    """KL between Gaussians, elementwise."""
    _check_same("means", mean_q.shape[-1:], mean_p.shape[-1:])
    mean_p, log_var_p = expand_like(mean_p, mean_q), expand_like(log_var_p, mean_q)
    ratio = log_var_q - log_var_p
    return 0.5 * (excess(ratio) + (mean_q - mean_p) ** 2 * jnp.exp(-log_var_p))


def excess(log_ratio: Array) -> Array:
    """exp(r) - 1 - r, elementwise: what the log r of a ratio of variances adds to twice the KL."""
    return jnp.expm1(log_ratio) - log_ratio  # near r = 0, where a latent has collapsed, exp(r) - 1 would lose digits


def _solve(tril: Array, b: Array) -> Array:
    """tril^-1 b for tril: [..., L, L] and b: [..., L, M]."""
    batch = jnp.broadcast_shapes(tril.shape[:-2], b.shape[:-2])
    tril, b = (jnp.broadcast_to(a, batch + a.shape[-2:]) for a in (tril, b))
    return solve_triangular(tril, b, lower=True)


def _half_log_det(tril: Array) -> Array:
    """log |tril| = log |tril tril'| / 2, [..., L, L] -> [...]."""
    return jnp.sum(jnp.log(jnp.diagonal(tril, axis1=-2, axis2=-1)), -1)


def _check_square(name: str, matrix: Array, mean: Array) -> None:
    size = mean.shape[-1]
    if matrix.ndim < 2 or matrix.shape[-2:] != (size, size):
        raise ValueError(f"{name} has shape {matrix.shape}; expected [..., {size}, {size}] to match the mean.")


def _check_same(name: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    if a != b:
        raise ValueError(f"The last axes of the {name} have sizes {a} and {b}; expected equal sizes.")
