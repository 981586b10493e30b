"""How well each latent dimension stands for one factor of variation: figures of codes and of the true factors.

codes: [N, L] numbers, such as the means of q(z | x), one row per example. factors: [N, F] whole numbers, of the same
examples. Figures per factor are in the order of the columns of `factors`. A factor that has one value in all examples
has no information to find, and its figures are NaN where they are shares of it. Functions raise ValueError unless the
arrays are such.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax.distributions import gaussian_log_prob

NUM_BINS = 20  # of each code, as in disentanglement_lib
_LEAST_VARIANCE = 1e-12  # below it a code counts as constant
_LEAST = 1e-11  # added to importances, whose logarithm is taken; as in disentanglement_lib
_VALUES = 2**22  # numbers, about, in the largest array of the information from q(z | x)


class Dci(NamedTuple):
    """The figures of Eastwood & Williams 2018, from 0 to 1."""

    disentanglement: float  # how much each code is about one factor alone
    completeness: float  # how much each factor is in one code alone
    informativeness: float  # the accuracy of the predictors
    completeness_of: np.ndarray  # [F]
    informativeness_of: np.ndarray  # [F]
    importance: np.ndarray  # [L, F], of each code for the prediction of each factor; the sum of a column is 1


def entropies(factors: Any) -> np.ndarray:
    """The entropy of each factor over the examples, in nats: [F]."""
    shares = [np.unique(factor, return_counts=True)[1] / len(factor) for factor in _factors(factors).T]
    return np.array([-np.sum(share * np.log(share)) for share in shares])


def binned_information(codes: Any, factors: Any, *, num_bins: int = NUM_BINS) -> np.ndarray:
    """The mutual information of each factor and each code in `num_bins` bins of equal width, in nats: [F, L]."""
    codes, factors = _pair(codes, factors)
    bins = [np.digitize(code, np.histogram(code, num_bins)[1][:-1]) for code in codes.T]
    return np.array([[_information(factor, code) for code in bins] for factor in factors.T])


def information_from_posterior(
    key: Array,
    mean: Any,
    log_var: Any,
    factors: Any,
    *,
    num_samples: int = 5000,
    progress: Callable[[range], Iterator[int]] = iter,
) -> np.ndarray:
    """The mutual information of each factor v and each dimension of z under q, in nats: [F, L]. No bins are needed.

    It is the average of log q(z_d | v) - log q(z_d) over samples z ~ q(z | x). Here q(z_d) is the average over all N
    examples of N(z_d | mean, exp(log_var)), and q(z_d | v) is that over the examples with the same value v of the
    factor. See Chen et al. 2018 (arXiv:1802.04942), section 4 and appendix C. mean, log_var: [N, L], of q(z | x).
    num_samples: of z, from as many examples, in turn where there are fewer. Memory grows with N L alone.
    """
    mean, factors = _pair(mean, factors)
    if np.shape(log_var) != mean.shape:
        raise ValueError(f"log_var has shape {np.shape(log_var)}; expected that of mean, {mean.shape}.")
    arrays = [jnp.asarray(array, jnp.float32) for array in (mean, log_var)]
    groups = [np.unique(factor, return_inverse=True)[1] for factor in factors.T]
    group = jnp.asarray(np.stack(groups, -1), jnp.int32)
    size, total = min(num_samples, 256), np.zeros((factors.shape[1], mean.shape[1]))
    # Evenly spaced because data may be sorted.
    index = np.arange(num_samples) * len(mean) // num_samples if num_samples < len(mean) else np.arange(num_samples)
    for start in progress(range(0, num_samples, size)):
        part = index[np.minimum(np.arange(start, start + size), num_samples - 1)] % len(mean)
        each = _log_ratios(jax.random.fold_in(key, start), jnp.asarray(part, jnp.int32), *arrays, group)
        total += np.sum(np.asarray(each)[: num_samples - start], 0, dtype=np.float64)
    return total / num_samples


def gap(information: Any, entropy: Any) -> np.ndarray:
    """(I_1 - I_2) / H of each factor, [F], where I_1 and I_2 are the largest two of its row of `information` [F, L].

    The average over the factors is the mutual information gap (MIG) of Chen et al. 2018, section 4. I_2 of a single
    code is 0. entropy: [F].
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(entropy) > 0, _lead(np.asarray(information)) / entropy, np.nan)


def mutual_information_gap(codes: Any, factors: Any, *, num_bins: int = NUM_BINS) -> np.ndarray:
    """The `gap` of each factor, [F], by `binned_information`: what disentanglement_lib averages."""
    return gap(binned_information(codes, factors, num_bins=num_bins), entropies(factors))


def separated_attributes(
    train_codes: Any,
    train_factors: Any,
    test_codes: Any,
    test_factors: Any,
    *,
    progress: Callable[[range], Iterator[int]] = iter,
) -> np.ndarray:
    """How much better the best code alone predicts each factor than the second best: [F]. Their average is SAP.

    A linear support vector machine with balanced classes predicts the factor from one code, and its score is its
    accuracy on the test examples. See Kumar et al. 2018 (arXiv:1711.00848), section 3; the machine is that of
    disentanglement_lib. The score of a second code is at least the share of one value, so that 1 cannot be reached. A
    line does not separate the middle values of a factor, so that the scores of factors of many values are low.
    """
    from sklearn.svm import LinearSVC

    (x, v), (new_x, new_v) = _pair(train_codes, train_factors), _pair(test_codes, test_factors)
    scores = np.zeros((v.shape[1], x.shape[1]))
    for f in progress(range(v.shape[1])):
        for d in range(x.shape[1]):
            if np.var(x[:, d]) > _LEAST_VARIANCE:
                predict = _fit(LinearSVC(C=0.01, class_weight="balanced", random_state=0), x[:, d : d + 1], v[:, f])
                scores[f, d] = np.mean(predict.predict(new_x[:, d : d + 1]) == new_v[:, f])
    return _lead(scores)


def dci(
    train_codes: Any,
    train_factors: Any,
    test_codes: Any,
    test_factors: Any,
    *,
    seed: int = 0,
    progress: Callable[[range], Iterator[int]] = iter,
) -> Dci:
    """Disentanglement, completeness and informativeness by gradient boosted trees, which predict each factor.

    See Eastwood & Williams 2018 (ICLR), section 2. The trees and their importances are those of disentanglement_lib.
    Their time grows with the number of values of a factor. seed: of the trees.
    """
    from sklearn.ensemble import GradientBoostingClassifier

    (x, v), (new_x, new_v) = _pair(train_codes, train_factors), _pair(test_codes, test_factors)
    importance, right = np.zeros((x.shape[1], v.shape[1])), np.zeros(v.shape[1])
    for f in progress(range(v.shape[1])):
        predict = _fit(GradientBoostingClassifier(random_state=seed), x, v[:, f])
        importance[:, f] = np.abs(getattr(predict, "feature_importances_", 0.0))
        right[f] = np.mean(predict.predict(new_x) == new_v[:, f])
    return Dci(
        disentanglement(importance),
        completeness(importance),
        float(right.mean()),
        purity(importance),
        right,
        importance,
    )


def disentanglement(importance: Any) -> float:
    """The average `purity` of the codes, weighted by their importance. importance: [L, F], at least 0.

    It is 1 if each code that matters is important for one factor alone. See Eastwood & Williams 2018, section 2.
    """
    return completeness(np.asarray(importance).T)


def completeness(importance: Any) -> float:
    """The average `purity` of the factors, weighted by their importance. importance: [L, F], at least 0.

    It is 1 if one code alone is important for each factor. See Eastwood & Williams 2018, section 2.
    """
    weight = np.sum(importance, 0)
    total = weight.sum()
    return float(np.sum(purity(importance) * weight) / total) if total else 0.0


def purity(importance: Any) -> np.ndarray:
    """1 - H / log K of each column of [K, M], where H is the entropy of the column scaled to the sum 1: [M].

    It is 1 for a column with one number above 0, and 0 for equal numbers. With K = 1 it is 1.
    """
    p = np.asarray(importance, np.float64) + _LEAST
    p = p / p.sum(0, keepdims=True)
    return 1 + np.sum(p * np.log(p), 0) / np.log(len(p)) if len(p) > 1 else np.ones(p.shape[1])


@jax.jit
def _log_ratios(key: Array, index: Array, mean: Array, log_var: Array, group: Array) -> Array:
    """log q(z_d | v) - log q(z_d) at one sample z ~ q(z | x) of each of the examples `index` [S]: [S, F, L]."""
    noise = jax.random.normal(key, (len(index), mean.shape[1]))

    def log_average(logs: Array, mask: Array) -> Array:
        masked = jnp.where(mask[:, None], logs, -jnp.inf)
        return jax.nn.logsumexp(masked, 0) - jnp.log(jnp.sum(mask).astype(logs.dtype))

    def one(row: tuple[Array, Array]) -> Array:
        i, noise = row
        z = mean[i] + jnp.exp(0.5 * log_var[i]) * noise
        logs = gaussian_log_prob(z[None], mean, log_var)  # [N, L]
        same = jax.lax.map(lambda column: log_average(logs, column == column[i]), group.T)  # [F, L]
        return same - log_average(logs, jnp.ones(len(logs), bool))[None]

    return jax.lax.map(one, (index, noise), batch_size=max(1, min(len(index), _VALUES // mean.size)))


def _information(a: np.ndarray, b: np.ndarray) -> float:
    """The mutual information of two arrays of whole numbers, in nats."""
    (values, i), (others, j) = np.unique(a, return_inverse=True), np.unique(b, return_inverse=True)
    joint = np.zeros((len(values), len(others)))
    np.add.at(joint, (i, j), 1 / len(a))
    product = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    some = joint > 0
    return max(0.0, float(np.sum(joint[some] * np.log(joint[some] / product[some]))))


def _lead(scores: np.ndarray) -> np.ndarray:
    """The largest minus the second largest number of each row; the second one of a single column is 0."""
    top = np.sort(scores, 1)[:, -2:]
    return top[:, -1] - (top[:, 0] if top.shape[1] > 1 else 0)


def _fit(classifier: Any, x: np.ndarray, v: np.ndarray) -> Any:
    """The fitted classifier; one that always says the same where there is one class, which the others refuse."""
    from sklearn.dummy import DummyClassifier

    return (classifier if len(np.unique(v)) > 1 else DummyClassifier()).fit(x, v)


def _factors(factors: Any) -> np.ndarray:
    factors = np.asarray(factors)
    if factors.ndim != 2 or factors.dtype.kind not in "bui" or not factors.size:
        raise ValueError(f"The factors are {factors.dtype} of shape {factors.shape}; expected whole numbers, [N, F].")
    return factors


def _pair(codes: Any, factors: Any) -> tuple[np.ndarray, np.ndarray]:
    codes, factors = np.asarray(codes), _factors(factors)
    if codes.ndim != 2 or codes.dtype.kind not in "buif" or len(codes) != len(factors) or not codes.size:
        raise ValueError(
            f"The codes are {codes.dtype} of shape {codes.shape}; expected numbers of shape ({len(factors)}, L)."
        )
    if not np.isfinite(codes).all():
        raise ValueError("Some codes are not finite; expected finite numbers.")
    return codes.astype(np.float64), factors
