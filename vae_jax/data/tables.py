"""Read the user's own tables, .csv, .tsv and .parquet files, as arrays.

A file is read once if nothing is wrong with it. Otherwise it is read again, cell by cell, to say what is wrong where.
"""

from __future__ import annotations

import csv
import difflib
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vae_jax import progress
from vae_jax.data.files import check_memory, reading
from vae_jax.errors import UserError

MAX_RECORD = 1 << 22  # characters of one row of a .csv file: a table of 200,000 columns fits
BLOCK = 1 << 18  # values, about, that are kept as float64 until they become float32
MAX_LISTED = 8  # names in an error
LABEL_BYTES = 200  # of one different label, as a string of Python in a dict

BOOLS = {"true": "1", "false": "0"}
TOO_LARGE = 2.0**128 - 2.0**103  # the smallest number that float32 rounds to infinity

_MISSING = re.compile(r"|na|n/a|null|[+-]?(nan|inf|infinity)", re.IGNORECASE)
_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


class Table(NamedTuple):
    """A table of numbers."""

    x: np.ndarray  # [N, D], float32: the columns that are neither label nor covariate, in the file's order
    columns: tuple[str, ...]  # the names of those columns
    label: np.ndarray | None  # [N], as stored: strings, integers, floats or bools; None without a label column
    covariates: np.ndarray | None  # [N, C], float32, in the order asked for; None if none were asked for


class Columns(NamedTuple):
    """The names of all columns of a file, and what each is for."""

    names: tuple[str, ...]
    label: int | None  # the place of the label column
    covariates: tuple[int, ...]

    @property
    def numeric(self) -> tuple[int, ...]:
        """The places of all columns but the label column."""
        return tuple(i for i in range(len(self.names)) if i != self.label)


class Fault(NamedTuple):
    """What is wrong with some cells of one column."""

    number: int  # of these cells
    row: int  # of the first of them
    where: str  # the same for a person, such as 'line 7'
    cell: str  # what the first of them holds


Faults = dict[str, dict[str, Fault]]  # kind of fault -> name of a column -> the fault
Content = tuple[np.ndarray, np.ndarray | None]  # the numeric columns, [N, K] float32, and the label, [N]


def read_table(path: Path, *, label_column: str = "", covariate_columns: Sequence[str] = ()) -> Table:
    """Read a .csv, .tsv or .parquet file.

    label_column: the name of the column with the labels. Empty: there is none.
    covariate_columns: the names of the columns that become `covariates`.

    A .csv or .tsv file is text in UTF-8 whose first line has the names of the columns; spaces around a name do not
    count. Commas, tabs or semicolons separate the cells, whichever make the most columns of that line. Cells are quoted
    as by Python's csv module, and empty lines may only follow the last row. Numbers are those of Python's `float`, but
    without underscores, and a column of true and false, in any case, becomes 1 and 0. Labels are integers if all are
    whole numbers of 64 bits without leading zeros; floats if all are numbers without leading zeros; and otherwise
    strings, each as it stands in its cell. A .parquet file has columns of numbers, bools and strings, and pyarrow reads
    it.

    One line on stderr says what was read, and one more if float32 does not hold all whole numbers exactly.
    Raises UserError, of one line that names the file, if the table cannot be read as described or if a cell is missing:
    empty, NA, N/A, NaN, null or infinite.
    """
    path = Path(path)
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise UserError(f"Cannot read {str(path)!r}: expected a .csv, .tsv or .parquet file.")
    if isinstance(covariate_columns, str):
        raise UserError(f"covariate_columns is the text {covariate_columns!r}; expected names. Give a tuple of them.")
    with reading(path, "a table of numbers, one named column each"):
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")  # a pipe would never end
        check_memory(path.stat().st_size, "it has")
        columns, values, label = readers[path.suffix.lower()](path, label_column, tuple(covariate_columns))
    at = {place: i for i, place in enumerate(columns.numeric)}  # where `values` has each column of the file
    own = sorted(at.keys() - columns.covariates)
    take = lambda places: np.take(values, [at[place] for place in places], 1)  # noqa: E731
    x, covariates = (take(own), take(columns.covariates)) if columns.covariates else (values, None)
    table = Table(x, tuple(columns.names[place] for place in own), label, covariates)
    _say_what_was_read(table, columns, repr(str(path)))
    return table


def _say_what_was_read(table: Table, columns: Columns, source: str) -> None:
    num = len(table.columns)
    parts = [f"{len(table.x)} {_plural('row', len(table.x))}", f"{num} {_plural('column', num)} of numbers"]
    if table.label is not None and columns.label is not None:
        name = columns.names[columns.label]
        parts.append(f"label column {name!r} with {len(np.unique(table.label))} different values")
    if columns.covariates:
        parts.append(f"covariates {_some(columns.names[i] for i in columns.covariates)}")
    progress.say(f"{source}: {', '.join(parts)}.")


# the names of columns


def _columns(names: Sequence[str], label_column: str, covariate_columns: tuple[str, ...], source: str) -> Columns:
    """Raises UserError if names of the file are empty or not unique, or if a name that was asked for is not there."""
    if "" in names:
        raise UserError(
            f"{source} has no name for column {list(names).index('') + 1} of {len(names)}. Name it, or leave it out; "
            "to_csv of pandas leaves its index out with index=False."
        )
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise UserError(f"{source} has two columns named {_short(twice)}; expected different names. Rename one.")
    for what, name in (("label", label_column), *(("covariate", name) for name in covariate_columns)):
        if name not in names and (what == "covariate" or name):
            guess = difflib.get_close_matches(str(name), names, 1)
            hint = f" Did you mean {_short(guess[0])}?" if guess else ""
            raise UserError(f"{source} has no {what} column {_short(name)}.{hint} Choose one of: {_some(names)}.")
    if len(set(covariate_columns)) < len(covariate_columns):
        raise UserError(f"The covariates {_some(covariate_columns)} name a column twice. Name each once.")
    if label_column and label_column in covariate_columns:
        raise UserError(f"Column {_short(label_column)} is both the label and a covariate. Choose one of them.")
    if len(names) == len(covariate_columns) + bool(label_column):
        raise UserError(f"{source} has no column for x: each of its {len(names)} is label or covariate. Add one.")
    places = {name: i for i, name in enumerate(names)}
    return Columns(tuple(names), places.get(label_column), tuple(places[name] for name in covariate_columns))


def _short(name: Any) -> str:
    """A name or cell in quotes, cut to a length at which an error can be read."""
    text = str(name)
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def _some(names: Iterable[str]) -> str:
    each = [_short(name) for name in names]
    more = f" and {len(each) - MAX_LISTED} more" if len(each) > MAX_LISTED else ""
    return ", ".join(each[:MAX_LISTED]) + more


# values


def _as_float32(blocks: Iterable[np.ndarray], columns: Columns, source: str) -> np.ndarray | None:
    """Join blocks [n, K] of float64. Returns None if a value is not a finite float32.

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
        if not np.isfinite(x).all():
            return None
        if whole.any() and np.abs(block).max(initial=0) > 2**24:
            inexact |= ((x != block) | (np.abs(block) >= 2**53)).any(0)
        whole &= ((block == np.floor(block)) & (np.abs(block) < 2**64)).all(0)
        kept.append(x)
    if (whole & inexact).any():
        names = [columns.names[numeric[i]] for i in np.flatnonzero(whole & inexact)]
        progress.say(f"{source}: float32 rounds whole numbers beyond 2^24, as in {_some(names)}. Leave ids out.")
    return np.concatenate(kept)


def _as_label(codes: array[int], seen: dict[str, int]) -> np.ndarray:
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


def _is_missing(cell: str) -> bool:
    return _MISSING.fullmatch(cell.strip()) is not None


def _refuse(faults: Faults, columns: Columns, source: str) -> None:
    """Raise UserError for the gravest kind of fault, if there is any."""
    if texts := faults.get("text"):
        advice = "Leave text out of the file."
        if columns.label is None:
            advice = "Set --config.label_column=NAME if it is the label, or leave it out of the file."
        if any(_is_number(fault.cell.replace(",", ".", 1)) for fault in texts.values() if "," in fault.cell):
            advice = "Write numbers with a point: 1.5, not 1,5."
        what = f"{len(texts)} {_plural('column', len(texts))} of text"
        raise UserError(f"{source} has {what}: {_examples(texts)}; expected numbers. {advice}")
    if missing := faults.get("missing"):
        number = sum(fault.number for fault in missing.values())
        name, first = min(missing.items(), key=lambda each: each[1].row)
        counts = ", ".join(f"{_short(name)} {fault.number}" for name, fault in list(missing.items())[:MAX_LISTED])
        more = f" and {len(missing) - MAX_LISTED} more columns" if len(missing) > MAX_LISTED else ""
        raise UserError(
            f"{source} has {number} missing or infinite {_plural('value', number)}, the first ({_short(first.cell)}) "
            f"in {first.where}, column {_short(name)}; expected none. In each column: {counts}{more}. "
            "Fill them in, or leave out their rows or columns."
        )
    if mixed := faults.get("mixed"):
        raise UserError(f"{source} mixes numbers with true and false: {_examples(mixed)}. Write 1 and 0 for them.")
    if large := faults.get("large"):
        raise UserError(
            f"{source} holds numbers too large for float32: {_examples(large)}; expected at most 3.4e+38. "
            "Rescale the column."
        )


def _plural(word: str, number: int) -> str:
    return word if number == 1 else f"{word}s"


def _examples(faults: dict[str, Fault]) -> str:
    """The columns with a fault, and the first faulty cell of each."""
    first = [
        f"{_short(name)} ({_short(fault.cell)} in {fault.where})" if fault.where else _short(name)
        for name, fault in list(faults.items())[:MAX_LISTED]
    ]
    more = f" and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else ""
    return ", ".join(first) + more


def _add(faults: Faults, kind: str, name: str, fault: Fault) -> None:
    before = faults.setdefault(kind, {}).get(name)
    faults[kind][name] = before._replace(number=before.number + fault.number) if before else fault


# .csv and .tsv


def _read_csv(path: Path, label_column: str, covariate_columns: tuple[str, ...]) -> tuple[Columns, *Content]:
    source = repr(str(path))
    with open(path, encoding="utf-8-sig", newline="") as file:
        delimiter, header = _header(file, path.suffix.lower(), source)
        columns = _columns(header, label_column, covariate_columns, source)
        bools = _bool_columns(file, delimiter, columns)
        codes, seen = array("i"), dict[str, int]()
        values = _as_float32(_blocks(file, delimiter, columns, bools, codes, seen), columns, source)
        if values is None or any(map(_is_missing, seen)):
            _refuse(_csv_faults(file, delimiter, columns, bools), columns, source)
            raise ValueError("it changes while it is read")
        return columns, values, _as_label(codes, seen) if columns.label is not None else None


def _header(file: Any, suffix: str, source: str) -> tuple[str, list[str]]:
    """The delimiter and the names of the columns. Raises UserError if there is no header."""
    found, first_error = [], None
    for delimiter in "\t,;" if suffix == ".tsv" else ",\t;":
        try:
            found.append((delimiter, [cell.strip() for cell in next(_records(file, delimiter), (0, []))[1]]))
        except ValueError as error:
            first_error = first_error or error
    if not found:
        raise first_error or ValueError("it has no first line")
    delimiter, names = max(found, key=lambda each: len(each[1]))  # the first of those with as many
    if not names:
        raise UserError(f"{source} is empty or begins with an empty line; expected the names of the columns.")
    if all(map(_is_number, names)):
        raise UserError(
            f"{source} has no header: its first line begins with {_some(names[:3])}; expected the names of the "
            "columns. Add a line with them."
        )
    return delimiter, names


def _lines(file: Any, pending: list[int]) -> Iterator[str]:
    """The lines of a file. `pending` counts the characters since it was last set to 0."""
    number = 0
    while line := file.readline(MAX_RECORD):
        number += 1
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
            raise ValueError(f"line {line} has {len(row)} {_plural('cell', len(row))}, and the header has {width}")
        else:
            some = True
            yield line, row
    if not some:
        raise ValueError("it has a header and no rows")


def _bool_columns(file: Any, delimiter: str, columns: Columns) -> tuple[int, ...]:
    """The places of the columns that hold true or false in the first row."""
    _, row = next(_rows(file, delimiter, len(columns.names)))
    return tuple(i for i in columns.numeric if row[i].strip().lower() in BOOLS)


def _blocks(
    file: Any, delimiter: str, columns: Columns, bools: tuple[int, ...], codes: array[int], seen: dict[str, int]
) -> Iterator[np.ndarray]:
    """Blocks [n, K] of the numeric columns as float64. A cell that is not a number becomes NaN and ends the last block.

    codes, seen: get the text of each label: its place in `seen`, by row, and all different texts.
    """
    num, label, buffer = len(columns.numeric), columns.label, array("d")
    as_block = lambda: np.frombuffer(buffer).reshape(-1, num)  # noqa: E731
    for _, row in _rows(file, delimiter, len(columns.names)):
        for i in bools:
            row[i] = BOOLS.get(row[i].strip().lower(), "nan")
        if label is not None:
            codes.append(seen.setdefault(row.pop(label), len(seen)))
        try:
            buffer.extend(map(float, row))
        except ValueError:
            yield np.full((1, num), np.nan)
            return
        if "_" in "".join(row):  # which `float` skips
            yield np.full((1, num), np.nan)
            return
        if len(buffer) >= BLOCK:
            check_memory(LABEL_BYTES * len(seen), "its different labels take")
            yield as_block()
            buffer = array("d")
    if buffer:
        yield as_block()


def _csv_faults(file: Any, delimiter: str, columns: Columns, bools: tuple[int, ...]) -> Faults:
    faults: Faults = {}
    for line, row in _rows(file, delimiter, len(columns.names)):
        for i, cell in enumerate(row):
            if kind := _fault(cell, i == columns.label, i in bools):
                _add(faults, kind, columns.names[i], Fault(1, line, f"line {line}", cell))
    return faults


def _fault(cell: str, is_label: bool, is_bool: bool) -> str:
    """What is wrong with a cell: a kind of fault, or nothing."""
    if not is_label and not is_bool and _is_number(cell) and abs(float(cell)) < TOO_LARGE:
        return ""  # nearly every cell
    word = cell.strip().lower()
    if _is_missing(word):
        return "missing"
    if is_label or (is_bool and word in BOOLS):
        return ""
    if not _is_number(word):
        return "mixed" if word in BOOLS else "text"
    return "mixed" if is_bool else "large"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


# .parquet


def _read_parquet(path: Path, label_column: str, covariate_columns: tuple[str, ...]) -> tuple[Columns, *Content]:
    source = repr(str(path))
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"Reading {source} needs pyarrow. Install it: python -m pip install pyarrow") from None
    # Only the types of Arrow are used: whatever else pandas has written into the file stays unread.
    with parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        columns = _columns(schema.names, label_column, covariate_columns, source)
        _check_types(schema, columns, source)
        check_memory(8 * file.metadata.num_rows * len(columns.names))
        seen, labels = dict[str, int](), list[np.ndarray]()
        values = _as_float32(_parquet_blocks(file, columns, labels, seen), columns, source)
        if values is None:
            faults: Faults = {}
            start = 0
            for batch in file.iter_batches(_batch_rows(columns)):
                _add_faults(faults, batch, columns, start)
                start += len(batch)
            _refuse(faults, columns, source)
            raise ValueError("it changes while it is read")
        if not len(values):
            raise ValueError("it has no rows")
        return columns, values, _joined(labels, seen) if columns.label is not None else None


def _check_types(schema: Any, columns: Columns, source: str) -> None:
    """Raise UserError for columns that are not numbers, or labels that are not numbers, bools or strings."""
    if indices := [name for name in schema.names if re.fullmatch(r"__index_level_\d+__", name)]:
        raise UserError(f"{source} holds the index of pandas, {_some(indices)}. Save it with index=False.")
    texts, others = [], []
    for i, (name, kind) in enumerate(zip(schema.names, schema.types, strict=True)):
        if _is_text(kind):
            texts.extend([name] * (i != columns.label))
        elif not _is_numeric(kind):
            others.append(f"{name} ({kind})")
    _refuse({"text": {name: Fault(1, 0, "", "") for name in texts}} if texts else {}, columns, source)
    if others:
        raise UserError(
            f"{source} has columns of other types than numbers, bools and strings: {_some(others)}. Leave them out."
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
    file: Any, columns: Columns, labels: list[np.ndarray], seen: dict[str, int]
) -> Iterator[np.ndarray]:
    """Blocks [n, K] of the numeric columns as float64; missing values are NaN, and so is a row without a label.

    labels, seen: get the labels of each block, and if these are strings, their places in `seen`.
    """
    for batch in file.iter_batches(_batch_rows(columns)):
        block = np.empty((len(batch), len(columns.numeric)))
        for j, i in enumerate(columns.numeric):
            block[:, j] = _floats(batch.column(i))
        if columns.label is not None:
            if _missing_labels(batch.column(columns.label)).any():
                block[:] = np.nan
            else:
                labels.append(_label_values(batch.column(columns.label), seen))
                check_memory(LABEL_BYTES * len(seen), "its different labels take")
        yield block


def _batch_rows(columns: Columns) -> int:
    return max(1, BLOCK // len(columns.names))


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
    words = np.array([word is None or _is_missing(word) for word in encoded.dictionary.to_pylist()] + [True])
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


def _add_faults(faults: Faults, batch: Any, columns: Columns, start: int) -> None:
    """Add the faults of a batch whose first row is the row `start` of the file."""
    for i, name in enumerate(columns.names):
        column = batch.column(i)
        if i == columns.label:
            wrong = {"missing": _missing_labels(column)}
        else:
            x = _floats(column)
            wrong = {"missing": ~np.isfinite(x), "large": np.isfinite(x) & (np.abs(x) >= TOO_LARGE)}
        for kind, cells in wrong.items():
            if cells.any():
                first = int(np.argmax(cells))
                row, cell = start + first, str(column[first])
                fault = Fault(int(np.count_nonzero(cells)), row, f"row {row} (counted from 0)", cell)
                _add(faults, kind, name, fault)
