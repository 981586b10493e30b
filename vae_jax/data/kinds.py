"""The kinds of a table's columns for the likelihood `mixed`: guessed, checked, and their names turned into numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vae_jax import progress
from vae_jax.config import Config
from vae_jax.data.columns import is_number
from vae_jax.data.splits import Dataset, Split
from vae_jax.errors import UserError

MAX_VALUES = 1000  # of a column of text: each one is an output of the decoder
MOST_DIFFERENT = 20  # texts, above which most rows of a category must share theirs with another row
LARGEST_COUNT = 255  # of a guess: beside larger numbers the standard deviation of a Poisson, their root, is small
SPREAD = 10  # from such a ratio of the largest to the smallest on, positive numbers are taken as log-normal
_LISTED = 5  # names in a line


def resolve(config: Config, dataset: Dataset) -> Config:
    """The config of a `mixed` likelihood with a kind for every column of the data, in the data's order.

    likelihood_options holds those that are given, as `mixed.mixed` has them. The others are guessed, and a line of the
    log says so: text, true and false, and 0 and 1 are a category; other whole numbers from 0 to 255 are counts;
    positive numbers are `positive` if the largest is at least 10 times the smallest; all others are `real`. Values of a
    category that are not 0 .. K - 1 are given by their names. Raises UserError if a kind does not suit its column, and
    for text that is hardly a category: numbers beside a few words, or a text of its own in most rows.
    """
    given = config.likelihood_options.get("columns", {})
    if not isinstance(given, Mapping):
        raise UserError(f"The columns of likelihood_options are {str(given)[:100]}; expected a JSON object of kinds.")
    columns = _names(dataset)
    if unknown := [name for name in given if name not in columns]:
        raise UserError(
            f"likelihood_options has a kind for the column {unknown[0]!r}, and {dataset.name} has none of that name. "
            f"Choose among {', '.join(columns)[:300]}."
        )
    found: dict[str, Any] = {}
    for i, name in enumerate(columns):
        values, texts = _values(dataset, i), dataset.texts[i] if dataset.texts else ()
        if name in given:
            found[name] = _with_names(name, given[name], values, texts)
        else:
            found[name] = _guess(name, values, texts, _num_rows(dataset, i))
    guessed = {name: kind for name, kind in found.items() if name not in given}
    if guessed:
        shown = ", ".join(f"{name} {_short(kind)}" for name, kind in [*guessed.items()][:30])
        more = f" and {len(guessed) - 30} more" if len(guessed) > 30 else ""
        progress.say(
            f"{dataset.name}: the kinds of these columns are guessed: {shown}{more}. "
            f"--config.likelihood_options='{{\"columns\": {{NAME: KIND}}}}' gives others."
        )
    return replace(config, likelihood_options={**config.likelihood_options, "columns": found})


def encode(dataset: Dataset, config: Config) -> Dataset:
    """The table with the numbers of a `mixed` likelihood: the place of a name among the names of its category.

    Raises UserError, which names the column, for a value that its kind does not have.
    """
    kinds = config.likelihood_options["columns"]
    columns = _names(dataset) if dataset.columns else tuple(kinds)  # an array has those of the training, in their order
    if len(dataset.train.x.shape) != 2 or dataset.train.x.shape[1] != len(columns) or dataset.stream is not None:
        raise UserError(
            f"{dataset.name} has examples of shape {dataset.train.x.shape[1:]}; expected a table in memory with the "
            f"columns {', '.join(kinds)[:300]}. Give such a table."
        )

    def of(split: Split) -> Split:
        x = np.array(split.x, np.float32)
        for i, name in enumerate(columns):
            x[:, i] = _encoded(dataset, i, kinds[name], x[:, i], name)
        return split._replace(x=x)

    validation = None if dataset.validation is None else of(dataset.validation)
    return dataset._replace(train=of(dataset.train), validation=validation, test=of(dataset.test), texts=())


def decode(x: np.ndarray, config: Config) -> dict[str, np.ndarray]:
    """The columns of x [N, D] by their names, with the types of their kinds, such as the names of a category.

    Counts are whole numbers, unless one of them is an expectation with a fraction.
    """
    columns = {}
    for column, (name, kind) in zip(x.T, config.likelihood_options["columns"].items(), strict=True):
        if isinstance(kind, Mapping):
            (names,) = kind.values()
            columns[name] = np.array(names)[column.astype(int)]
        else:
            is_whole = kind not in ("real", "positive") and np.all(column == np.floor(column))
            columns[name] = column.astype(np.int64) if is_whole else column
    return columns


def _encoded(dataset: Dataset, i: int, kind: Any, x: np.ndarray, column: str) -> np.ndarray:
    """The values of one column as numbers of its kind; NaN stays NaN."""
    seen = ~np.isnan(x)
    texts = dataset.texts[i] if dataset.texts else ()
    if isinstance(kind, Mapping):
        ((name, names),) = kind.items()
        own = [*texts] if texts else [_text(value) for value in np.unique(x[seen])]
        if unknown := [text for text in own if text not in names]:
            raise UserError(
                f"{dataset.name}, column {column!r}, has the value {unknown[0]!r}; the kind {name} has "
                f"{', '.join(names)[:300]}.",
                "Give a table of these values, or another kind.",
                "Give a table of these values.",
            )
        places = np.array([names.index(text) for text in own], np.float32)
        index = x[seen].astype(int) if texts else np.searchsorted(np.unique(x[seen]), x[seen])
        x = x.copy()
        x[seen] = places[index]
        return x
    if texts:
        raise UserError(
            f"{dataset.name}, column {column!r}, is text ({texts[0]!r}); expected numbers for the kind {kind!r}.",
            "Give a category as its kind, or leave the column out.",
            "Give a table with numbers there.",
        )
    name, _, num = kind.partition(":")
    most = int(num) - 1 if num else np.inf
    whole = (x >= 0) & (x <= most) & (x == np.floor(x))
    fits = {"real": seen, "positive": x > 0}.get(name, whole)
    if not np.all(fits | ~seen):
        row = int(np.argmin(fits | ~seen))
        expected = {"positive": "numbers above 0", "count": "0, 1, 2, ..."}.get(name, f"0 to {most:g}")
        raise UserError(
            f"{dataset.name}, column {column!r}, has the value {_text(x[row])}; expected {expected} for the kind "
            f"{kind!r}.",
            "Give another kind in likelihood_options.",
            "Give a table with such numbers.",
        )
    return x


def _guess(name: str, values: np.ndarray, texts: Sequence[str], num_rows: int) -> Any:
    if not len(values):
        raise UserError(f"Column {name!r} has no values: all are missing. Leave it out of the file.")
    if texts:
        _check_texts(name, texts, num_rows)
        return {"category": sorted(texts)}
    if not np.all(np.isin(values, (0, 1))):
        if np.all(values >= 0) and np.all(values == np.floor(values)) and values[-1] <= LARGEST_COUNT:
            return "count"
        return "positive" if values[0] > 0 and values[-1] >= SPREAD * values[0] else "real"
    return "category:2"


def _with_names(column: str, kind: Any, values: np.ndarray, texts: Sequence[str]) -> Any:
    """A given kind, with the names of its values in place of their number if they are not 0 .. K - 1."""
    if not isinstance(kind, str) or ":" not in kind:
        return kind
    name, _, num = kind.partition(":")
    own = sorted(texts) if texts else [_text(value) for value in values]
    if not texts and num.isdecimal() and set(own) <= {str(i) for i in range(int(num))}:
        return kind
    if texts and name == "ordinal":
        raise UserError(
            f"Column {column!r} is text, whose order is unknown. Give its kind as "
            f'{{"ordinal": [{", ".join(f"{text!r}" for text in own[:_LISTED])}]}}, with the names in their order.'
        )
    if num != str(len(own)):
        raise UserError(
            f"Column {column!r} has {len(own)} different values, and its kind is {kind!r}. Give {name}:{len(own)}."
        )
    return {name: own}


def _check_texts(name: str, texts: Sequence[str], num_rows: int) -> None:
    """Raise UserError for text that is hardly a category. num_rows: how many rows have a text."""
    if len(texts) > MAX_VALUES:
        raise UserError(
            f"Column {name!r} has {len(texts)} different texts; expected at most {MAX_VALUES} of a category. Leave it "
            "out of the file."
        )
    if len(texts) < 2:
        raise UserError(f"Column {name!r} has the one text {texts[0]!r} in all rows. Leave it out of the file.")
    options = json.dumps({"columns": {name: f"category:{len(texts)}"}}, ensure_ascii=False)
    given = f"or give its kind: --config.likelihood_options='{options}'."
    words = [text for text in texts if not is_number(text)]
    if 2 * sum(is_number(text.rstrip(" %").replace(",", "")) for text in texts) >= len(texts) and words:
        raise UserError(
            f"Column {name!r} holds numbers and the text {words[0]!r}; expected one of them. Write numbers as 1234.5, "
            f"leave the cell of a missing value empty, {given}"
        )
    if len(texts) > MOST_DIFFERENT and 2 * len(texts) > num_rows:
        raise UserError(
            f"Column {name!r} has {len(texts)} different texts in {num_rows} rows, as ids and dates have. Leave it out "
            f"of the file, {given}"
        )


def _names(dataset: Dataset) -> tuple[str, ...]:
    """The names of the columns: their numbers from 0 on if the data has no names."""
    shape = dataset.train.x.shape[1:]
    if len(shape) != 1 or dataset.stream is not None:
        what = "a stream" if dataset.stream is not None else f"examples of shape {shape}"
        raise UserError(f"likelihood 'mixed' is for a table in memory, and {dataset.name} has {what}. Give a table.")
    return dataset.columns or tuple(str(i) for i in range(shape[0]))


def _num_rows(dataset: Dataset, i: int) -> int:
    """How many rows of all splits have a value in a column."""
    return sum(int(np.count_nonzero(~np.isnan(split.x[:, i]))) for split in dataset[1:4] if split is not None)


def _values(dataset: Dataset, i: int) -> np.ndarray:
    """The different values of a column in all splits that are not missing, in rising order."""
    x = np.concatenate([split.x[:, i] for split in dataset[1:4] if split is not None])
    return np.unique(x[~np.isnan(x)])


def _text(value: np.floating) -> str:
    return str(value).removesuffix(".0")


def _short(kind: Any) -> str:
    if isinstance(kind, str):
        return kind
    ((name, values),) = kind.items()
    more = ", ..." if len(values) > _LISTED else ""
    return f"{name} ({', '.join(values[:_LISTED])}{more})"
