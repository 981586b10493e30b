"""Read the user's own tables, .csv, .tsv and .parquet files, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vae_jax import progress
from vae_jax.data.columns import Columns, some
from vae_jax.data.csv_files import ending, read_csv
from vae_jax.data.files import check_memory, reading
from vae_jax.data.parquet_files import read_parquet
from vae_jax.errors import UserError
from vae_jax.progress import plural

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet")


class Table(NamedTuple):
    """A table of numbers."""

    x: np.ndarray  # [N, D], float32: the columns that are neither label nor covariate, in the file's order
    columns: tuple[str, ...]  # the names of those columns
    label: np.ndarray | None  # [N], as stored: strings, integers, floats or bools; None without a label column
    covariates: np.ndarray | None  # [N, C], float32, in the order asked for; None if none were asked for
    texts: tuple[tuple[str, ...], ...]  # of each column of x, what the numbers 0, 1, ... stand for; () of numbers


def read_table(
    path: Path,
    *,
    label_column: str = "",
    covariate_columns: Sequence[str] = (),
    missing: bool = False,
    texts: bool = False,
) -> Table:
    """Read a .csv, .tsv or .parquet file, or a .csv.gz or .tsv.gz.

    label_column: the name of the column with the labels. Empty: there is none.
    covariate_columns: the names of the columns that become `covariates`.
    missing: whether cells of x may be missing, which become NaN.
    texts: whether columns of x may be text. Their different texts, in their order, become 0, 1, ...

    A .csv or .tsv file is text in UTF-8 whose first line has the names of the columns; spaces around a name do not
    count. Commas, tabs or semicolons separate the cells, whichever make the most columns of that line. Cells are quoted
    as by Python's csv module, and empty lines may only follow the last row. Numbers are those of Python's `float`, but
    without underscores, and a column of true and false, in any case, becomes 1 and 0. Labels are integers if all are
    whole numbers of 64 bits without leading zeros; floats if all are numbers without leading zeros; and otherwise
    strings, each as it stands in its cell. A .parquet file has columns of numbers, bools and strings, and pyarrow reads
    it.

    One line on stderr says what was read, and one more if float32 does not hold all whole numbers exactly.
    Raises UserError, of one line that names the file, if the table cannot be read as described, if a cell is infinite,
    or if it is missing, where it must not be: empty, NA, N/A, NaN or null.
    """
    path = Path(path)
    if ending(path).lower() not in SUFFIXES:
        raise UserError(f"Cannot read {str(path)!r}: expected a .csv, .tsv or .parquet file, or a .csv.gz or .tsv.gz.")
    read = read_parquet if path.suffix.lower() == ".parquet" else read_csv
    if isinstance(covariate_columns, str):
        raise UserError(f"covariate_columns is the text {covariate_columns!r}; expected names. Give a tuple of them.")
    with reading(path, "a table of numbers, one named column each"):
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")  # a pipe would never end
        check_memory(path.stat().st_size, "it has")
        columns, values, label, words = read(path, label_column, tuple(covariate_columns), missing, texts)
    at = {place: i for i, place in enumerate(columns.numeric)}  # where `values` has each column of the file
    own = sorted(at.keys() - columns.covariates)
    take = lambda places: np.take(values, [at[place] for place in places], 1)  # noqa: E731
    x, covariates = (take(own), take(columns.covariates)) if columns.covariates else (values, None)
    table = Table(
        x, tuple(columns.names[place] for place in own), label, covariates, tuple(words.get(place, ()) for place in own)
    )
    _say_what_was_read(table, columns, repr(str(path)))
    return table


def _say_what_was_read(table: Table, columns: Columns, source: str) -> None:
    num = len(table.columns)
    text = sum(map(bool, table.texts))
    parts = [plural(len(table.x), "row"), f"{plural(num - text, 'column')} of numbers"]
    if text:
        parts.append(f"{text} of text")
    if table.label is not None and columns.label is not None:
        name = columns.names[columns.label]
        parts.append(f"label column {name!r} with {plural(len(np.unique(table.label)), 'different value')}")
    if columns.covariates:
        parts.append(f"covariates {some(columns.names[i] for i in columns.covariates)}")
    progress.say(f"{source}: {', '.join(parts)}.")
