"""How unlikely an example is beside the training examples, and how well a score tells anomalies from the rest.

The functions take arrays of scores, one number per example, and compute in float64. NumPy is enough for them.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def tail(train: ArrayLike, new: ArrayLike) -> NDArray[np.float64]:
    """The share of examples that are as unlikely as each new one or more unlikely, [N], [M] -> [M].

    train, new: scores that are lower for unlikelier examples, such as log p(x). With n of the N training scores at most
    the new score, the share is (1 + n) / (1 + N): the new example counts as one of them. So the share is at least
    1 / (1 + N), and it is a p-value: a new example whose score can stand in any place among the training scores with
    the same probability has a share of at most a with a probability of at most a. See Davison & Hinkley 1997, equation
    4.11, and Phipson & Smyth 2010. A model rates the examples that it was trained on higher than others of their law,
    whose shares are then too small: give the scores of held-out examples as `train` for p-values.

    The share of a new NaN is NaN. A NaN of the training counts as at most every score.
    """
    train, new = _scores(train, "train"), _scores(new, "new")
    counted = np.searchsorted(np.sort(np.where(np.isnan(train), -np.inf, train)), new, "right")
    return np.where(np.isnan(new), np.nan, (1 + counted) / (1 + len(train)))


def auroc(score: ArrayLike, label: ArrayLike) -> float:
    """The probability that a random anomaly has a higher score than a random other example; ties count half.

    score, label: [N]; the label is true or 1 for anomalies. It is the area under the ROC curve, and the rank sum
    statistic U of the anomalies divided by the number of pairs (Hanley & McNeil 1982). It is NaN if a score is NaN.
    Raises ValueError if there are not both anomalies and other examples.
    """
    score, label = _labelled(score, label)
    return _or_nan(score, np.mean(_above(score[label], score[~label])))


def auroc_error(score: ArrayLike, label: ArrayLike) -> float:
    """The standard error of `auroc` over draws of both kinds of examples, without an assumption on their laws.

    It is sqrt(var(a) / m + var(b) / n): a is the share of the n other examples below each of the m anomalies, and b is
    the share of the m anomalies above each of the n other examples (DeLong et al. 1988, equations 5 to 7). It is 0
    where the two kinds do not overlap, and NaN if there are fewer than two examples of a kind. Raises what `auroc`
    raises.
    """
    score, label = _labelled(score, label)
    anomalies, others = score[label], score[~label]
    if min(len(anomalies), len(others)) < 2:
        return np.nan
    a, b = _above(anomalies, others), _above(-others, -anomalies)
    return _or_nan(score, np.sqrt(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b)))


def average_precision(score: ArrayLike, label: ArrayLike) -> float:
    """The mean, over the anomalies, of the precision where the anomaly's own score is the threshold.

    score, label: as for `auroc`. The precision at a threshold is the share of anomalies among the examples whose score
    is at least the threshold, so that examples of one score enter together. It is the area under the curve of the
    precision against the recall, in steps (Manning, Raghavan & Schuetze 2008, section 8.4). It is NaN if a score is
    NaN. Raises what `auroc` raises.
    """
    score, label = _labelled(score, label)
    anomalies = score[label]
    found, all_found = (len(a) - np.searchsorted(np.sort(a), anomalies, "left") for a in (anomalies, score))
    return _or_nan(score, np.mean(found / all_found))


def _above(first: NDArray, second: NDArray) -> NDArray[np.float64]:
    """The share of `second` below each of `first`, where an equal one counts half."""
    second = np.sort(second)
    below, at_most = (np.searchsorted(second, first, side) for side in ("left", "right"))
    return (below + at_most) / (2 * len(second))


def _or_nan(score: NDArray, figure: np.floating) -> float:
    return np.nan if np.isnan(score).any() else float(figure)


def _scores(score: ArrayLike, name: str) -> NDArray:
    score = np.asarray(score)
    if score.ndim != 1 or score.dtype.kind not in "fiu":
        raise ValueError(f"{name} has shape {score.shape} and type {score.dtype}; expected numbers of shape [N].")
    return score


def _labelled(score: ArrayLike, label: ArrayLike) -> tuple[NDArray, NDArray[np.bool_]]:
    score, label = _scores(score, "score"), np.asarray(label)
    if label.shape != score.shape or not np.isin(label, (0, 1)).all():
        raise ValueError(f"label has shape {label.shape}; expected one 0 or 1 for each of the {len(score)} scores.")
    label = label.astype(bool)
    if label.all() or not label.any():
        raise ValueError(f"{label.sum()} of the {len(label)} examples are anomalies; expected some, and not all.")
    return score, label
