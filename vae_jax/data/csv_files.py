"""Read and write .csv and .tsv files.

A file is read once if nothing is wrong with it. Otherwise it is read again, cell by cell, to say what is wrong where.
"""

from __future__ import annotations

import csv
import gzip
from array import array
from collections.abc import Iterator, Mapping
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from vae_jax.data.columns import (
    BLOCK,
    BOOLS,
    LABEL_BYTES,
    TOO_LARGE,
    Columns,
    Content,
    Fault,
    Faults,
    add_fault,
    as_float32,
    as_label,
    find_columns,
    in_order,
    is_infinite,
    is_missing,
    is_number,
    refuse,
    some,
)
from vae_jax.data.files import check_memory, write_whole
from vae_jax.errors import UserError
from vae_jax.progress import plural

MAX_RECORD = 1 << 22  # characters of one row of a .csv file: a table of 200,000 columns fits


def read_csv(
    path: Path, label_column: str, covariate_columns: tuple[str, ...], missing: bool, texts: bool
) -> tuple[Columns, *Content]:
    source = repr(str(path))
    compressed = path.suffix.lower() == ".gz"
    with (gzip.open if compressed else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
        delimiter, header = _header(file, ending(path).lower(), source)
        columns = find_columns(header, label_column, covariate_columns, missing, source)
        bools = _bool_columns(file, delimiter, columns)
        codes, seen = array("i"), dict[str, int]()
        words = _text_columns(file, delimiter, columns, bools) if texts else {}
        values = as_float32(_blocks(file, delimiter, columns, bools, words, codes, seen), columns, source)
        if values is None or any(is_missing(label) or is_infinite(label) for label in seen):
            refuse(_csv_faults(file, delimiter, columns, bools, words), columns, source)
            raise ValueError("it changes while it is read")
        label = as_label(codes, seen) if columns.label is not None else None
        return columns, values, label, in_order(values, columns, words)


def ending(path: Path) -> str:
    """The ending of a file's name: `.csv`, or `.csv.gz` if the file is compressed."""
    return "".join(path.suffixes[-2:]) if path.suffix.lower() == ".gz" else path.suffix


def _header(file: Any, suffix: str, source: str) -> tuple[str, list[str]]:
    """The delimiter and the names of the columns. Raises UserError if there is no header."""
    found, first_error = [], None
    for delimiter in "\t,;" if suffix.startswith(".tsv") else ",\t;":
        try:
            found.append((delimiter, [cell.strip() for cell in next(_records(file, delimiter), (0, []))[1]]))
        except ValueError as error:
            first_error = first_error or error
    if not found:
        raise first_error or ValueError("it has no first line")
    delimiter, names = max(found, key=lambda each: len(each[1]))  # the first of those with as many
    if not names:
        raise UserError(f"{source} is empty or begins with an empty line; expected the names of the columns.")
    if all(map(is_number, names)):
        raise UserError(
            f"{source} has no header: its first line begins with {some(names[:3])}; expected the names of the "
            "columns. Add a line with them."
        )
    return delimiter, names


def _lines(file: Any, pending: list[int]) -> Iterator[str]:
    """The lines of a file. `pending` counts the characters since it was last set to 0."""
    number, total, checked = 0, 0, 0
    while line := file.readline(MAX_RECORD):
        number += 1
        total += len(line)
        if total > checked:  # a compressed file can be a thousand times as large
            check_memory(total)
            checked = total + MAX_RECORD
        pending[0] += len(line)
        if pending[0] >= MAX_RECORD:
            raise ValueError(f"the row in line {number} has more than {MAX_RECORD} characters")
        if "\0" in line:
            raise ValueError(f"line {number} holds a NUL byte")
        yield line


def _records(file: Any, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The number of the first line of each row of the file, header and empty lines included, and its cells."""
    file.seek(0)
    pending, line = [0], 1
    # `strict` refuses quotes that do not end, instead of taking the rest of the file as one cell.
    reader = csv.reader(_lines(file, pending), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            yield line, row
            pending[0], line = 0, reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"the row in line {line} is not one: {error}") from None


def _rows(file: Any, delimiter: str, width: int) -> Iterator[tuple[int, list[str]]]:
    """The rows after the header. Raises ValueError if there is none, or for one with more or fewer cells."""
    records, empty, some = _records(file, delimiter), 0, False
    next(records)
    for line, row in records:
        if not row:
            empty = empty or line
        elif empty:
            raise ValueError(f"line {empty} is empty, and rows follow it")
        elif len(row) != width:
            raise ValueError(f"line {line} has {plural(len(row), 'cell')}, and the header has {width}")
        else:
            some = True
            yield line, row
    if not some:
        raise ValueError("it has a header and no rows")


def _bool_columns(file: Any, delimiter: str, columns: Columns) -> tuple[int, ...]:
    """The places of the columns that hold true or false in the first row, or the first where they are not missing."""
    unknown, found = set(columns.numeric), set[int]()
    for _, row in _rows(file, delimiter, len(columns.names)):
        found |= {i for i in unknown if row[i].strip().lower() in BOOLS}
        unknown = {i for i in unknown if columns.missing and is_missing(row[i])}
        if not unknown:
            break
    return tuple(sorted(found))


def _text_columns(file: Any, delimiter: str, columns: Columns, bools: tuple[int, ...]) -> dict[int, dict[str, int]]:
    """By its place, an empty dict for each column of x in which a cell is text."""
    own, found = [i for i in columns.numeric if i not in (*columns.covariates, *bools)], set[int]()
    for _, row in _rows(file, delimiter, len(columns.names)):
        found |= {i for i in own if i not in found and _fault(row[i], False, False) == "text"}
    return {i: {} for i in sorted(found)}


def _blocks(
    file: Any,
    delimiter: str,
    columns: Columns,
    bools: tuple[int, ...],
    texts: dict[int, dict[str, int]],
    codes: array[int],
    seen: dict[str, int],
) -> Iterator[np.ndarray]:
    """Blocks [n, K] of the numeric columns as float64. A cell that is not a number becomes inf and ends the last block.

    A missing cell becomes NaN.

    texts: get the text of each cell of their columns, whose number in the order of their first cells stands for it.
    codes, seen: get the text of each label: its place in `seen`, by row, and all different texts.
    """
    num, label, buffer = len(columns.numeric), columns.label, array("d")
    as_block = lambda: np.frombuffer(buffer).reshape(-1, num)  # noqa: E731
    for _, row in _rows(file, delimiter, len(columns.names)):
        for i in bools:
            row[i] = BOOLS.get(row[i].strip().lower(), row[i] if is_missing(row[i]) else "inf")
        for i, words in texts.items():
            cell = row[i].strip()
            row[i] = "nan" if is_missing(cell) else str(words.setdefault(cell, len(words)))
        if label is not None:
            codes.append(seen.setdefault(row.pop(label), len(seen)))
        try:
            try:
                values = [*map(float, row)]
            except ValueError:
                values = [nan if is_missing(cell) else float(cell) for cell in row]
        except ValueError:
            yield np.full((1, num), np.inf)
            return
        if "_" in "".join(row):  # which `float` skips
            yield np.full((1, num), np.inf)
            return
        buffer.extend(values)
        if len(buffer) >= BLOCK:
            check_memory(LABEL_BYTES * len(seen), "its different labels take")
            yield as_block()
            buffer = array("d")
    if buffer:
        yield as_block()


def _csv_faults(
    file: Any, delimiter: str, columns: Columns, bools: tuple[int, ...], texts: Mapping[int, Any]
) -> Faults:
    faults: Faults = {}
    for line, row in _rows(file, delimiter, len(columns.names)):
        for i, cell in enumerate(row):
            may_miss = columns.missing and i != columns.label and i not in columns.covariates
            if (kind := _fault(cell, i == columns.label or i in texts, i in bools)) and not (
                may_miss and is_missing(cell)
            ):
                add_fault(faults, kind, columns.names[i], Fault(1, line, f"line {line}", cell))
    return faults


def _fault(cell: str, is_label: bool, is_bool: bool) -> str:
    """What is wrong with a cell: a kind of fault, or nothing."""
    if not is_label and not is_bool and is_number(cell) and abs(float(cell)) < TOO_LARGE:
        return ""  # nearly every cell
    word = cell.strip().lower()
    if is_missing(word) or is_infinite(word):
        return "missing"
    if is_label or (is_bool and word in BOOLS):
        return ""
    if not is_number(word):
        return "mixed" if word in BOOLS else "text"
    return "mixed" if is_bool else "large"


def write_csv(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Write columns [N], by name, as a .csv file with a header, whole or not at all. NaN becomes an empty cell.

    Numbers have the fewest digits that read back equally, and whole numbers have no point. Raises UserError for text
    that UTF-8 cannot hold.
    """

    def text(value: Any) -> str:
        if isinstance(value, np.floating):
            return "" if np.isnan(value) else str(value).removesuffix(".0")
        return str(value)

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows([text(value) for value in row] for row in zip(*columns.values(), strict=True))

    try:
        write_whole(path, write)
    except UnicodeEncodeError:
        raise UserError(f"{path} cannot be written: a text holds half a character. Give --out=x.npz.") from None
