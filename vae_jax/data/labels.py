"""Number labels of any kind from 0, as the models take them."""

from __future__ import annotations

import re

import numpy as np

from vae_jax.errors import UserError

_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,99})")  # few enough digits to become an integer of Python fast


def number(y: np.ndarray, source: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number the different labels in rising order.

    y: [N] or [N, 1] of integers, bools, whole floats, strings or bytes in UTF-8. Strings are in the order of their
    characters, but numbers in the order of their values, also if all strings are whole numbers.
    Returns the label [N], int32, and the names of the labels as text: names[label[i]] is the i-th label.
    Raises UserError, which names `source`, for anything else.
    """
    advice = "Save one label per example: a whole number or a string."
    if y.ndim == 2 and y.shape[1] > 1:
        raise UserError(f"{source} has labels of shape {y.shape}; expected [N]. Save y.argmax(1) if rows are one-hot.")
    if y.ndim not in (1, 2) or not y.size:
        raise UserError(f"{source} has labels of shape {y.shape}; expected [N] or [N, 1], N at least 1. {advice}")
    if y.dtype.kind not in "biufUS":
        how = "y.astype(str)" if y.dtype.kind in "OT" else "np.unique(y, return_inverse=True)[1]"
        raise UserError(f"{source} has labels of type {y.dtype}; expected whole numbers, bools or strings. Save {how}.")
    y = y.reshape(len(y))
    if y.dtype.kind == "f" and not (whole := np.isfinite(y) & (y == np.floor(y))).all():
        first = int(np.argmin(whole))
        raise UserError(
            f"{source} has {y.dtype} labels that are not whole numbers ({len(y) - int(whole.sum())}; the first is "
            f"{y[first]} in row {first}); expected whole numbers. Save np.unique(y, return_inverse=True)[1] after "
            "removing those that are missing."
        )
    values, index = np.unique(y, return_inverse=True)
    names = [_text(value, source) for value in values]
    if "" in (stripped := [name.strip() for name in names]):
        row = int(np.argmax(index == stripped.index("")))
        raise UserError(f"{source} has an empty label in row {row}; expected one per example. Remove its examples.")
    if y.dtype.kind in "US" and all(map(_WHOLE.fullmatch, names)):
        order = sorted(range(len(names)), key=lambda i: int(names[i]))
        index, names = np.argsort(order)[index], [names[i] for i in order]
    return index.astype(np.int32), tuple(names)


def _text(value: np.generic, source: str) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise UserError(f"{source} has the label {value!r:.80}; expected UTF-8. Save y.astype(str).") from None
    return str(int(value)) if isinstance(value, np.floating) else str(value)
