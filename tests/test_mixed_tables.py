"""Mixed tables, from the file to samples, imputations and scores with the right types."""

import csv
import json

import numpy as np
import pytest
from conftest import train_flags

from vae_jax import load
from vae_jax.config import Config
from vae_jax.data import datasets, kinds
from vae_jax.data.tables import read_table
from vae_jax.errors import UserError
from vae_jax.show import pictures

pytestmark = pytest.mark.robust

HEADER = "kind,height,visits,grade,income,flag,size"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table with every kind of column, whose columns depend on one another, and with gaps."""
    rng = np.random.default_rng(0)
    rows: list = [HEADER.split(",")]
    for i in range(300):
        t = rng.random()
        cells = [
            ["red", "green, dark", 'blue "sky"'][int(3 * t)],
            f"{170 + 20 * t + rng.normal():.3f}",
            rng.poisson(1 + 8 * t),
            1 + min(3, int(4 * t + 0.3 * rng.random())),
            f"{np.exp(6 + 3 * t + 0.2 * rng.normal()):.2f}",
            str(t > 0.6).lower(),
            ["s", "m", "l"][int(2.99 * t)],
        ]
        cells = [cell if i < 2 or rng.random() > 0.1 else "" for cell in cells]
        rows.append(cells)
    path = tmp_path_factory.mktemp("table") / "t.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


OPTIONS = {"columns": {"grade": "ordinal:4", "size": {"ordinal": ["s", "m", "l"]}}}


@pytest.fixture(scope="module")
def run(train, table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed") / "run"
    fields = {"dataset": table, "likelihood": "mixed", "missing": "true", "standardize": "true", "latent_dim": 2}
    fields |= {"likelihood_options": json.dumps(OPTIONS), "hidden_sizes": 32, "batch_size": 30, "num_epochs": 100}
    train(folder, **fields, eval_epochs=100, learning_rate=0.003)
    return folder


def test_the_kinds_are_guessed_and_kept(run, table, train, capsys):
    config = load(run).config
    assert config.likelihood_options["columns"] == {
        "kind": {"category": ['blue "sky"', "green, dark", "red"]},
        "height": "real",
        "visits": "count",
        "grade": {"ordinal": ["1", "2", "3", "4"]},
        "income": "positive",
        "flag": "category:2",
        "size": {"ordinal": ["s", "m", "l"]},
    }
    shift, scale = (np.array(part) for part in load(run).data.scaling)
    assert np.flatnonzero(shift).tolist() == [1] and scale[1] == pytest.approx(6, abs=1)
    flags = {"dataset": table, "likelihood": "mixed", "missing": "true", "standardize": "true", "latent_dim": 2}
    flags |= {"likelihood_options": json.dumps(OPTIONS), "hidden_sizes": 32, "batch_size": 30, "num_epochs": 100}
    capsys.readouterr()
    train(run, **flags, eval_epochs=100, learning_rate=0.003)  # the same command goes on
    err = capsys.readouterr().err
    assert "the kinds of these columns are guessed: kind category (blue" in err and "visits count" in err


def test_samples_are_a_table_with_the_right_types(run, vae, tmp_path):
    vae("sample", run, "--num=200", f"--out={tmp_path}/s.csv")
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert lines[0] == HEADER and len(lines) == 201
    table = read_table(tmp_path / "s.csv", texts=True)
    assert set(table.texts[0]) <= {"red", "green, dark", 'blue "sky"'} and set(table.texts[6]) <= {"s", "m", "l"}
    assert set(np.unique(table.x[:, 3])) <= {1, 2, 3, 4} and set(np.unique(table.x[:, 5])) == {0, 1}
    assert np.all(table.x[:, 2] == np.floor(table.x[:, 2])) and np.all(table.x[:, 4] > 0)
    assert np.corrcoef(table.x[:, 1], np.log(table.x[:, 4]))[0, 1] > 0.5  # z carries what columns share


def test_a_table_is_imputed_with_names(run, table, vae, tmp_path):
    vae("impute", run, f"--data={table}", "--num_samples=200", f"--out={tmp_path}/full.csv")
    full, own = read_table(tmp_path / "full.csv", texts=True), read_table(table, missing=True, texts=True)
    seen = ~np.isnan(own.x)
    np.testing.assert_allclose(full.x[seen], own.x[seen], rtol=1e-5)
    assert full.texts == own.texts and not np.isnan(full.x).any()
    vae("impute", run, f"--data={table}", "--num_samples=200", f"--out={tmp_path}/full.npz")
    np.testing.assert_allclose(full.x[:, 2], np.load(tmp_path / "full.npz")["x"][:, 2], rtol=1e-6)  # not rounded down


def test_an_array_has_the_columns_of_the_training(run, refused, tmp_path):
    from vae_jax.__main__ import main

    np.save(tmp_path / "x.npy", [[180.0, 3, 2, 500], [170, 2, 2, 400]])
    line = refused_line(refused, main, ["evaluate", run, f"--data={tmp_path}/x.npy"])
    assert "has examples of shape (4,); expected a table in memory with the columns kind, height" in line
    columns = {"height": "real", "visits": "count", "grade": "ordinal:4", "income": "positive"}
    config = Config(likelihood="mixed", likelihood_options={"columns": columns})
    dataset = datasets.load_whole(str(tmp_path / "x.npy"), datasets.PLAIN._replace(texts=True))
    assert kinds.encode(dataset, config).test.x.tolist() == [[180, 3, 2, 500], [170, 2, 2, 400]]


@pytest.mark.parametrize("conditional", ["true", "covariates"])
def test_samples_and_imputations_name_what_they_were_given(conditional, train, vae, tmp_path):
    lines = [f"{i / 7},{'' if i % 5 == 0 else i % 3},{['no', 'yes'][i % 2]},{i / 4}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,ill,dose", *lines, ""]))
    fields = {"dataset": tmp_path / "t.csv", "likelihood": "mixed", "missing": "true", "conditional": conditional}
    fields |= {"label_column": "ill"} | ({"covariate_columns": "dose"} if conditional == "covariates" else {})
    train(tmp_path / "run", **fields, standardize="true", latent_dim=2, hidden_sizes=8, batch_size=10, num_epochs=1)
    vae("sample", tmp_path / "run", "--num=5", f"--out={tmp_path}/s.csv")
    vae("impute", tmp_path / "run", f"--data={tmp_path}/t.csv", "--num_samples=5", f"--out={tmp_path}/full.csv")
    samples, full = (list(csv.DictReader((tmp_path / name).read_text().splitlines())) for name in ("s.csv", "full.csv"))
    if conditional == "true":
        assert [row["ill"] for row in samples] == ["no", "yes", "no", "yes", "no"]
    else:
        doses = np.array([float(row["dose"]) for row in full])
        np.testing.assert_array_equal(doses, np.arange(40) / 4)
        assert len(samples) == 5 and {float(row["dose"]) for row in samples} <= set(doses)
    assert [row["ill"] for row in full] == ["no", "yes"] * 20


def test_every_command_takes_a_mixed_table(run, table, vae):
    figures = json.loads(vae("evaluate", run, "--num_samples=20"))
    assert np.isfinite(figures["nll"])
    figures = json.loads(vae("evaluate", run, f"--data={table}", "--num_samples=5"))
    assert figures["num_examples"] == 300
    for command in ("reconstruct", "encode", "report", "export"):
        vae(command, run, *(["--num_samples=5"] if command == "report" else []))
    assert f"from the left: {HEADER.replace(',', ', ')}." in (run / "report.html").read_text()
    low, high = pictures.range_of(load(run).data)
    visits = read_table(table, missing=True, texts=True).x[:, 2]
    assert low[2] < np.nanmin(visits) < np.nanmean(visits) < high[2] < 2 * np.nanmax(visits)


def test_a_mixed_table_is_scored(run, table, vae, tmp_path):
    result = json.loads(vae("score", run, f"--data={table}", "--num_samples=20", f"--out={tmp_path}/s.csv"))
    scores = read_table(tmp_path / "s.csv")
    assert result["num_examples"] == len(scores.x) == 300 and scores.columns[:2] == ("log_px", "elbo")
    assert np.all(np.isfinite(scores.x)) and 0.3 < scores.x[:, -1].mean() < 0.7  # the shares of the training rows


def test_a_table_of_other_values_is_refused(run, refused, tmp_path):
    from vae_jax.__main__ import main

    row = ["red", "180", "3", "2", "500", "true", "m"]
    for place, value, words in (
        (0, "pink", "has the value 'pink'; the kind category has blue"),
        (3, "5", "has the value '5'; the kind ordinal has 1, 2, 3, 4"),
        (2, "-1", "has the value -1; expected 0, 1, 2, ... for the kind 'count'"),
        (4, "0", "has the value 0; expected numbers above 0 for the kind 'positive'"),
        (1, "tall", "is text ('tall'); expected numbers for the kind 'real'"),
    ):
        cells = [*row[:place], value, *row[place + 1 :]]
        (tmp_path / "t.csv").write_text(f"{HEADER}\n{','.join(cells)}\n{','.join(cells)}\n")
        assert words in refused_line(refused, main, ["evaluate", run, f"--data={tmp_path}/t.csv"])


@pytest.mark.parametrize(
    ("text", "columns", "words"),
    [
        ("a,b\nx,1\ny,2\n", {"c": "real"}, "has a kind for the column 'c'"),
        ("a,b\nx,1\ny,2\n", {"a": "ordinal:2"}, "is text, whose order is unknown. Give its kind as"),
        (
            "a,b\nx,1\ny,2\n",
            {"a": "category:3"},
            "has 2 different values, and its kind is 'category:3'. Give cat",
        ),
        ("a,b\nx,1\nx,2\n", {}, "has the one text 'x' in all rows"),
        ("a,b\nx,1\ny,2\n", {"a": "real"}, "is text ('x'); expected numbers for the kind 'real'"),
        ("a,b\nx,1.5\ny,2\n", {"b": "count"}, "has the value 1.5; expected 0, 1, 2, ..."),
        ("a,b\nx,1\ny,2\n", {"b": "kind"}, "column 'b' has the kind 'kind'; expected real, positive"),
        ("a,b\nx,1\ny,\n", {}, "1 missing or infinite value"),
        ("a,b\nx,1.5\ny,?\nx,2\n", {}, "Column 'b' holds numbers and the text '?'; expected one of them. Write"),
        ('a,b\nx,"1,234.5"\ny,"2,000"\n', {}, "Column 'b' holds numbers and the text '1,234.5'"),
        ("a,b\nx,10%\ny,5%\n", {}, "Column 'b' holds numbers and the text '10%'"),
        ("a,b\n" + "".join(f"p{i},1.5\n" for i in range(30)), {}, "'a' has 30 different texts in 30 rows, as ids"),
    ],
)
def test_kinds_that_do_not_suit_a_table_are_refused(text, columns, words, refused, train_py, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    fields = {"dataset": tmp_path / "t.csv", "likelihood": "mixed", "batch_size": 1}
    options = json.dumps({"columns": columns})
    flags = train_flags(tmp_path / "run", likelihood_options=options, **fields)
    main = train_py.main
    assert words in refused_line(refused, main, flags)


def refused_line(refused, main, flags):
    """The error; lines of the log may come before it."""
    from vae_jax import progress

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "say", lambda line: None)
        return refused(main, flags)


def test_too_many_texts_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"name {i},1\n" for i in range(1500)))
    dataset = datasets.load(tmp_path / "t.csv", how=datasets.PLAIN._replace(texts=True))
    with pytest.raises(UserError, match="has 1500 different texts; expected at most 1000"):
        kinds.resolve(Config(likelihood="mixed"), dataset)


def test_a_kind_that_an_error_advises_is_taken(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"p{i},{'?' if i % 9 == 0 else i / 7}\n" for i in range(30)))
    dataset = datasets.load(tmp_path / "t.csv", how=datasets.PLAIN._replace(texts=True))
    options: dict = {"columns": {}}
    for name in "ab":
        with pytest.raises(UserError, match=f"Column '{name}'") as error:
            kinds.resolve(Config(likelihood="mixed", likelihood_options=options), dataset)
        advised = json.loads(str(error.value).split("'{")[1].split("}'")[0].join("{}"))
        options["columns"] |= advised["columns"]
    found = kinds.resolve(Config(likelihood="mixed", likelihood_options=options), dataset).likelihood_options["columns"]
    assert len(found["a"]["category"]) == 30 and "?" in found["b"]["category"]


def test_large_whole_numbers_are_not_guessed_to_be_counts(tmp_path):
    rows = [(i % 100, 1990 + i, 1000 * (i + 1), 300 * (i % 2)) for i in range(30)]
    (tmp_path / "t.csv").write_text("\n".join(["age,year,income,zero", *(",".join(map(str, row)) for row in rows)]))
    dataset = datasets.load(tmp_path / "t.csv", how=datasets.PLAIN._replace(texts=True))
    columns = kinds.resolve(Config(likelihood="mixed"), dataset).likelihood_options["columns"]
    assert columns == {"age": "count", "year": "real", "income": "positive", "zero": "real"}


def test_a_column_without_values_has_no_kind(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1.5,\n2.5,NA\n")
    dataset = datasets.load(tmp_path / "t.csv", how=datasets.PLAIN._replace(texts=True, missing=True))
    with pytest.raises(UserError, match="Column 'b' has no values: all are missing"):
        kinds.resolve(Config(likelihood="mixed"), dataset)


def test_text_of_parquet_is_that_of_csv(table, tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet, arrow_csv = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow.csv")
    options = arrow_csv.ConvertOptions(strings_can_be_null=True)
    parquet.write_table(arrow_csv.read_csv(table, convert_options=options), tmp_path / "t.parquet")
    a, b = (read_table(path, missing=True, texts=True) for path in (table, tmp_path / "t.parquet"))
    np.testing.assert_array_equal(a.x, b.x)
    assert a.texts == b.texts and a.columns == b.columns and pa
