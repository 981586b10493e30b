"""Discrete latents: what their codes are, the distributions over them, and the VAE whose latents are always codes."""

from collections import Counter
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax.core import VAE
from vae_jax.distributions import distribution, expand_like, static

EPS = 1e-3  # how far the bound of `quantize` stays from the outermost levels, relative to their distance
MAX_LEVELS = 1000  # with more levels, the bound would not reach the outermost ones
MAX_CODES = 2**31 - 1  # of a group: an int32 counts them


class Codes(NamedTuple):
    """What the values of a discrete latent z, [L], are: V variables, each of which takes one of finitely many values.

    A variable is either one number of z, with the values (d - n // 2) / (n // 2) in [-1, 1] for d = 0 .. n - 1, or a
    one-hot vector of n numbers of z. Here d is its digit. `group` variables in a row make one code, whose number is
    sum_i d_i * (the product of the sizes before i), in 0 .. `num_codes` - 1. So z holds G = V / group codes.
    """

    sizes: tuple[int, ...]  # [V], the number of values n of each variable
    one_hot: bool
    group: int = 1

    @property
    def latent_dim(self) -> int:
        return sum(self.sizes) if self.one_hot else len(self.sizes)

    @property
    def num_codes(self) -> int:
        """The number of codes of one group. All groups have the same sizes."""
        return prod(self.sizes[: self.group])

    @property
    def num_groups(self) -> int:
        return len(self.sizes) // self.group

    @property
    def num_joint(self) -> int:
        """The number of values of z."""
        return prod(self.sizes)

    def digits(self, z: Array) -> Array:
        """The digits of the nearest value, [..., L] -> [..., V], int32. Of a relaxed vector, the largest number."""
        if self.one_hot:
            return jnp.argmax(split(z, len(self.sizes)), -1).astype(jnp.int32)
        half = _array(self._half, z)
        digits = jnp.round(z * half + half).astype(jnp.int32)
        return jnp.clip(digits, 0, expand_like(jnp.array(self.sizes, jnp.int32) - 1, digits))

    def values(self, digits: Array, dtype: Any = jnp.float32) -> Array:
        """The z of these digits, [..., V] -> [..., L]."""
        if self.one_hot:
            return join(jax.nn.one_hot(digits, self.sizes[0], dtype=dtype))
        return digits.astype(dtype) / _array(self._half, digits, dtype) - 1

    def indices(self, z: Array) -> Array:
        """The numbers of the codes of z, [..., L] -> [..., G], int32."""
        digits = split(self.digits(z), self.num_groups)
        return jnp.sum(digits * _array(_basis(self.sizes[: self.group]), digits), -1, dtype=jnp.int32)

    def of_indices(self, index: Array, dtype: Any = jnp.float32) -> Array:
        """The inverse of `indices`: the z of these codes, [..., G] -> [..., L]."""
        return self.values(self.digits_of(index), dtype)

    def digits_of(self, index: Array) -> Array:
        """The digits of the codes with these numbers, [..., G] -> [..., V]."""
        sizes = self.sizes[: self.group]
        return join(index[..., None] // _array(_basis(sizes), index[..., None]) % _array(sizes, index[..., None]))

    def joint(self, index: Array, dtype: Any = jnp.float32) -> Array:
        """The values of z by their numbers in 0 .. num_joint - 1, [...] -> [..., L], each of them once.

        Raises ValueError if there are more than an int32 counts.
        """
        if self.num_joint > MAX_CODES:
            raise ValueError(f"There are {self.num_joint} joint codes; expected at most {MAX_CODES} to number them.")
        return self._replace(group=len(self.sizes)).of_indices(index[..., None], dtype)

    def quantize(self, outputs: Array) -> Array:
        """Finite scalar quantisation: outputs [..., L], any numbers -> z [..., L], whose gradient is straight through.

        A number is bounded by tanh, shifted so that 0 stays about 0, and rounded to one of n values. The gradient is
        that of the bounded number. See Mentzer et al. 2023 (arXiv:2309.15505), appendix A.1.
        """
        n = np.array(self.sizes)
        half_range, offset = (n - 1) * (1 - EPS) / 2, np.where(n % 2 == 1, 0, 0.5)
        shift = _array(np.tan(offset / half_range), outputs)
        bounded = jnp.tanh(outputs + shift) * _array(half_range, outputs) - _array(offset, outputs)
        return straight_through(jnp.round(bounded), bounded) / _array(self._half, outputs)

    def log_probs(self, logits: Array) -> Array:
        """The log probability of each digit, [..., sum(sizes)] -> [..., V, N]; -inf from a variable's own size on."""
        if self.one_hot:
            return jax.nn.log_softmax(split(logits, len(self.sizes)), -1)
        digit, size = np.arange(max(self.sizes)), np.array(self.sizes)[:, None]
        present = digit < size
        where = np.where(present, np.cumsum((0, *self.sizes[:-1]))[:, None] + digit, 0)
        shown = jnp.where(expand_like(jnp.asarray(present), logits[..., None]), logits[..., where], -jnp.inf)
        return jax.nn.log_softmax(shown, -1)

    @property
    def _half(self) -> np.ndarray:
        return np.array(self.sizes) // 2


jax.tree_util.register_static(Codes)  # a constant, as a part of a distribution


@distribution
class Categoricals:
    """Independent variables of `codes`, each with its softmax probabilities: a posterior or a prior of codes.

    `log_prob` and `kl` are those of the discrete distribution. Samples are codes if the temperature is 0. Otherwise
    they are the relaxed ones of Gumbel-softmax, for one-hot vectors alone: softmax((logits + g) / temperature) with
    Gumbel noise g (Jang et al. 2017, arXiv:1611.01144, equation 2; Maddison et al. 2017, arXiv:1611.00712). With
    `straight_through` they are the codes argmax(logits + g), with the gradient of the relaxed samples (Jang et al.,
    section 2.2).

    A relaxed sample is not a code and has no probability, so that `log_prob` raises ValueError. `kl` is that of the
    codes: a training objective, with which the ELBO at relaxed samples is not a bound. `discrete` gives the bound.

    `mean` is the most probable code, a representative point, because E[z] is not a code. Of relaxed samples it is the
    E[z] of the codes.
    """

    logits: Array  # [..., sum(sizes)], the values of one variable after those of the other
    codes: Any  # Codes, or codebooks.VectorCodes
    temperature: float = static(default=0.0)
    straight_through: bool = static(default=False)

    @property
    def mean(self) -> Array:
        log_probs = self.codes.log_probs(self.logits)
        if self._is_relaxed:
            return join(jnp.exp(log_probs))
        return self.codes.values(jnp.argmax(log_probs, -1), self.logits.dtype)

    @property
    def _is_relaxed(self) -> bool:
        return self.temperature > 0 and not self.straight_through

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        log_probs = self.codes.log_probs(self.logits)
        noise = jax.random.gumbel(key, sample_shape + log_probs.shape, log_probs.dtype)
        perturbed = expand_like(log_probs, noise) + noise
        z = self.codes.values(jnp.argmax(perturbed, -1), perturbed.dtype)
        if self.temperature == 0:
            return z
        relaxed = join(jax.nn.softmax(perturbed / self.temperature, -1))
        return straight_through(z, relaxed) if self.straight_through else relaxed

    def log_prob(self, value: Array) -> Array:
        """value: codes. Of one-hot vectors, a gradient with regard to them is that of the sum of their log p."""
        if self._is_relaxed:
            raise ValueError(
                "Relaxed samples of a categorical posterior are not codes and have no log q(z | x). Set "
                "straight_through=True, or use the KL in closed form and codes.discrete(vae)."
            )
        if self.codes.one_hot:
            each = split(value, len(self.codes.sizes))
            return jnp.sum(each * expand_like(self.codes.log_probs(self.logits), each), (-1, -2))
        return self.log_prob_of(self.codes.digits(value))

    def log_prob_of(self, digits: Array) -> Array:
        """The log probability of these digits, [..., V] -> [...]."""
        log_probs, digits = self.codes.log_probs(self.logits), digits[..., None]
        log_probs = jnp.broadcast_to(expand_like(log_probs, digits), (*digits.shape[:-1], log_probs.shape[-1]))
        return jnp.sum(jnp.take_along_axis(log_probs, digits, -1)[..., 0], -1)

    def kl(self, p: "Categoricals") -> Array:
        """KL(q || p), [...], exact: the sum over the values of each variable. Raises ValueError for another p."""
        check_codes(self.codes, p)
        log_q = self.codes.log_probs(self.logits)
        log_p = expand_like(self.codes.log_probs(p.logits), log_q)
        absent = jnp.isneginf(log_q)  # q is 0 there: the ratio is replaced, so that no gradient is NaN
        log_ratio = jnp.where(absent, 0, log_q) - jnp.where(absent, 0, log_p)
        return jnp.sum(jnp.exp(log_q) * log_ratio, (-1, -2))

    def discrete(self) -> "Categoricals":
        return replace(self, temperature=0.0, straight_through=False)


@distribution
class PointCode:
    """All the mass at one code. Its log probability is 0 there, so that KL(q || p) is -log p(code)."""

    mean: Array  # [..., L], a value of z of `codes`
    codes: Codes

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        return jnp.broadcast_to(self.mean, sample_shape + self.mean.shape)

    def log_prob(self, value: Array) -> Array:
        own, other = (self.codes.digits(a) for a in (self.mean, value))
        same = jnp.all(expand_like(own, other) == other, -1)
        return jnp.where(same, 0, -jnp.inf).astype(value.dtype)

    def kl(self, p: Categoricals) -> Array:
        """-log p(code), [...], exact. Its gradient reaches p alone. Raises ValueError for another p."""
        check_codes(self.codes, p)
        return -p.log_prob(self.mean)


def discrete(vae: VAE) -> VAE:
    """The VAE whose posterior gives codes, where that of `vae` gives relaxed ones for training; else the same VAE.

    A posterior says how by its method `discrete()`. All figures, samples and views of a trained VAE are of this one.
    """

    def encode(params: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        q = vae.encode(params, x, *args, **kwargs)
        return q.discrete() if hasattr(q, "discrete") else q

    return vae._replace(encode=encode)


def usage(codes: Codes, z: Any) -> dict[str, Any]:
    """How much of the codes the examples z, [N, L], use.

    codes_used, codes_never_used: how many codes occur and do not occur, over all groups. code_perplexity: exp(entropy)
    of the frequencies of a group's codes, in 1 .. num_codes, averaged over the groups. `_by_group`: of each group.

    z holds the most probable codes. How surely x decides them is another question, which the KL and the mutual
    information answer: a posterior that has nearly collapsed may still use every code.
    """
    z = np.asarray(z) + 0.0  # of -0 and 0, which are equal, it makes the same bytes
    used, perplexity = [], []
    for group in np.split(z, codes.num_groups, -1):
        counts = np.array([*Counter(row.tobytes() for row in group).values()])
        share = counts / len(group)
        used.append(len(counts))
        perplexity.append(float(np.exp(-np.sum(share * np.log(share)))))
    return {
        "codes_used": sum(used),
        "codes_never_used": codes.num_codes * codes.num_groups - sum(used),
        "code_perplexity": float(np.mean(perplexity)),
        "codes_used_by_group": used,
        "code_perplexity_by_group": perplexity,
    }


def straight_through(value: Array, like: Array) -> Array:
    """`value`, with the gradient of `like`."""
    zero = like - jax.lax.stop_gradient(like)  # exactly, unless it is not finite
    return jax.lax.stop_gradient(value) + zero


def check_codes(codes: Any, p: Any) -> None:
    """Raise ValueError unless p is a Categoricals of these codes."""
    if not isinstance(p, Categoricals) or not _same(p.codes, codes):
        kind = "one of other codes" if isinstance(p, Categoricals) else f"a {type(p).__name__}"
        raise ValueError(f"The prior of a discrete posterior is {kind}; expected a Categoricals of the same codes.")


def _same(a: Any, b: Any) -> bool:
    """Whether two kinds of codes are the same but for their arrays."""
    structures: list[Any] = [jax.tree.structure(a), jax.tree.structure(b)]
    return structures[0] == structures[1]


def _basis(sizes: tuple[int, ...]) -> np.ndarray:
    """What one step of each digit adds to the number of a code."""
    return np.cumprod((1, *sizes[:-1]))


def split(a: Array, num: int) -> Array:
    """The last axis in `num` equal parts: [..., num * n] -> [..., num, n]."""
    return a.reshape(*a.shape[:-1], num, a.shape[-1] // num)


def join(a: Array) -> Array:
    """The last two axes as one: [..., m, n] -> [..., m * n]."""
    return a.reshape(*a.shape[:-2], a.shape[-2] * a.shape[-1])


def _array(values: Any, like: Array, dtype: Any = None) -> Array:
    """Constants of the last axis, with as many axes as `like` and its type."""
    return expand_like(jnp.asarray(np.asarray(values), dtype or like.dtype), like)
