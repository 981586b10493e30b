"""The hierarchies that a config can name: each joins two VAEs into a VAE with the latent {"z1": ..., "z2": ...}.

The upper VAE gives p(z2), p(z1 | z2) and the posterior of z2; the lower VAE gives p(x | z1) or p(x | z1, z2) and the
posterior of z1, and only the lower VAE takes a label.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.core import VAE, Distribution, Params, with_context
from vae_jax.distributions import kl_divergence, kl_monte_carlo

NAMES = ("hvae", "markov")  # what a config may name


class Hierarchy(NamedTuple):
    latent_dim: int  # dimensions of z2
    hidden_sizes: tuple[int, ...]  # units of the layers from z1 to z2; from z2 to z1 they are in reverse order
    join: Callable[[VAE, VAE], VAE]  # (lower, upper) -> the VAE of both
    infers_top_first: bool  # whether z2 is inferred from x, then z1 from x and z2; else z1 from x, then z2 from z1


def markov(*, latent_dim: int = 50, hidden_sizes: Sequence[int] = (100, 100)) -> Hierarchy:
    """q(z1 | x) q(z2 | z1) and p(z2) p(z1 | z2) p(x | z1).

    These are the two stochastic layers of Burda et al. 2016 (arXiv:1509.00519), section 5.
    """

    def join(lower: VAE, upper: VAE) -> VAE:
        def encode(params: Params, x: Array, context: Array | None = None) -> Chain:
            q = lower.encode(params["lower"], x, context)
            return Chain(("z1", "z2"), q, lambda z1: upper.encode(params["upper"], z1))

        def decode(params: Params, z: Any, context: Array | None = None) -> Distribution:
            return lower.decode(params["lower"], z["z1"], context)

        return VAE(_init(lower, upper), encode, decode, _prior(upper))

    return Hierarchy(latent_dim, tuple(hidden_sizes), join, infers_top_first=False)


def hvae(*, latent_dim: int = 40, hidden_sizes: Sequence[int] = (300, 300)) -> Hierarchy:
    """q(z2 | x) q(z1 | x, z2) and p(z2) p(z1 | z2) p(x | z1, z2).

    See Tomczak & Welling 2018 (arXiv:1705.07120), section 4. With the prior `vamp`, p(z2) is their two-level VampPrior.
    """

    def join(lower: VAE, upper: VAE) -> VAE:
        def encode(params: Params, x: Array, context: Array | None = None) -> Chain:
            def infer_z1(z2: Array) -> Distribution:
                repeated = jnp.broadcast_to(x, (*z2.shape[:-2], *x.shape))
                return lower.encode(params["lower"], repeated, with_context(z2, context))

            return Chain(("z2", "z1"), upper.encode(params["upper"], x), infer_z1)

        def decode(params: Params, z: Any, context: Array | None = None) -> Distribution:
            return lower.decode(params["lower"], z["z1"], with_context(z["z2"], context))

        return VAE(_init(lower, upper), encode, decode, _prior(upper))

    return Hierarchy(latent_dim, tuple(hidden_sizes), join, infers_top_first=True)


class Chain(NamedTuple):
    """The joint distribution p(a) p(b | a) over the latent {names[0]: a, names[1]: b}.

    `mean` holds the mean of a, and the mean of b given this a: a representative point, not the expectation. A Chain
    holds a function, so it cannot be an argument or a result of a jitted function.
    """

    names: tuple[str, str]
    first: Distribution
    then: Callable[[Any], Distribution]  # a -> p(b | a)

    @property
    def mean(self) -> dict[str, Any]:
        a = self.first.mean
        return dict(zip(self.names, (a, self.then(a).mean), strict=True))

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> dict[str, Any]:
        a_key, b_key = jax.random.split(key)
        a = self.first.sample(a_key, sample_shape)
        return dict(zip(self.names, (a, self.then(a).sample(b_key)), strict=True))

    def log_prob(self, value: dict[str, Any]) -> Array:
        a, b = (value[name] for name in self.names)
        return self.first.log_prob(a) + self.then(a).log_prob(b)

    def kl(self, p: "Chain", z: dict[str, Any]) -> Array:
        """An estimate of KL(q || p) at z ~ q, where q is this chain.

        If q and p have their latents in the same order, each factor's KL is in closed form where it has one.
        """
        if self.names != p.names:
            return kl_monte_carlo(self, p, z)
        a, b = (z[name] for name in self.names)
        return kl_divergence(self.first, p.first, a) + kl_divergence(self.then(a), p.then(a), b)


def _init(lower: VAE, upper: VAE) -> Callable[..., Params]:
    def init(key: Array, x: Array) -> Params:
        keys = jax.random.split(key)
        return {"lower": lower.init(keys[0], x), "upper": upper.init(keys[1], x)}

    return init


def _prior(upper: VAE) -> Callable[[Params], Chain]:
    def prior(params: Params) -> Chain:
        return Chain(("z2", "z1"), upper.prior(params["upper"]), lambda z2: upper.decode(params["upper"], z2))

    return prior
