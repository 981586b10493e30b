"""The hierarchies that a config can name: each makes a VAE with the latent {"z1": ..., "z2": ..., ...}.

z1 is next to x, and each further latent is one level above. Only the networks next to x take a label.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.core import VAE, Distribution, Params, with_context
from vae_jax.distributions import DiagonalGaussian, expand_like, kl_divergence, kl_monte_carlo
from vae_jax.likelihoods import gaussian_pixel
from vae_jax.networks import Function, Network
from vae_jax.posteriors import Posterior
from vae_jax.priors import Prior
from vae_jax.vae import Parts, join

NAMES = ("hvae", "ladder", "markov")  # what a config may name
TOP_FIRST = ("hvae", "ladder")  # those whose q and p have their latents in the same order


class Levels(NamedTuple):
    """What a hierarchy is made of, as the config says."""

    lower: Parts  # of z1, with the networks next to x
    encoder_of_x: Callable[[int], Function]  # numbers per example -> the network that gives them, as in `lower`
    # (shape of the input, numbers that the encoder gives, numbers per element that the decoder gives, hidden sizes)
    dense: Callable[[tuple[int, ...], int, int, Sequence[int]], Network]
    activation: Callable[[Array], Array]  # of the dense layers
    posterior: Callable[[int], Posterior]  # latent_dim -> the posterior of another latent
    prior: Callable[..., Prior]  # (latent_dim, encodes_x=...) -> the prior of the top latent


class Hierarchy(NamedTuple):
    build: Callable[[Levels], VAE]
    posterior: str = ""  # the name of the only posterior that it takes, if it takes but one


def markov(*, latent_dim: int = 50, hidden_sizes: Sequence[int] = (100, 100)) -> Hierarchy:
    """q(z1 | x) q(z2 | z1) and p(z2) p(z1 | z2) p(x | z1).

    z2 has `latent_dim` dimensions. hidden_sizes: the units of the layers from z1 to z2; from z2 to z1 they are in
    reverse order. These are the two stochastic layers of Burda et al. 2016 (arXiv:1509.00519), section 5.
    """

    def build(levels: Levels) -> VAE:
        below, q = (levels.lower.latent_dim,), levels.posterior(latent_dim)
        middle = gaussian_pixel(below)
        between = levels.dense(below, q.num_outputs, middle.num_outputs, hidden_sizes)
        upper = join(Parts(below, *between[:2], q, middle, levels.prior(latent_dim, encodes_x=False), latent_dim))
        return join_markov(join(levels.lower), _starting_at_zeros(upper, below))

    return Hierarchy(build)


def hvae(*, latent_dim: int = 40, hidden_sizes: Sequence[int] = (300, 300)) -> Hierarchy:
    """q(z2 | x) q(z1 | x, z2) and p(z2) p(z1 | z2) p(x | z1, z2).

    z2 has `latent_dim` dimensions. hidden_sizes: as in `markov`. See Tomczak & Welling 2018 (arXiv:1705.07120),
    section 4. With the prior `vamp`, p(z2) is their two-level VampPrior.
    """

    def build(levels: Levels) -> VAE:
        lower, q = levels.lower, levels.posterior(latent_dim)
        middle = gaussian_pixel((lower.latent_dim,))._replace(features=lower.likelihood.features)
        between = levels.dense((lower.latent_dim,), q.num_outputs, middle.num_outputs, hidden_sizes)
        networks = levels.encoder_of_x(q.num_outputs), between.decoder
        upper = join(Parts(lower.shape, *networks, q, middle, levels.prior(latent_dim), latent_dim))
        return join_top_first(join(lower._replace(context_size=lower.context_size + latent_dim)), upper)

    return Hierarchy(build)


def ladder(
    *,
    latent_dims: Sequence[int] = (32, 16, 8, 4),
    hidden_sizes: Sequence[int] = (),
    num_layers: int = 2,
    skip: bool = False,
) -> Hierarchy:
    """q(z_L | x) .. q(z1 | x, z2) and p(z_L) p(z_L-1 | z_L) .. p(x | z1), with any number of levels.

    q(z_i | x, z_i+1) is the product of p(z_i | z_i+1) and of a Gaussian that x gives: see `combine` and Sonderby et al.
    2016 (arXiv:1602.02282), section 2. In place of the paper's batch normalisation, what a level hands on is
    standardised per example. Without a warm-up of beta or free bits, the upper levels may stay unused.

    latent_dims: the dimensions of z2, z3, ..., above z1 with the config's latent_dim; with none, the VAE is the one
    without a hierarchy. hidden_sizes: for each of them, the units of its `num_layers` layers from below, and of those
    back down; by default 256, 128, and then 64. The first layer from below is a part of the outputs of the network that
    gives the Gaussian of the level below. skip: p(x | z) and p(z_i | z) see all latents above, not the nearest alone,
    as in BIVA (Maaloe et al. 2019, arXiv:1902.02102).
    """
    dims = tuple(latent_dims)
    sizes = tuple(hidden_sizes) or tuple(max(64, 256 >> i) for i in range(len(dims)))
    if len(sizes) != len(dims):
        raise ValueError(f"hidden_sizes is {sizes}; expected one number for each of the latent_dims, {dims}")

    def build(levels: Levels) -> VAE:
        lower = levels.lower
        if not dims:
            return join(lower._replace(prior=levels.prior(lower.latent_dim)))
        passed = (*sizes, 0)  # units that each level hands on to the one above
        every = (lower.latent_dim, *dims)
        seen = [sum(every[i:]) if skip else dim for i, dim in enumerate(every)]  # latents that each decoder sees

        def posterior(i: int, latent_dim: int) -> Posterior:
            return _with_features(levels.posterior(latent_dim), passed[i], levels.activation)

        q = posterior(0, lower.latent_dim)
        encoder = levels.encoder_of_x(q.num_outputs)
        each = [join(lower._replace(encoder=encoder, posterior=q, latent_dim=seen[0]))]
        for i, (dim, size, below) in enumerate(zip(dims, sizes, every, strict=False), 1):
            q, middle = posterior(i, dim), gaussian_pixel((below,))
            up = levels.dense((size,), q.num_outputs, 1, (size,) * (num_layers - 1)).encoder
            down = levels.dense((below,), 1, middle.num_outputs, (size,) * num_layers).decoder
            prior = levels.prior(dim, encodes_x=False) if i == len(dims) else lower.prior
            level = join(Parts((size,), up, down, q, middle, prior, seen[i]))
            each.append(_starting_at_zeros(level, (size,)))
        return join_ladder(each, skip)

    return Hierarchy(build, posterior="diagonal")  # whose densities multiply in closed form


def join_markov(lower: VAE, upper: VAE) -> VAE:
    """The VAE of `markov`. `lower` gives q(z1 | x) and p(x | z1), `upper` gives q(z2 | z1), p(z1 | z2) and p(z2)."""

    def encode(params: Params, x: Array, context: Array | None = None) -> Chain:
        q = lower.encode(params["lower"], x, context)
        return Chain(("z1", "z2"), q, (lambda z: upper.encode(params["upper"], z["z1"]),))

    def decode(params: Params, z: Any, context: Array | None = None) -> Distribution:
        return lower.decode(params["lower"], z["z1"], context)

    return VAE(_init(lower, upper), encode, decode, _prior(upper))


def join_top_first(lower: VAE, upper: VAE) -> VAE:
    """The VAE of `hvae`. `lower` takes z2 as its context, and `upper` gives q(z2 | x), p(z1 | z2) and p(z2)."""

    def encode(params: Params, x: Array, context: Array | None = None) -> Chain:
        def infer_z1(z: dict[str, Array]) -> Distribution:
            repeated = jnp.broadcast_to(x, (*z["z2"].shape[:-2], *x.shape))
            return lower.encode(params["lower"], repeated, with_context(z["z2"], context))

        return Chain(("z2", "z1"), upper.encode(params["upper"], x), (infer_z1,))

    def decode(params: Params, z: Any, context: Array | None = None) -> Distribution:
        return lower.decode(params["lower"], z["z1"], with_context(z["z2"], context))

    return VAE(_init(lower, upper), encode, decode, _prior(upper))


def join_ladder(levels: Sequence[VAE], skip: bool = False) -> VAE:
    """The VAE of `ladder`.

    levels[i] decodes z_i+1 to p(z_i | z_i+1), or z1 to p(x | z1); with `skip`, it sees all latents above too, in their
    order. It encodes what the level below hands on, or x, to a pair: a Gaussian of z_i+1, and what it hands on. The
    prior is that of the last level.
    """
    names = tuple(f"z{i}" for i in range(1, len(levels) + 1))

    def decode_level(params: Params, i: int, z: dict[str, Array], context: Array | None = None) -> Any:
        above = jnp.concatenate([z[name] for name in names[i:]], -1) if skip else z[names[i]]
        return levels[i].decode(params[names[i]], above, context)

    def downwards(params: Params) -> list[Callable[[dict[str, Array]], Any]]:
        """z -> p(z_i | z), from the top down."""
        return [partial(decode_level, params, i) for i in range(len(levels) - 1, 0, -1)]

    def init(key: Array, x: Array) -> Params:
        keys = jax.random.split(key, len(levels))
        return {name: level.init(key, x) for name, level, key in zip(names, levels, keys, strict=True)}

    def encode(params: Params, x: Array, context: Array | None = None) -> Chain:
        gaussian, features = levels[0].encode(params["z1"], x, context)
        seen = [gaussian]
        for name, level in zip(names[1:], levels[1:], strict=True):
            gaussian, features = level.encode(params[name], features)
            seen.insert(0, gaussian)

        def inferred(of_x: DiagonalGaussian, prior: Callable[..., Any]) -> Callable[[dict[str, Array]], Distribution]:
            return lambda z: combine(of_x, prior(z))

        return Chain(names[::-1], seen[0], tuple(map(inferred, seen[1:], downwards(params))))

    def decode(params: Params, z: Any, context: Array | None = None) -> Distribution:
        return decode_level(params, 0, z, context)

    def prior(params: Params) -> Chain:
        return Chain(names[::-1], levels[-1].prior(params[names[-1]]), tuple(downwards(params)))

    return VAE(init, encode, decode, prior)


def combine(q: DiagonalGaussian, p: DiagonalGaussian) -> DiagonalGaussian:
    """The Gaussian proportional to q(z) p(z): precisions add, and each mean counts by its precision.

    See Sonderby et al. 2016 (arXiv:1602.02282), section 2. q: [B, L]; p and the result: [..., B, L].
    """
    mean, log_var = expand_like(q.mean, p.mean), expand_like(q.log_var, p.log_var)
    weight = jax.nn.sigmoid(p.log_var - log_var)  # the share of q's precision, finite for any variances
    return DiagonalGaussian(p.mean + weight * (mean - p.mean), -jnp.logaddexp(-p.log_var, -log_var))


class Chain(NamedTuple):
    """The joint distribution p(a) p(b | a) p(c | a, b) .. over the latent {names[0]: a, names[1]: b, ...}.

    then: a function for each latent but the first, of the latents before it. `mean` holds the mean of a, the mean of b
    given this a, and so on: a representative point, not the expectation. A Chain holds functions, so it cannot be an
    argument or a result of a jitted function.
    """

    names: tuple[str, ...]
    first: Distribution
    then: tuple[Callable[[dict[str, Any]], Distribution], ...]

    @property
    def mean(self) -> dict[str, Any]:
        z = {self.names[0]: self.first.mean}
        for of, name in zip(self.then, self.names[1:], strict=True):
            z[name] = of(z).mean
        return z

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> dict[str, Any]:
        first_key, *keys = jax.random.split(key, len(self.names))
        z = {self.names[0]: self.first.sample(first_key, sample_shape)}
        for of, name, own_key in zip(self.then, self.names[1:], keys, strict=True):
            z[name] = of(z).sample(own_key)
        return z

    def given(self, value: dict[str, Any]) -> Iterator[Distribution]:
        """The distribution of each latent, given those before it in `value`."""
        yield self.first
        yield from (of(value) for of in self.then)

    def log_prob(self, value: dict[str, Any]) -> Array:
        first, *others = (p.log_prob(value[name]) for p, name in zip(self.given(value), self.names, strict=True))
        return sum(others, first)

    def kl_by_level(self, p: "Chain", z: dict[str, Any]) -> dict[str, Array]:
        """The KL of each latent given those before it in z ~ q, where q is this chain: in closed form if it has one.

        Their sum is an estimate of KL(q || p). It is empty if p has its latents in another order.
        """
        if self.names != p.names:
            return {}
        pairs = zip(self.names, self.given(z), p.given(z), strict=True)
        return {name: kl_divergence(q_z, p_z, z[name]) for name, q_z, p_z in pairs}

    def kl(self, p: "Chain", z: dict[str, Any]) -> Array:
        """An estimate of KL(q || p) at z ~ q, where q is this chain: the sum of `kl_by_level`, if there are such."""
        first, *others = self.kl_by_level(p, z).values() or [kl_monte_carlo(self, p, z)]
        return sum(others, first)


def _with_features(posterior: Posterior, num_features: int, activation: Callable[[Array], Array]) -> Posterior:
    """The posterior that also gives the last `num_features` of its outputs, standardised, after `activation`.

    Without it, each layer makes the differences between examples smaller, and the levels far above x see none of them.
    """
    size = posterior.num_outputs

    def build(params: Params, outputs: Array) -> Any:
        return posterior.build(params, outputs[..., :size]), activation(jax.nn.standardize(outputs[..., size:]))

    return posterior._replace(num_outputs=size + num_features, build=build)


def _starting_at_zeros(vae: VAE, shape: tuple[int, ...]) -> VAE:
    """The VAE of another latent, whose parameters do not depend on the examples."""
    return vae._replace(init=lambda key, x: vae.init(key, jnp.zeros((1, *shape))))


def _init(lower: VAE, upper: VAE) -> Callable[..., Params]:
    def init(key: Array, x: Array) -> Params:
        keys = jax.random.split(key)
        return {"lower": lower.init(keys[0], x), "upper": upper.init(keys[1], x)}

    return init


def _prior(upper: VAE) -> Callable[[Params], Chain]:
    def prior(params: Params) -> Chain:
        return Chain(("z2", "z1"), upper.prior(params["upper"]), (lambda z: upper.decode(params["upper"], z["z2"]),))

    return prior
