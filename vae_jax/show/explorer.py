"""What the page of the explorer asks of a trained VAE. This module knows nothing of browsers.

Sliders move the numbers u, [U]: those of z, or of discrete latents the digits of its variables, which snap to codes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.tree_util import keystr, tree_leaves_with_path

from vae_jax import build, generate
from vae_jax.codebooks import VectorCodes
from vae_jax.codes import Codes, discrete
from vae_jax.core import Examples, condition
from vae_jax.errors import UserError
from vae_jax.evaluate import evenly, make_evaluate
from vae_jax.run.checkpoints import Restored

MAP = 480  # pixels of a side of the map
_MAX_POINTS, _BATCH, _DRAWS = 2000, 250, 512  # examples on the map, in a call of the encoder; draws that set the ranges


class Control(NamedTuple):
    """A number that a slider moves."""

    name: str  # z_1, or z1_1 in a hierarchy
    group: str  # z, or in a hierarchy the level: z1, z2, ...
    low: float
    high: float
    step: float
    activity: float  # the variance of its posterior mean over the examples
    whole: bool = False  # whether it is the digit of a code


class Plane(NamedTuple):
    """A plane through the space of u, which the map shows."""

    axes: tuple[str, str]  # the second one is empty if U is 1
    centre: np.ndarray  # [U]
    directions: np.ndarray  # [U, 2], orthonormal; the second one is 0 if U is 1
    points: np.ndarray  # [N, 2], of the examples
    low: np.ndarray  # [2]
    high: np.ndarray  # [2]


class Explorer(NamedTuple):
    restored: Restored
    examples: Examples
    label: np.ndarray | None  # [N]
    names: tuple[str, ...]  # of the labels 0, 1, ..., if they have names
    num_samples: int  # K of the importance bound
    controls: tuple[Control, ...]  # [U]
    planes: dict[str, Plane]  # by what the page calls them
    shown: np.ndarray  # the examples on the map, by their numbers
    look: Callable[[np.ndarray, Any, int], tuple[np.ndarray, np.ndarray]]  # u, context, key -> E[x | z], x ~ p(x | z)
    draw: Callable[[int], np.ndarray]  # key -> u of z ~ p(z)
    encode: Callable[[Examples], np.ndarray]  # [N, ...] -> u of the posterior means, [N, U]
    figures: Callable[[Examples], dict[str, float]]  # of one example, in nats
    latent: Callable[[np.ndarray], Any]  # u -> z, as lists of numbers
    # u, a level -> u with the means of the levels below, given it and those above; None without a hierarchy
    follow: Callable[[np.ndarray, str], np.ndarray] | None


def make(
    restored: Restored,
    examples: Examples,
    label: np.ndarray | None,
    names: tuple[str, ...] = (),
    *,
    num_samples: int = 500,
    seed: int = 0,
) -> Explorer:
    """Make the functions that the page calls, which are compiled once each, and place the examples on the map.

    A key of `look` and `draw` is the seed with which `generate.sample` draws the same z and x. names: of the labels.
    Raises UserError if the latents are not numbers that a slider can move.
    """
    config, _, vae, params, _ = restored
    codes = getattr(vae.prior(params), "codes", None)  # with the vectors of a codebook, if there is one
    prior = lambda params, key, num: vae.prior(params).sample(key, (num,))  # noqa: E731
    like = jax.eval_shape(lambda params: prior(params, jax.random.key(0), 1), params)
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(like)):
        raise UserError(
            "The latents of this VAE are not floats, which sliders need. Use sample or reconstruct instead."
        )
    zero, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like))

    def of_z(z: Any) -> Array:
        return codes.digits(generate.flat(z)).astype(zero.dtype) if codes else generate.flat(z)

    def to_z(u: Array) -> Any:
        if not codes:
            return unravel(u)
        return unravel(codes.values(jnp.round(u).astype(jnp.int32), zero.dtype))

    @jax.jit
    def look(params, key, u, context):
        p = condition(vae, context).decode(params, to_z(u))
        return p.mean[0], p.sample(jax.random.split(key)[1])[0]

    @jax.jit
    def draw(params, key):
        return of_z(prior(params, jax.random.split(key)[0], 1))[0]

    @jax.jit
    def encode(params, examples: Examples):
        return of_z(condition(discrete(vae), examples.context).encode(params, examples.x).mean)

    @partial(jax.jit, static_argnums=2)
    def follow(params, u, level):
        z, p = unravel(u), vae.prior(params)
        for name, of in zip(p.names[1:], p.then, strict=True):
            if p.names.index(name) > p.names.index(level):
                z = {**z, name: of(z).mean}
        return of_z(z)[0]

    def encode_all(examples: Examples) -> np.ndarray:
        parts = [jax.tree.map(lambda a, i=i: a[i : i + _BATCH], examples) for i in range(0, len(examples.x), _BATCH)]
        return np.concatenate([np.asarray(encode(params, part)) for part in parts])

    evaluate = make_evaluate(vae, num_samples=num_samples, **build.evaluation_options(config))

    def figures(one: Examples) -> dict[str, float]:
        result = evaluate(params, jax.random.key(seed), one)
        found = {"log p(x | z)": result.log_likelihood[0]}
        if result.log_px is not None:  # a point posterior has no density
            elbo = result.log_likelihood[0] - result.kl[0]
            found = {
                "ELBO": elbo,
                **found,
                "KL": result.kl[0],
                f"bound of log p(x), K = {num_samples}": result.log_px[0],
            }
        return {name: float(value) for name, value in found.items()}

    shown = evenly(len(examples.x), _MAX_POINTS)
    u = encode_all(jax.tree.map(lambda a: a[shown], examples))
    drawn = np.asarray(jax.jit(lambda params, key: of_z(prior(params, key, _DRAWS)))(params, jax.random.key(seed)))
    both = np.concatenate([u, drawn])
    if not np.isfinite(both).all():
        raise UserError("The latents of this VAE are not finite, so there is nothing to explore. Train it again.")
    controls = _controls(like, codes, u, both)
    return Explorer(
        restored,
        examples,
        label,
        names,
        num_samples,
        controls,
        planes(controls, u, both, nominal=isinstance(codes, VectorCodes) or (codes is not None and codes.one_hot)),
        shown,
        lambda u, context, key: jax.tree.map(np.asarray, look(params, jax.random.key(key), _floats(u, zero), context)),
        lambda key: np.asarray(draw(params, jax.random.key(key))),
        encode_all,
        figures,
        lambda u: jax.tree.map(lambda a: np.asarray(a)[0].tolist(), to_z(_floats(u, zero))),
        (lambda u, level: np.asarray(follow(params, _floats(u, zero), level))) if config.hierarchy else None,
    )


def _controls(like: Any, codes: Codes | VectorCodes | None, u: np.ndarray, both: np.ndarray) -> tuple[Control, ...]:
    """The numbers of a z of the shapes `like`. u: [N, U], of the examples. both: [M, U], what sliders must reach."""
    if codes:
        groups = [("z", len(codes.sizes))]
        low, high, steps = np.zeros(len(codes.sizes)), np.array(codes.sizes) - 1.0, np.ones(len(codes.sizes))
    else:
        groups = [(keystr(path, simple=True) or "z", leaf.size) for path, leaf in tree_leaves_with_path(like)]
        low = np.floor(both.min(0)).astype(np.float64)
        high = np.maximum(np.ceil(both.max(0)), low + 1)
        steps = (high - low) / 400
    places = [(f"{group}_{i + 1}", group) for group, size in groups for i in range(size)]
    return tuple(
        Control(*place, float(least), float(most), float(step), float(variance), codes is not None)
        for place, least, most, step, variance in zip(
            places, low, high, steps, u.astype(np.float64).var(0), strict=True
        )
    )


def _floats(u: np.ndarray, like: Array) -> Any:
    return np.asarray(u).astype(like.dtype)


def planes(
    controls: tuple[Control, ...], u: np.ndarray, seen: np.ndarray, *, nominal: bool = False
) -> dict[str, Plane]:
    """The plane of the two most active numbers and, of more numbers with an order, that of the principal components.

    u: [N, U], of the examples. seen: [M, U], what the planes have room for. nominal: the numbers have no order.
    """
    order = np.argsort([-control.activity for control in controls], kind="stable")
    axes = np.eye(len(controls), 2) if len(controls) == 1 else np.eye(len(controls))[:, order[:2]]
    names = [controls[i].name for i in order[:2]]
    found = {"most active": ((names[0], names[1] if len(names) > 1 else ""), np.zeros(len(controls)), axes)}
    if len(controls) > 2 and not nominal:
        centre = u.mean(0, dtype=np.float64)
        _, singular, directions = np.linalg.svd(u.astype(np.float64) - centre, full_matrices=False)
        shares = singular**2 / max(np.sum(singular**2), 1e-12)
        if len(directions) > 1:
            first, second = (f"component {i + 1} ({shares[i]:.0%} of the variance)" for i in (0, 1))
            found["principal components"] = ((first, second), centre, directions[:2].T)
    planes = {}
    for name, (axis, centre, directions) in found.items():
        points, every = (u - centre) @ directions, (seen - centre) @ directions
        room = 0.06 * np.maximum(np.ptp(every, 0), 1e-3) + 0.5 * (np.ptp(every, 0) == 0)
        planes[name] = Plane(axis, centre, directions, points, every.min(0) - room, every.max(0) + room)
    return planes


def to_pixel(plane: Plane, u: np.ndarray) -> np.ndarray:
    """Where the map shows u, [U] -> [2], from the top left."""
    x, y = ((u - plane.centre) @ plane.directions - plane.low) / (plane.high - plane.low) * MAP
    return np.array([x, MAP - y])


def from_pixel(plane: Plane, u: np.ndarray, pixel: Any, controls: tuple[Control, ...]) -> np.ndarray:
    """u moved along the plane until the map shows it at `pixel`. Digits become those of the nearest code."""
    x, y = np.clip(np.asarray(pixel, np.float64), 0, MAP) / MAP
    wanted = plane.low + np.array([x, 1 - y]) * (plane.high - plane.low)
    return snapped(u + plane.directions @ (wanted - (u - plane.centre) @ plane.directions), controls)


def snapped(u: np.ndarray, controls: tuple[Control, ...]) -> np.ndarray:
    """u itself or, if its numbers are digits, the nearest ones."""
    return np.clip(np.round(u), [c.low for c in controls], [c.high for c in controls]) if controls[0].whole else u
