"""The columns of a table: what each is for, their values as arrays, and what is wrong with a cell."""

from __future__ import annotations

import difflib
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vae_jax import progress
from vae_jax.data.files import check_memory
from vae_jax.errors import UserError
from vae_jax.progress import plural

BLOCK = 1 << 18  # values, about, that are kept as float64 until they become float32
MAX_LISTED = 8  # names in an error
LABEL_BYTES = 200  # of one different label, as a string of Python in a dict

BOOLS = {"true": "1", "false": "0"}
TOO_LARGE = 2.0**128 - 2.0**103  # the smallest number that float32 rounds to infinity

_MISSING = re.compile(r"|na|n/a|null|[+-]?nan", re.IGNORECASE)
_INFINITE = re.compile(r"[+-]?(inf|infinity)", re.IGNORECASE)
_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


class Columns(NamedTuple):
    """The names of all columns of a file, and what each is for."""

    names: tuple[str, ...]
    label: int | None  # the place of the label column
    covariates: tuple[int, ...]
    missing: bool  # whether cells of x may be missing

    @property
    def numeric(self) -> tuple[int, ...]:
        """The places of all columns but the label column."""
        return tuple(i for i in range(len(self.names)) if i != self.label)

    @property
    def may_miss(self) -> np.ndarray:
        """Whether cells of each numeric column may be missing, [K] of bools."""
        return np.array([self.missing and place not in self.covariates for place in self.numeric])


class Fault(NamedTuple):
    """What is wrong with some cells of one column."""

    number: int  # of these cells
    row: int  # of the first of them
    where: str  # the same for a person, such as 'line 7'
    cell: str  # what the first of them holds


Faults = dict[str, dict[str, Fault]]  # kind of fault -> name of a column -> the fault
# the numeric columns, [N, K] float32, the label, [N], and by their places the texts of columns that are text
Content = tuple[np.ndarray, np.ndarray | None, dict[int, tuple[str, ...]]]


def find_columns(
    names: Sequence[str], label_column: str, covariate_columns: tuple[str, ...], missing: bool, source: str
) -> Columns:
    """Raises UserError if names of the file are empty or not unique, or if a name that was asked for is not there."""
    if "" in names:
        raise UserError(
            f"{source} has no name for column {list(names).index('') + 1} of {len(names)}. Name it, or leave it out; "
            "to_csv of pandas leaves its index out with index=False."
        )
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise UserError(f"{source} has two columns named {short(twice)}; expected different names. Rename one.")
    for what, name in (("label", label_column), *(("covariate", name) for name in covariate_columns)):
        if name not in names and (what == "covariate" or name):
            guess = difflib.get_close_matches(str(name), names, 1)
            hint = f"Did you mean {short(guess[0])}? " if guess else ""
            raise UserError(
                f"{source} has no {what} column {short(name)}.",
                f"{hint}Choose one of: {some(names)}.",
                "Give a file with such a column, as in training.",
            )
    if len(set(covariate_columns)) < len(covariate_columns):
        raise UserError(f"The covariates {some(covariate_columns)} name a column twice. Name each once.")
    if label_column and label_column in covariate_columns:
        raise UserError(f"Column {short(label_column)} is both the label and a covariate. Choose one of them.")
    if len(names) == len(covariate_columns) + bool(label_column):
        raise UserError(f"{source} has no column for x: each of its {len(names)} is label or covariate. Add one.")
    places = {name: i for i, name in enumerate(names)}
    covariates = tuple(places[name] for name in covariate_columns)
    return Columns(tuple(names), places.get(label_column), covariates, missing)


def short(name: Any) -> str:
    """A name or cell in quotes, cut to a length at which an error can be read."""
    text = str(name)
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def some(names: Iterable[str]) -> str:
    each = [short(name) for name in names]
    more = f" and {len(each) - MAX_LISTED} more" if len(each) > MAX_LISTED else ""
    return ", ".join(each[:MAX_LISTED]) + more


def as_float32(blocks: Iterable[np.ndarray], columns: Columns, source: str) -> np.ndarray | None:
    """Join blocks [n, K] of float64. Returns None if a value is not a finite float32, or is missing where none may be.

    Logs the columns of whole numbers of 64 bits that float32 does not hold exactly.
    """
    numeric = columns.numeric
    kept, size = [np.empty((0, len(numeric)), np.float32)], 0
    whole, inexact = np.ones(len(numeric), bool), np.zeros(len(numeric), bool)
    for block in blocks:
        size += block.size
        check_memory(8 * size)  # twice float32, since joining them copies them
        with np.errstate(over="ignore"):
            x = block.astype(np.float32)
        seen = np.isfinite(x)
        if not (seen | np.isnan(block) & columns.may_miss).all():
            return None
        if whole.any() and np.abs(block).max(initial=0, where=seen) > 2**24:
            inexact |= (seen & ((x != block) | (np.abs(block) >= 2**53))).any(0)
        whole &= (~seen | ((block == np.floor(block)) & (np.abs(block) < 2**64))).all(0)
        kept.append(x)
    if (whole & inexact).any():
        names = [columns.names[numeric[i]] for i in np.flatnonzero(whole & inexact)]
        progress.say(f"{source}: float32 rounds whole numbers beyond 2^24, as in {some(names)}. Leave ids out.")
    return np.concatenate(kept)


def as_label(codes: array[int], seen: dict[str, int]) -> np.ndarray:
    """The label of each row, as integers, floats or strings, from the places of its text in `seen`."""
    texts = list(seen)
    stripped = [text.strip() for text in texts]
    values: np.ndarray | None = None
    if all(map(_WHOLE.fullmatch, stripped)):
        numbers = [int(text) for text in stripped if len(text) <= 20]
        for dtype in (np.uint64, np.int64):
            limits = np.iinfo(dtype)
            if len(numbers) == len(texts) and limits.min <= min(numbers) and max(numbers) <= limits.max:
                values = np.array(numbers, dtype)  # int64 if both would do
    elif all(map(_DECIMAL.fullmatch, stripped)) and np.isfinite(floats := np.array(stripped, np.float64)).all():
        values = floats
    if values is None:
        check_memory(4 * max(map(len, texts)) * (len(codes) + len(texts)), "its label column takes")
        values = np.array(texts)
    return values[np.frombuffer(codes, np.int32)]


def is_missing(cell: str) -> bool:
    return _MISSING.fullmatch(cell.strip()) is not None


def is_infinite(cell: str) -> bool:
    return _INFINITE.fullmatch(cell.strip()) is not None


def refuse(faults: Faults, columns: Columns, source: str) -> None:
    """Raise UserError for the gravest kind of fault, if there is any."""
    if texts := faults.get("text"):
        advice = instead = "Leave text out of the file."
        if columns.label is None:
            advice = "Set --config.label_column=NAME if it is the label, or leave it out of the file."
            if not set(texts) & {columns.names[i] for i in columns.covariates}:
                advice = (
                    "Set --config.label_column=NAME if it is the label, or --config.likelihood=mixed if it is a "
                    "category, or leave it out of the file."
                )
        if any(is_number(fault.cell.replace(",", ".", 1)) for fault in texts.values() if "," in fault.cell):
            advice = instead = "Write numbers with a point: 1.5, not 1,5."
        what = f"{plural(len(texts), 'column')} of text"
        raise UserError(f"{source} has {what}: {_examples(texts)}; expected numbers.", advice, instead)
    if missing := faults.get("missing"):
        number = sum(fault.number for fault in missing.values())
        name, first = min(missing.items(), key=lambda each: each[1].row)
        counts = ", ".join(f"{short(name)} {fault.number}" for name, fault in list(missing.items())[:MAX_LISTED])
        apart = {columns.names[i] for i in (*columns.covariates, *([] if columns.label is None else [columns.label]))}
        more = f" and {len(missing) - MAX_LISTED} more columns" if len(missing) > MAX_LISTED else ""
        fill = "Fill them in, or leave out their rows or columns."
        advice = fill if columns.missing or apart & missing.keys() else f"Give --config.missing=true, or {fill.lower()}"
        raise UserError(
            f"{source} has {plural(number, 'missing or infinite value')}, the first ({short(first.cell)}) "
            f"in {first.where}, column {short(name)}; expected none. In each column: {counts}{more}.",
            advice,
            fill,
        )
    if mixed := faults.get("mixed"):
        raise UserError(f"{source} mixes numbers with true and false: {_examples(mixed)}. Write 1 and 0 for them.")
    if large := faults.get("large"):
        raise UserError(
            f"{source} holds numbers too large for float32: {_examples(large)}; expected at most 3.4e+38. "
            "Rescale the column."
        )


def _examples(faults: dict[str, Fault]) -> str:
    """The columns with a fault, and the first faulty cell of each."""
    first = [
        f"{short(name)} ({short(fault.cell)} in {fault.where})" if fault.where else short(name)
        for name, fault in list(faults.items())[:MAX_LISTED]
    ]
    more = f" and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else ""
    return ", ".join(first) + more


def add_fault(faults: Faults, kind: str, name: str, fault: Fault) -> None:
    before = faults.setdefault(kind, {}).get(name)
    faults[kind][name] = before._replace(number=before.number + fault.number) if before else fault


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def in_order(values: np.ndarray, columns: Columns, texts: Mapping[int, Iterable[str]]) -> dict[int, tuple[str, ...]]:
    """The different texts of each column of text in their order, whose places the columns of `values` then hold.

    texts: by the place of a column, its texts in the order of the numbers in `values`.
    """
    found = {}
    for place, words in texts.items():
        names, i = [*words], columns.numeric.index(place)
        found[place] = tuple(sorted(names))
        rank = np.array([found[place].index(name) for name in names], np.float32)
        seen = ~np.isnan(values[:, i])
        values[seen, i] = rank[values[seen, i].astype(int)]
    return found
