"""Read .parquet files, if pyarrow is installed."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vae_jax.data.columns import (
    BLOCK,
    LABEL_BYTES,
    TOO_LARGE,
    Columns,
    Content,
    Fault,
    Faults,
    add_fault,
    as_float32,
    find_columns,
    in_order,
    is_infinite,
    is_missing,
    refuse,
    some,
)
from vae_jax.data.files import check_memory
from vae_jax.errors import UserError


def read_parquet(
    path: Path, label_column: str, covariate_columns: tuple[str, ...], missing: bool, texts: bool
) -> tuple[Columns, *Content]:
    source = repr(str(path))
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"Reading {source} needs pyarrow. Install it: python -m pip install 'vae_jax[parquet]'"
        ) from None
    # Only the types of Arrow are used: whatever else pandas has written into the file stays unread.
    with parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        columns = find_columns(schema.names, label_column, covariate_columns, missing, source)
        words: dict[int, dict[str, int]] = {
            i: {} for i in columns.numeric if texts and i not in columns.covariates and _is_text(schema.types[i])
        }
        _check_types(schema, columns, words, source)
        check_memory(8 * file.metadata.num_rows * len(columns.names))
        seen, labels = dict[str, int](), list[np.ndarray]()
        values = as_float32(_parquet_blocks(file, columns, words, labels, seen), columns, source)
        if values is None:
            faults: Faults = {}
            start = 0
            for batch in file.iter_batches(_batch_rows(columns)):
                _add_faults(faults, batch, columns, words, start)
                start += len(batch)
            refuse(faults, columns, source)
            raise ValueError("it changes while it is read")
        if not len(values):
            raise ValueError("it has no rows")
        label = _joined(labels, seen) if columns.label is not None else None
        return columns, values, label, in_order(values, columns, words)


def _check_types(schema: Any, columns: Columns, words: Container[int], source: str) -> None:
    """Raise UserError for columns of other types than numbers, and strings for the label and the columns of `words`."""
    if indices := [name for name in schema.names if re.fullmatch(r"__index_level_\d+__", name)]:
        raise UserError(f"{source} holds the index of pandas, {some(indices)}. Save it with index=False.")
    texts, others = [], []
    for i, (name, kind) in enumerate(zip(schema.names, schema.types, strict=True)):
        if _is_text(kind):
            texts.extend([name] * (i != columns.label and i not in words))
        elif not _is_numeric(kind):
            others.append(f"{name} ({kind})")
    refuse({"text": {name: Fault(1, 0, "", "") for name in texts}} if texts else {}, columns, source)
    if others:
        raise UserError(
            f"{source} has columns of other types than numbers, bools and strings: {some(others)}. Leave them out."
        )


def _plain(kind: Any) -> Any:
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: Any) -> bool:
    return str(_plain(kind)) in ("string", "large_string", "string_view")


def _is_numeric(kind: Any) -> bool:
    import pyarrow as pa

    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
    return any(test(_plain(kind)) for test in tests)


def _parquet_blocks(
    file: Any, columns: Columns, words: dict[int, dict[str, int]], labels: list[np.ndarray], seen: dict[str, int]
) -> Iterator[np.ndarray]:
    """Blocks [n, K] of the numeric columns as float64; missing values are NaN, and a row without a label is inf.

    words: get the texts of the columns of text, whose numbers in the order of their first cells stand for them.
    labels, seen: get the labels of each block, and if these are strings, their places in `seen`.
    """
    for batch in file.iter_batches(_batch_rows(columns)):
        block = np.empty((len(batch), len(columns.numeric)))
        for j, i in enumerate(columns.numeric):
            block[:, j] = _codes(batch.column(i), words[i]) if i in words else _floats(batch.column(i))
        if columns.label is not None:
            if _missing_labels(batch.column(columns.label)).any():
                block[:] = np.inf
            else:
                labels.append(_label_values(batch.column(columns.label), seen))
                check_memory(LABEL_BYTES * len(seen), "its different labels take")
        yield block


def _batch_rows(columns: Columns) -> int:
    return max(1, BLOCK // len(columns.names))


def _codes(column: Any, words: dict[str, int]) -> np.ndarray:
    """A column of strings as the numbers of its texts, [n]; NaN where a text is missing."""
    encoded = _encoded(column)
    texts = [word.strip() if word is not None else "" for word in encoded.dictionary.to_pylist()]
    numbers = [np.nan if is_missing(text) else words.setdefault(text, len(words)) for text in texts]
    return np.array([*numbers, np.nan])[encoded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)]


def _floats(column: Any) -> np.ndarray:
    import pyarrow as pa

    column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def _missing_labels(column: Any) -> np.ndarray:
    """Which labels are missing, [n] of bools."""
    missing = column.is_null().to_numpy(zero_copy_only=False)
    if not _is_text(column.type):
        return missing | ~np.isfinite(_floats(column))
    encoded = _encoded(column)
    words = np.array(
        [word is None or is_missing(word) or is_infinite(word) for word in encoded.dictionary.to_pylist()] + [True]
    )
    return missing | words[encoded.indices.fill_null(len(words) - 1).to_numpy(zero_copy_only=False)]


def _encoded(column: Any) -> Any:
    """A column of strings as the places of its values among those that differ."""
    import pyarrow as pa

    return column if pa.types.is_dictionary(column.type) else column.dictionary_encode()


def _label_values(column: Any, seen: dict[str, int]) -> np.ndarray:
    import pyarrow as pa

    if _is_text(column.type):
        encoded = _encoded(column)
        codes = np.array([seen.setdefault(word or "", len(seen)) for word in encoded.dictionary.to_pylist()], np.int32)
        return codes[encoded.indices.to_numpy()]
    column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    return _floats(column) if pa.types.is_decimal(column.type) else column.to_numpy(zero_copy_only=False)


def _joined(labels: list[np.ndarray], seen: dict[str, int]) -> np.ndarray:
    values = np.concatenate(labels)
    if not seen:
        return values
    check_memory(4 * max(map(len, seen)) * (len(values) + len(seen)), "its label column takes")
    return np.array(list(seen))[values]


def _add_faults(faults: Faults, batch: Any, columns: Columns, words: Container[int], start: int) -> None:
    """Add the faults of a batch whose first row is the row `start` of the file."""
    for i, name in enumerate(columns.names):
        column = batch.column(i)
        if i == columns.label:
            wrong = {"missing": _missing_labels(column)}
        else:
            x = _codes(column, {}) if i in words else _floats(column)
            may_miss = columns.missing and i not in columns.covariates
            wrong = {
                "missing": np.isinf(x) if may_miss else ~np.isfinite(x),
                "large": np.isfinite(x) & (np.abs(x) >= TOO_LARGE),
            }
        for kind, cells in wrong.items():
            if cells.any():
                first = int(np.argmax(cells))
                row, cell = start + first, str(column[first])
                fault = Fault(int(np.count_nonzero(cells)), row, f"row {row} (counted from 0)", cell)
                add_fault(faults, kind, name, fault)
