"""A table becomes the numbers that are in it, and what is wrong with a file is one line that says where."""

import csv
import gzip
import subprocess
import sys

import numpy as np
import pytest

from vae_jax.data import columns, csv_files, parquet_files, tables
from vae_jax.data.tables import read_table
from vae_jax.errors import UserError


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes text, or bytes, to a file and returns its path."""

    def write(content, name="t.csv"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / name

    return write


@pytest.fixture
def write_parquet(tmp_path):
    """Returns a function that writes named arrays to a .parquet file and returns its path."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def write(columns, name="t.parquet", **options):
        parquet.write_table(pa.table(columns), tmp_path / name, **options)
        return tmp_path / name

    return write


def error(path, **kwargs):
    """Return the message of the UserError that reading raises, after checking that it is one readable line."""
    with pytest.raises(UserError) as caught:
        read_table(path, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    return message


# values


@pytest.mark.parametrize("delimiter, name", [(",", "t.csv"), (";", "t.csv"), ("\t", "t.csv"), ("\t", "t.tsv")])
@pytest.mark.parametrize("style", ["%.17g", "%.3e", " %+.6f "])
def test_random_numbers_are_those_of_float_and_numpy(tmp_path, delimiter, name, style):
    x = np.random.default_rng(0).normal(size=(200, 7)) * 10.0 ** np.arange(-3, 4).reshape(1, 7)
    path = tmp_path / name
    np.savetxt(path, x, style, delimiter, header=delimiter.join("abcdefg"), comments="")
    table = read_table(path)
    with open(path, newline="") as file:
        expected = np.array([[float(cell) for cell in row] for row in list(csv.reader(file, delimiter=delimiter))[1:]])
    assert table.x.dtype == np.float32 and table.columns == tuple("abcdefg")
    assert table.label is None and table.covariates is None
    np.testing.assert_array_equal(table.x, expected.astype(np.float32))
    np.testing.assert_array_equal(table.x, np.genfromtxt(path, delimiter=delimiter, skip_header=1, dtype=np.float32))


def test_label_and_covariates_leave_the_numbers(write, capsys):
    path = write("a,kind,b,age,c\n1,cat,2,30,3\n4,dog,5,40,6\n7,cat,8,50,9\n")
    table = read_table(path, label_column="kind", covariate_columns=("age", "a"))
    np.testing.assert_array_equal(table.x, [[2, 3], [5, 6], [8, 9]])
    np.testing.assert_array_equal(table.covariates, [[30, 1], [40, 4], [50, 7]])
    assert table.columns == ("b", "c") and table.label.tolist() == ["cat", "dog", "cat"]
    assert table.covariates.dtype == np.float32 and table.x.flags.c_contiguous and table.covariates.flags.c_contiguous
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"{str(path)!r}: 3 rows, 2 columns of numbers, label column 'kind' with 2 different values, "
        "covariates 'age', 'a'."
    )


def test_strings_with_commas_quotes_and_lines_come_back(tmp_path):
    texts = ["a,b", 'say "hi"', "two\nlines", " space ", "ü;\t", "plain", '"', ",", "N A"]
    path = tmp_path / "t.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["the, name", "x"], *((text, i) for i, text in enumerate(texts))])
    table = read_table(path, label_column="the, name")
    assert table.label.tolist() == texts
    np.testing.assert_array_equal(table.x[:, 0], np.arange(len(texts)))


@pytest.mark.parametrize(
    "cells, expected, dtype",
    [
        (["3", "-1", " 255 "], [3, -1, 255], np.int64),
        (["18446744073709551615", "0"], [2**64 - 1, 0], np.uint64),
        (["18446744073709551616", "0"], ["18446744073709551616", "0"], np.str_),
        (["9" * 5000, "0"], ["9" * 5000, "0"], np.str_),
        (["18446744073709551615", "-1"], ["18446744073709551615", "-1"], np.str_),
        (["1.0", "2", "1e1"], [1.0, 2.0, 10.0], np.float64),
        (["1e999", "2"], ["1e999", "2"], np.str_),
        (["007", "7"], ["007", "7"], np.str_),
        (["1_0", "7"], ["1_0", "7"], np.str_),
        (["+", "-"], ["+", "-"], np.str_),
        (["True", "false"], ["True", "false"], np.str_),
    ],
    ids=str,
)
def test_labels_are_stored_as_what_they_are(write, cells, expected, dtype):
    label = read_table(write("x,y\n" + "".join(f"1,{cell}\n" for cell in cells)), label_column="y").label
    assert label.tolist() == expected and np.issubdtype(label.dtype, dtype)


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1e3,-4\n 5 ,.5\n",
        "\ufeffa,b\n1e3,-4\n 5 ,.5\n",
        "a,b\r\n1e3,-4\r\n 5 ,.5\r\n",
        "a,b\r1e3,-4\r 5 ,.5",
        '"a", b \n"1e3",-4\n 5 ,.5\n\n\n',
        "a;b\n1e3;-4\n 5 ;.5",
        "a\tb\n1e3\t-4\n 5 \t.5",
        "\ufeffa;b\n1e3;-4\n 5 ;.5",
    ],
    ids=repr,
)
def test_files_as_programs_write_them(write, text):
    table = read_table(write(text))
    assert table.columns == ("a", "b")
    np.testing.assert_array_equal(table.x, [[1000, -4], [5, 0.5]])


def test_a_name_may_hold_another_delimiter(write):
    assert read_table(write('"a;b",c\n1,2\n')).columns == ("a;b", "c")
    assert read_table(write("a, x;b;c\n1;2;3\n")).columns == ("a, x", "b", "c")


def test_true_and_false_are_one_and_zero(write):
    table = read_table(write("a,b,c\ntrue,1,FALSE\nfalse,2, True \n"))
    np.testing.assert_array_equal(table.x, [[1, 1, 0], [0, 2, 1]])


def test_blocks_join_in_order(write, monkeypatch):
    monkeypatch.setattr(csv_files, "BLOCK", 6)
    x = np.arange(50).reshape(25, 2)
    path = write("y,a,b\n" + "".join(f"l{i % 3},{a},{b}\n" for i, (a, b) in enumerate(x)))
    table = read_table(path, label_column="y")
    np.testing.assert_array_equal(table.x, x)
    assert table.label.tolist() == [f"l{i % 3}" for i in range(25)]


def test_one_line_says_that_float32_rounds_whole_numbers(write, capsys):
    read_table(write("id,x,big,far\n16777217,1.5,16777218,9007199254740993\n3,123456789.5,4,1\n"))
    first, _ = capsys.readouterr().err.splitlines()
    assert "'id', 'far'" in first and "2^24" in first and "'x'" not in first and "'big'" not in first


# what is wrong

BAD = {
    "no header": ("1,2\n3,4\n", ["has no header", "'1', '2'"]),
    "empty": ("", ["is empty", "names of the columns"]),
    "only an empty line": ("\n1\n", ["begins with an empty line"]),
    "no rows": ("a,b\n", ["a header and no rows"]),
    "no rows but empty lines": ("a,b\n\n\n", ["a header and no rows"]),
    "short row": ("a,b\n1,2\n3\n4,5\n", ["line 3 has 1 cell, and the header has 2"]),
    "long row": ("a,b\n1,2\n3,4,5\n", ["line 3 has 3 cells"]),
    "short row after two lines in one": ('a,b\n"1\n",2\n3\n', ["line 4 has 1 cell"]),
    "empty line": ("a,b\n1,2\n\n3,4\n", ["line 3 is empty"]),
    "unnamed column": (",a\n0,1\n", ["no name for column 1 of 2", "index=False"]),
    "same names": ("a,b, a\n1,2,3\n", ["two columns named 'a'"]),
    "empty cell": ("a,b\n1,2\n,3\n4,NA\n5,nan\n", ["3 missing", "('') in line 3, column 'a'", "'a' 1, 'b' 2"]),
    "infinite": ("a\n1\n-Infinity\n", ["1 missing or infinite value, the first ('-Infinity') in line 3"]),
    "null": ("a\n1\nNULL\n", ["('NULL') in line 3"]),
    "missing in the first row of bools": ("a,b\nNA,1\ntrue,2\n", ["('NA') in line 2"]),
    "text": (
        "a,b\n1,Rome\n2,Bern\n",
        ["1 column of text: 'b' ('Rome' in line 2)", "--config.label_column=NAME", "--config.likelihood=mixed"],
    ),
    "one bad number": ("a,b\n1,2\n2,1.2.3\n", ["'b' ('1.2.3' in line 3)"]),
    "a dash": ("a,b\n1,2\n2,-\n", ["'b' ('-' in line 3)"]),
    "underscore": ("a,b\n1,2\n2,1_0\n", ["'b' ('1_0' in line 3)"]),
    "decimal comma": ("a;b\n1,5;2\n", ["'a' ('1,5' in line 2)", "with a point: 1.5, not 1,5"]),
    "bools and numbers": ("a\ntrue\n1\n", ["mixes numbers with true and false: 'a' ('1' in line 3)"]),
    "numbers and bools": ("a\n1\ntrue\n", ["mixes numbers with true and false: 'a' ('true' in line 3)"]),
    "bools and text": ("a\ntrue\nmaybe\n", ["'a' ('maybe' in line 3)"]),
    "too large": ("a,b\n1,1e39\n2,1e999\n", ["too large for float32: 'b' ('1e39' in line 2)"]),
    "open quote": ('a,b\n1,"2\n3,4\n', ["the row in line 2", "unexpected end of data"]),
    "NUL": ("a,b\n1,2\n3,\0\n", ["line 3 holds a NUL byte"]),
    "long cell": ("a,b\n1," + "1" * 200_000 + "\n", ["the row in line 2", "field limit"]),
    "latin-1": ("a,b\n1,\xfc\n".encode("latin-1"), ["UTF-8", "0xfc"]),
    "UTF-16": ("a,b\n1,2\n".encode("utf-16"), ["UTF-8", "0xff"]),
    "an archive": (b"PK\x03\x04\x14\x00\x08\x00", ["NUL byte"]),
    "many text columns": (
        ",".join(f"c{i}" for i in range(99)) + "\n" + ",".join("x" * 99) + "\n",
        ["99 columns of text", "and 91 more"],
    ),
    "long names": ("a" * 9000 + ",b\nx,\n", ["1 column of text: 'aaaa", "..."]),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line(write, case):
    content, parts = BAD[case]
    message = error(write(content))
    assert all(part in message for part in parts), message


def test_the_largest_numbers_of_float32_are_read(write):
    largest = float(np.finfo(np.float32).max)
    assert read_table(write(f"a\n{largest * (1 + 2**-26)!r}\n-{largest!r}\n")).x.tolist() == [[largest], [-largest]]
    assert "too large" in error(write(f"a\n{largest * (1 + 2**-24)!r}\n"))


def test_names_that_are_not_there(write):
    path = write("age,kind,b\n1,x,2\n")
    assert "no label column 'knd'. Did you mean 'kind'? Choose one of: 'age', 'kind', 'b'" in error(
        path, label_column="knd"
    )
    assert "no covariate column 'aeg'. Did you mean 'age'?" in error(
        path, label_column="kind", covariate_columns=["aeg"]
    )
    assert "no covariate column ''" in error(path, label_column="kind", covariate_columns=[""])
    assert "both the label and a covariate" in error(path, label_column="kind", covariate_columns=["kind"])
    assert "name a column twice" in error(path, label_column="kind", covariate_columns=["b", "b"])
    assert "no column for x" in error(path, label_column="kind", covariate_columns=["b", "age"])
    assert "expected names" in error(path, covariate_columns="age")
    assert "'kind' ('x' in line 2)" in error(path, covariate_columns=["kind"])
    wide = error(write(",".join(f"c{i}" for i in range(999)) + "\n"), label_column="nothing")
    assert "and 991 more" in wide and "Did you mean" not in wide


@pytest.mark.parametrize("cell", ["", "NA", " nan ", "inf"])
def test_a_missing_label_is_refused(write, cell):
    assert f"({cell!r}) in line 3, column 'y'" in error(write(f"x,y\n1,a\n2,{cell}\n"), label_column="y")


GAPS = "a,flag,n,kind\n1,,NA,x\n2.5,true, nan ,y\nN/A,False,null,x\n"


def assert_gaps(table):
    expected = [[1, np.nan, np.nan], [2.5, 1, np.nan], [np.nan, 0, np.nan]]
    np.testing.assert_array_equal(table.x, np.array(expected, np.float32))
    assert table.label.tolist() == ["x", "y", "x"]


def test_missing_cells_become_nan_where_they_may(write):
    assert_gaps(read_table(write(GAPS), label_column="kind", missing=True))
    assert "5 missing" in (message := error(write(GAPS), label_column="kind"))
    assert "Give --config.missing=true, or fill them in" in message


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("a,b\n1,inf\n,2\n", {}, "1 missing or infinite value, the first ('inf') in line 2, column 'b'"),
        ("a,b\n1,\n2,x\n", {}, "'b' ('x' in line 3)"),
        ("a,b\ntrue,1\n,1\n2,1\n", {}, "mixes numbers with true and false: 'a' ('2' in line 4)"),
        ("a,b\n,1\ntrue,1\nmaybe,1\n", {}, "'a' ('maybe' in line 4)"),
        ("a,b\n1,\n,2\n", {"covariate_columns": ["b"]}, "1 missing or infinite value, the first ('') in line 2"),
        ("a,b\n1,\n,2\n", {"label_column": "b"}, "1 missing or infinite value, the first ('') in line 2"),
        ("a,b\n1,1_0\n,2\n", {}, "'b' ('1_0' in line 2)"),
        ("a,b\n1,1e39\n,2\n", {}, "too large for float32: 'b' ('1e39' in line 2)"),
    ],
)
def test_what_may_not_be_missing_is_refused_all_the_same(write, text, options, words):
    message = error(write(text), missing=True, **options)
    assert words in message and "--config.missing" not in message


def test_what_is_written_reads_back_equal(tmp_path):
    x = np.array([0.1, 1 / 3, 1e-30, 3e38, -5, np.nan], np.float32)
    label = np.array(['a "b"', "c,d", "e", "f", "g\nh", "\u00e4"])
    csv_files.write_csv(tmp_path / "t.csv", {"x": x, 'a,"b"': np.arange(6, dtype=np.float32), "kind": label})
    table = read_table(tmp_path / "t.csv", label_column="kind", missing=True)
    np.testing.assert_array_equal(table.x, np.stack([x, np.arange(6)], 1))
    assert table.label.tolist() == label.tolist() and table.columns == ("x", 'a,"b"')
    assert "\n-5,4," in (tmp_path / "t.csv").read_text("utf-8")


def test_files_that_are_none(tmp_path, write):
    assert "No such file" in error(tmp_path / "none.csv")
    assert "expected a .csv, .tsv or .parquet file" in error(write("a\n1\n", "t.txt"))
    (tmp_path / "folder.csv").mkdir()
    assert "not a file" in error(tmp_path / "folder.csv")
    assert read_table(write("a\n1\n", "T.CSV")).x.tolist() == [[1]]


def test_no_more_is_held_than_memory_allows(write, monkeypatch):
    def limited(size, what="it expands to"):
        if size > 2000:
            raise ValueError(f"{what} {size} bytes, too much")

    for module in (tables, columns, csv_files):
        monkeypatch.setattr(module, "check_memory", limited)
    assert "it has 4002 bytes" in error(write("a\n" + "1\n" * 2000))
    monkeypatch.setattr(csv_files, "BLOCK", 100)
    assert "it expands to 2400 bytes" in error(write("a\n" + "1\n" * 400))
    assert "its label column takes" in error(write(f"a,b\n1,{'x' * 300}\n1,y\n"), label_column="b")
    monkeypatch.setattr(csv_files, "MAX_RECORD", 200)
    for row in ("1" * 300, '"\n",' * 70):
        assert "more than 200 characters" in error(write(f"a\n{row}\n"))


# .parquet


def test_parquet_has_the_values_of_its_columns(write_parquet, capsys, monkeypatch):
    import pyarrow as pa

    monkeypatch.setattr(parquet_files, "BLOCK", 100)
    rng = np.random.default_rng(0)
    x = {
        "f64": rng.normal(size=90),
        "f32": rng.normal(size=90).astype(np.float32),
        "f16": rng.normal(size=90).astype(np.float16),
        "i8": rng.integers(-9, 9, 90).astype(np.int8),
        "u64": rng.integers(0, 9, 90).astype(np.uint64),
        "bool": rng.random(90) > 0.5,
    }
    kinds = np.array(["cat", "a,b", 'q"'])[rng.integers(0, 3, 90)]
    for label in (pa.array(kinds), pa.array(kinds, pa.large_string()), pa.array(kinds).dictionary_encode()):
        table = read_table(write_parquet({"kind": label, **x}), label_column="kind", covariate_columns=["i8"])
        expected = np.stack([column.astype(np.float32) for name, column in x.items() if name != "i8"], 1)
        np.testing.assert_array_equal(table.x, expected, strict=True)
        np.testing.assert_array_equal(table.covariates, x["i8"].astype(np.float32)[:, None], strict=True)
        assert table.label.tolist() == kinds.tolist() and table.columns == ("f64", "f32", "f16", "u64", "bool")
        assert "90 rows, 5 columns of numbers, label column 'kind' with 3 different" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32, np.bool_])
def test_parquet_keeps_the_type_of_a_label(write_parquet, dtype):
    y = np.array([3, 0, 1], dtype)
    label = read_table(write_parquet({"x": np.zeros(3), "y": y}), label_column="y").label
    np.testing.assert_array_equal(label, y, strict=True)


PARQUET = {
    "missing": ({"a": [1.0, 2.0], "b": [3.0, None]}, ["1 missing", "row 1 (counted from 0), column 'b'"]),
    "NaN comes first": (
        {"a": [1.0, 2.0, np.inf], "b": [3.0, np.nan, 1]},
        ["2 missing", "('nan') in row 1 (counted from 0), column 'b'", "'a' 1, 'b' 1"],
    ),
    "text": ({"a": [1.0], "b": ["x"]}, ["1 column of text: 'b'; expected numbers", "--config.label_column=NAME"]),
    "too large": ({"a": [1.0, 1e39]}, ["too large", "('1e+39' in row 1"]),
    "list": ({"a": [1.0], "b": [[1.0]]}, ["other types than numbers, bools and strings: 'b (list"]),
    "bytes": ({"a": [1.0], "b": [b"x"]}, ["'b (binary)'"]),
    "index of pandas": ({"a": [1.0], "__index_level_0__": [1]}, ["index of pandas", "index=False"]),
    "no rows": ({"a": np.zeros(0)}, ["it has no rows"]),
    "no columns": ({}, ["no column for x"]),
}


@pytest.mark.parametrize("case", PARQUET)
def test_what_is_wrong_with_parquet_is_one_line(write_parquet, case):
    columns, parts = PARQUET[case]
    message = error(write_parquet(columns))
    assert all(part in message for part in parts), message


def test_missing_values_of_parquet_become_nan_where_they_may(write_parquet):
    content = {"a": [1.0, 2.5, None], "flag": [None, True, False], "n": [np.nan, None, np.nan], "kind": ["x", "y", "x"]}
    assert_gaps(read_table(write_parquet(content), label_column="kind", missing=True))
    assert "5 missing" in error(write_parquet(content), label_column="kind")
    for options in ({"covariate_columns": ["a"]}, {"label_column": "a"}):
        content = {"a": [1.0, None], "b": [None, 2.0]}
        assert "1 missing" in error(write_parquet(content), missing=True, **options)
    assert "('inf') in row 1" in error(write_parquet({"a": [None, np.inf]}), missing=True)


@pytest.mark.parametrize("label", [["a", None], ["a", ""], [1, None], [1.0, np.nan]], ids=str)
def test_a_missing_label_of_parquet_is_refused(write_parquet, label):
    message = error(write_parquet({"a": [1.0, 2.0], "y": label}), label_column="y")
    assert "1 missing" in message and "row 1 (counted from 0), column 'y'" in message


def test_damaged_parquet_is_one_line(write_parquet):
    path = write_parquet({"a": np.arange(100.0)})
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for damaged in (b"", b"PAR1", content[:-20], content[8:], b"PAR1" + bytes(rng.bytes(200)) + b"PAR1"):
        path.write_bytes(damaged)
        assert "Cannot read" in error(path)


def test_parquet_that_expands_beyond_memory_is_refused(write_parquet, monkeypatch):
    monkeypatch.setattr("vae_jax.data.files.MAX_BYTES", 100_000)
    path = write_parquet({"a": np.zeros(100_000)})
    assert path.stat().st_size < 5000 and "it expands to 800000 bytes" in error(path)


def test_a_compressed_table_is_the_same_table(write, capsys):
    text = "a;kind\n1;cat\n2;cat\n"
    plain = read_table(write(text, "t.csv"), label_column="kind")
    for name in ("t.csv.gz", "my.own.CSV.GZ", "t.tsv.gz"):
        table = read_table(write(gzip.compress(text.encode()), name), label_column="kind")
        assert table.x.tolist() == plain.x.tolist() and table.label.tolist() == plain.label.tolist()
        assert "2 rows, 1 column of numbers, label column 'kind' with 1 different value." in capsys.readouterr().err
    assert "line 3" in error(write(gzip.compress(b"a\n1\nx\n"), "t.csv.gz"))


def test_damaged_compressed_tables_are_refused(write, monkeypatch):
    whole = gzip.compress(b"a\n" + b"1\n" * 9999)
    for content in (b"a\n1\n", whole[:-20], whole[:10], b""):
        assert "t.csv.gz" in error(write(content, "t.csv.gz"))
    assert "expected a .csv" in error(write(whole, "t.gz"))

    def limited(size, what="it expands to"):
        if size > 1 << 20:
            raise ValueError(f"{what} {size} bytes, too much")

    monkeypatch.setattr(csv_files, "check_memory", limited)
    monkeypatch.setattr(csv_files, "MAX_RECORD", 1 << 16)
    bomb = gzip.compress(b"a\n1\n" + b"\n" * (8 << 20))  # empty lines take no memory, but time without end
    assert len(bomb) < 10_000 and "it expands to 1" in error(write(bomb, "t.csv.gz"))


def test_without_pyarrow_the_error_says_how_to_install_it(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "needs pyarrow. Install it: python -m pip install 'vae_jax[parquet]'" in error(write(b"PAR1", "t.parquet"))


def test_text_needs_neither_pyarrow_nor_jax(write):
    code = (
        "import sys; from vae_jax.data.tables import read_table; "
        f"print(read_table({str(write('a,b' + chr(10) + '1,2'))!r}).x.tolist()); "
        "assert not {'pyarrow', 'pandas', 'jax'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[[1.0, 2.0]]\n"
