"""The likelihood of a table whose columns are of different kinds: numbers, positive numbers, counts and categories."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax.core import Likelihood, Params
from vae_jax.counts import MAX_LOG_RATE, Poisson
from vae_jax.distributions import DiagonalGaussian, distribution, expand_like, mixture_mean, softplus, static, sum_event
from vae_jax.reals import LogNormal, bounded, unbounded

KINDS = ("real", "positive", "count", "category", "ordinal")
_LEAST_GAP = 1e-4  # between the cut points of an ordinal column, so that each of its values can occur


class Kind(NamedTuple):
    name: str  # one of KINDS
    num: int = 0  # of the values of a category or ordinal column, which are 0, 1, ..., num - 1


def mixed(shape: tuple[int, ...], *, columns: Mapping[str, Any]) -> Likelihood:
    """Each column of a table by a distribution of its kind (Nazabal et al. 2020, arXiv:1807.03653, section 3.1).

    columns: the kind of each column, in the order of the table:
      `real`: N(mean, sigma^2); `positive`: log-normal; both with their sigma from the decoder, as in `gaussian_pixel`;
      `count`: Poisson;
      `category:K`: one of K values 0 .. K - 1, by a softmax;
      `ordinal:K`: one of K values in their order, by P(x <= r) = sigmoid(t_r - h) with learned cut points t_r.
      {"category": [...]} or {"ordinal": [...]} gives the names of the values instead of K.
    The encoder sees the log of positive numbers, log(1 + x) of counts, and a one-hot vector of a category. The first
    outputs have the moments and frequencies of the training examples. Raises ValueError for another kind, and unless
    there is one for each column.
    """
    if len(shape) != 1 or len(columns) != shape[0]:
        raise ValueError(f"columns has {len(columns)} kinds for examples of shape {shape}; expected one per column.")
    kinds = [kind_of(name, kind) for name, kind in columns.items()]
    places = {name: tuple(i for i, kind in enumerate(kinds) if kind.name == name) for name in KINDS}
    nums = {name: np.array([kinds[i].num for i in places[name]], int) for name in KINDS}
    num_category, num_ordinal = (int(nums[name].max(initial=0)) for name in KINDS[3:])
    num_outputs = max(2 if places["real"] or places["positive"] else 1, num_category)
    order = tuple(np.argsort([i for name in KINDS for i in places[name]]).tolist())

    def by_kind(parts: Mapping[str, Callable[[Array], Array]], x: Array, num: int) -> Array:
        """parts[kind](the columns of x of the kind [..., n]), [..., n, at most num], joined: [..., D, num]."""
        each = [part(x[..., np.array(places[name])]) for name, part in parts.items() if places[name]]
        padded = [jnp.pad(a, ((0, 0),) * (a.ndim - 1) + ((0, num - a.shape[-1]),)) for a in each]
        return jnp.concatenate(padded, -2)[..., np.array(order), :]

    def features(x: Array) -> Array:
        parts = {
            "real": lambda x: x[..., None],
            "positive": lambda x: jnp.log(x)[..., None],
            "count": lambda x: jnp.log1p(x)[..., None],
            "category": lambda x: jax.nn.one_hot(x.astype(jnp.int32), num_category, dtype=x.dtype),
            "ordinal": lambda x: (x / expand_like(jnp.array(nums["ordinal"] - 1, x.dtype), x))[..., None],
        }
        return by_kind(parts, x, max(1, num_category))

    def init(x: Array) -> Params:
        if not places["ordinal"]:
            return {}
        below = jnp.cumsum(_frequencies(x[:, np.array(places["ordinal"])], nums["ordinal"], num_ordinal), -1)[:, :-1]
        below = jnp.minimum(below, 1 - 0.5 / (len(x) + 1))  # of the values that a column does not have
        cuts = jnp.log(below) - jnp.log1p(-below)
        gaps = jnp.maximum(jnp.diff(cuts) - _LEAST_GAP, 1e-2)
        return {"cut": cuts[:, 0], "gaps": jnp.log(jnp.expm1(gaps))}

    def average(x: Array) -> Array:
        def moments(x: Array) -> Array:
            return jnp.stack([jnp.mean(x, 0), unbounded(jnp.log(jnp.var(x, 0)))], -1)

        parts = {
            "real": moments,
            "positive": lambda x: moments(jnp.log(x)),
            "count": lambda x: jnp.log(jnp.maximum(jnp.mean(x, 0), 0.5 / len(x)))[:, None],
            "category": lambda x: jnp.log(_frequencies(x, nums["category"], num_category)),
            "ordinal": lambda x: jnp.zeros((x.shape[1], 1), x.dtype),
        }
        return by_kind(parts, x, num_outputs)

    def build(params: Params, outputs: Array) -> Mixed:
        out = {name: outputs[..., np.array(places[name], int), :] for name in KINDS}
        parts = {
            "real": lambda o: DiagonalGaussian(o[..., 0], bounded(o[..., 1]), 0),
            "positive": lambda o: LogNormal(o[..., 0], bounded(o[..., 1]), 0),
            "count": lambda o: Poisson(jnp.minimum(o[..., 0], MAX_LOG_RATE), 0),
            "category": lambda o: Codes(_of_values(o[..., :num_category], nums["category"]), 0),
            "ordinal": lambda o: Codes(_of_values(_ordinal(o[..., 0], params, nums["ordinal"]), nums["ordinal"]), 0),
        }
        some = [name for name in KINDS if places[name]]
        return Mixed(tuple(parts[name](out[name]) for name in some), tuple(places[name] for name in some))

    return Likelihood(
        num_outputs,
        build,
        lambda outputs: outputs,
        init,
        average=average,
        features=features,
        scaled=tuple(kind.name == "real" for kind in kinds),
    )


def kind_of(column: str, kind: Any) -> Kind:
    """The kind that 'real', 'category:3' or {'category': ['a', 'b', 'c']} names. ValueError if it names none."""
    if isinstance(kind, Mapping) and len(kind) == 1:
        (name, values), *_ = kind.items()
        texts = isinstance(values, list | tuple) and all(isinstance(value, str) for value in values)
        if name in KINDS[3:] and texts and 2 <= len(set(values)) == len(values):
            return Kind(name, len(values))
    elif isinstance(kind, str):
        name, _, num = kind.partition(":")
        if name in KINDS[:3] and name == kind:
            return Kind(name)
        if name in KINDS[3:] and num.isdecimal() and 2 <= int(num) <= 2**16:
            return Kind(name, int(num))
    raise ValueError(
        f"column {column!r} has the kind {kind!r}; expected real, positive, count, category:K, ordinal:K, or an object "
        'such as {"ordinal": ["low", "high"]} with at least two different names.'
    )


@distribution
class Codes:
    """One of the values 0, 1, ..., C - 1 with softmax(logits), independent over the event axes.

    Its `mean` is the most probable value, since a number between two categories means nothing.
    """

    logits: Array  # [..., *event, C]
    event_dim: int = static(default=1)

    @property
    def mean(self) -> Array:
        return jnp.argmax(self.logits, -1).astype(self.logits.dtype)

    def mixture_mean(self, w: Array) -> Array:
        p = jax.nn.softmax(self.logits)
        return jnp.argmax(jnp.einsum("kb,kb...->b...", w, p), -1).astype(p.dtype)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        drawn = jax.random.categorical(key, self.logits, shape=sample_shape + self.logits.shape[:-1])
        return drawn.astype(self.logits.dtype)

    def log_prob(self, value: Array) -> Array:
        log_p = expand_like(jax.nn.log_softmax(self.logits), value[..., None])
        log_p = jnp.broadcast_to(log_p, (*value.shape, log_p.shape[-1]))
        return sum_event(jnp.take_along_axis(log_p, value[..., None].astype(jnp.int32), -1)[..., 0], self.event_dim)


@distribution
class Mixed:
    """Distributions of single elements, each of some columns of x, [..., D]."""

    parts: tuple[Any, ...]  # with event_dim 0
    places: tuple[tuple[int, ...], ...] = static()  # the columns of each part
    event_dim: int = static(default=1)

    @property
    def mean(self) -> Array:
        return self._join([p.mean for p in self.parts])

    def mixture_mean(self, w: Array) -> Array:
        return self._join([mixture_mean(p, w) for p in self.parts])

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        keys = jax.random.split(key, len(self.parts))
        return self._join([p.sample(k, sample_shape) for p, k in zip(self.parts, keys, strict=True)])

    def log_prob(self, value: Array) -> Array:
        own = [value[..., np.array(places)] for places in self.places]
        return sum_event(self._join([p.log_prob(x) for p, x in zip(self.parts, own, strict=True)]), self.event_dim)

    def _join(self, each: list[Array]) -> Array:
        order = np.argsort([i for places in self.places for i in places])
        return jnp.concatenate(each, -1)[..., order]


def _frequencies(x: Array, nums: np.ndarray, num: int) -> Array:
    """How often each column of x [N, n] has each of its values, after one is added to every count: [n, num].

    A column has nums values, and the frequencies of more are those of none.
    """
    count = jnp.sum(jax.nn.one_hot(x.astype(jnp.int32), num, dtype=x.dtype), 0)
    count = count + jnp.array(np.arange(num)[None] < nums[:, None], x.dtype)
    return jnp.maximum(count / jnp.sum(count, -1, keepdims=True), 1e-9)


def _of_values(logits: Array, nums: np.ndarray) -> Array:
    """logits [..., n, num] with a probability of 0 for the values that a column does not have."""
    has = jnp.array(np.arange(logits.shape[-1])[None] < nums[:, None])
    return jnp.where(expand_like(has, logits), logits, -jnp.inf)


def _ordinal(h: Array, params: Params, nums: np.ndarray) -> Array:
    """log P(x = r) for r = 0, 1, ... of P(x <= r) = sigmoid(t_r - h), [..., n] -> [..., n, num].

    See Nazabal et al. 2020, section 3.1; here the cut points t do not depend on x.
    """
    gaps = softplus(params["gaps"]) + _LEAST_GAP
    cuts = jnp.concatenate([params["cut"][:, None], params["cut"][:, None] + jnp.cumsum(gaps, -1)], -1)
    t, gaps = (expand_like(a, h[..., None]) for a in (cuts, gaps))
    above, below = t - h[..., None], h[..., None] - t
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)) subtracts no nearly equal numbers.
    inside = -softplus(-above[..., 1:]) - softplus(-below[..., :-1]) + jnp.log(-jnp.expm1(-gaps))
    first, last = -softplus(-above[..., :1]), -softplus(-below)
    inside = jnp.concatenate([first, inside, last[..., -1:]], -1)
    is_last = expand_like(jnp.array(np.arange(inside.shape[-1])[None] == nums[:, None] - 1), inside)
    return jnp.where(is_last, jnp.concatenate([first, last], -1), inside)
