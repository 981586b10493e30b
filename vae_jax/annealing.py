"""Bounds log p(x) by annealed importance sampling: chains go from the prior to the posterior and never use q(z | x)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax import checks
from vae_jax.codes import Categoricals
from vae_jax.core import VAE, Params

TARGET_ACCEPTANCE = 0.65  # here HMC in many dimensions moves furthest for its cost (Neal 2011, section 5.4.4)
ADAPTATION_RATE = 0.3  # d log(step size) / d acceptance: a step grows by at most 1/9 and shrinks by at most 1/6


def annealed_log_weights(
    params: Params,
    key: Array,
    x: Array,
    vae: VAE,
    *,
    num_chains: int,
    num_steps: int,
    num_leapfrog: int = 10,
    step_size: Any = 0.1,
) -> Array:
    """log w of K chains per example, [K, B], in nats. E[w] = p(x), so `importance_bound` of it bounds log p(x).

    x: [B, *shape]; z: any pytree of continuous latents. A chain begins at z ~ p(z) and passes through the temperatures
    t of `sigmoidal_schedule`. At each t it takes one HMC transition of `num_leapfrog` steps, which leaves
    p(z) p(x | z)^t invariant. Many chains and temperatures make the bound tight; if num_steps is 1, the weights are
    p(x | z) at z ~ p(z).

    K more chains adapt the step size, which begins at `step_size`, to each example and temperature, because chains that
    adapt to themselves would have biased weights. Raises ValueError if a number is below 1, or for a prior of codes.

    See Neal 2001 (Statistics and Computing 11), and for decoders Wu et al. 2017 (arXiv:1611.04273).
    """
    for name, number in {"num_chains": num_chains, "num_steps": num_steps, "num_leapfrog": num_leapfrog}.items():
        if number < 1:
            raise ValueError(f"{name} is {number}; expected at least 1.")
    prior, batch = checks.prior(vae, params), checks.batch_shape(x)
    if isinstance(prior, Categoricals):
        raise ValueError("The prior is one of codes; expected continuous latents, through which chains can move.")
    shape = (2 * num_chains, *batch)

    def log_densities(z: Any) -> tuple[Array, Array]:
        def one(z: Any) -> tuple[Array, Array]:
            log_prior = checks.log_prob("log p(z)", prior, z, batch)
            return log_prior, checks.log_prob("log p(x | z)", vae.decode(params, z), x, batch)

        return jax.vmap(one)(z)

    def anneal(state: Any, inputs: Any):
        (z, log_w, step), (i, last_t, t) = state, inputs

        def log_density(z: Any) -> Array:
            log_prior, log_likelihood = log_densities(z)
            return log_prior + t * log_likelihood

        log_w = log_w + (t - last_t) * log_densities(z)[1]
        z, acceptance = hmc(jax.random.fold_in(move_key, i), z, log_density, step, num_leapfrog)
        excess = jnp.mean(acceptance[:num_chains], 0) - TARGET_ACCEPTANCE
        return (z, log_w, step * jnp.exp(ADAPTATION_RATE * excess)), None

    z_key, move_key = jax.random.split(key)
    z = prior.sample(z_key, shape)
    log_w = jnp.zeros_like(jax.eval_shape(log_densities, z)[1])
    t = sigmoidal_schedule(num_steps).astype(log_w.dtype)
    start = (z, log_w, jnp.full_like(log_w[0], step_size))
    (_, log_w, _), _ = jax.lax.scan(anneal, start, (jnp.arange(num_steps), t[:-1], t[1:]))
    return log_w[num_chains:]


def sigmoidal_schedule(num_steps: int, extent: float = 4.0) -> Array:
    """Temperatures from 0 to 1, [num_steps + 1]: a rescaled sigmoid over [-extent, extent] (Wu et al. 2017)."""
    s = jax.nn.sigmoid(jnp.linspace(-extent, extent, num_steps + 1))
    return (s - s[0]) / (s[-1] - s[0])


def hmc(key: Array, z: Any, log_density: Callable[[Any], Array], step: Array, num_leapfrog: int) -> tuple[Any, Array]:
    """One Hamiltonian transition of each chain and example: the new z, and the probability of its acceptance, [K, B].

    z: leaves of [K, B, ...]; log_density(z): [K, B], in nats, up to a constant; step: the step sizes, [B]. See Neal
    2011 (arXiv:1206.1901).
    """

    def add(a: Any, b: Any, scale: float) -> Any:  # a + scale * step * b
        return jax.tree.map(lambda a, b: a + scale * _align(step[None], b) * b, a, b)

    def evaluate(z: Any) -> tuple[Array, Any]:
        value, pull = jax.vjp(log_density, z)
        return value, pull(jnp.ones_like(value))[0]

    def leapfrog(state: Any, _: None):
        z, momentum, _, gradient = state
        momentum = add(momentum, gradient, 0.5)
        z = add(z, momentum, 1.0)
        value, gradient = evaluate(z)
        return (z, add(momentum, gradient, 0.5), value, gradient), None

    momentum_key, accept_key = jax.random.split(key)
    leaves, structure = jax.tree.flatten(z)
    keys = jax.random.split(momentum_key, len(leaves))
    draws = [jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=True)]
    start = (z, jax.tree.unflatten(structure, draws), *evaluate(z))
    end, _ = jax.lax.scan(leapfrog, start, length=num_leapfrog)
    gain = end[2] - start[2] + _kinetic(start[1]) - _kinetic(end[1])
    acceptance = jnp.nan_to_num(jnp.exp(jnp.minimum(gain, 0)))  # a path that diverged gives NaN and is rejected
    accept = jax.random.uniform(accept_key, acceptance.shape, acceptance.dtype) < acceptance
    return jax.tree.map(lambda new, old: jnp.where(_align(accept, new), new, old), end[0], z), acceptance


def _kinetic(momentum: Any) -> Array:
    energies = jax.tree.map(lambda m: jnp.sum(m**2, tuple(range(2, m.ndim))) / 2, momentum)
    return jax.tree.reduce(jnp.add, energies)


def _align(a: Array, b: Array) -> Array:
    """a with axes of size 1 at its end, as many as b has more."""
    return a.reshape(a.shape + (1,) * (b.ndim - a.ndim))
