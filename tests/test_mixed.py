"""Mixed tables: every column is a distribution of SciPy's, from the file to samples with the right types."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import train_flags
from helpers import assert_within_errors
from scipy import stats
from scipy.special import expit, log_softmax, logit

from vae_jax import load
from vae_jax.config import Config
from vae_jax.data import datasets, kinds
from vae_jax.data.tables import read_table
from vae_jax.errors import UserError
from vae_jax.likelihoods import mixed
from vae_jax.missing import observed
from vae_jax.mixed import kind_of

COLUMNS = {
    "kind": {"category": ["a", "b", "c"]},
    "height": "real",
    "visits": "count",
    "grade": "ordinal:4",
    "income": "positive",
    "flag": "category:2",
    "size": {"ordinal": ["s", "m", "l"]},
}
SHAPE = (len(COLUMNS),)


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    n = 400
    columns = [
        rng.integers(0, 3, n),
        rng.normal(2, 1.5, n),
        rng.poisson(4, n),
        rng.choice(4, n, p=[0.1, 0.2, 0.3, 0.4]),
        rng.lognormal(1, 0.7, n),
        rng.random(n) < 0.2,
        rng.choice(3, n, p=[0.5, 0.3, 0.2]),
    ]
    return np.stack(columns, 1).astype(np.float32)


@pytest.fixture(scope="module")
def part():
    return mixed(SHAPE, columns=COLUMNS)


def cuts_of(params):
    params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    gaps = np.log1p(np.exp(params["gaps"])) + 1e-4
    return params["cut"][:, None] + np.concatenate([np.zeros((2, 1)), np.cumsum(gaps, -1)], -1)


def exact(params, outputs, x):
    """log p of each column of x by SciPy, in float64."""
    o, x = np.asarray(outputs, np.float64), np.asarray(x, np.float64)
    sigma = np.exp(3 * np.tanh(o[..., 1] / 6))
    cuts = cuts_of(params)
    each = np.zeros(x.shape)
    take = lambda a, i: np.take_along_axis(a, i[..., None].astype(int), -1)[..., 0]  # noqa: E731
    each[..., 0] = take(log_softmax(o[..., 0, :3], -1), x[..., 0])
    each[..., 1] = stats.norm(o[..., 1, 0], sigma[..., 1]).logpdf(x[..., 1])
    each[..., 2] = stats.poisson(np.exp(o[..., 2, 0])).logpmf(x[..., 2])
    each[..., 4] = stats.lognorm(sigma[..., 4], scale=np.exp(o[..., 4, 0])).logpdf(x[..., 4])
    each[..., 5] = take(log_softmax(o[..., 5, :2], -1), x[..., 5])
    for place, row, num in ((3, 0, 4), (6, 1, 3)):
        ends = np.concatenate([[-np.inf], cuts[row, : num - 1], [np.inf]])
        p = np.diff(stats.logistic.cdf(ends[None] - o[..., place, 0].reshape(-1, 1)))
        each[..., place] = np.log(take(p.reshape(*x.shape[:-1], num), x[..., place]))
    return each


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_each_column_is_scipys(part, x, scale):
    outputs = (np.random.default_rng(1).normal(size=(400, *SHAPE, part.num_outputs)) * scale).astype(np.float32)
    params = part.init(jnp.array(x))
    p = part.build(params, jnp.array(outputs))
    expected = exact(params, outputs, x)
    np.testing.assert_allclose(p.log_prob(x), expected.sum(-1), rtol=2e-5, atol=2e-4)
    gaps = x.copy()
    gaps[np.random.default_rng(2).random(x.shape) < 0.4] = np.nan
    log_prob = lambda o: observed(part, SHAPE).build(params, o).log_prob(gaps)  # noqa: E731
    np.testing.assert_allclose(log_prob(outputs), np.where(np.isnan(gaps), 0, expected).sum(-1), rtol=2e-5, atol=2e-4)
    grad = np.asarray(jax.grad(lambda o: log_prob(o).sum())(jnp.array(outputs)))
    assert np.all(grad[np.isnan(gaps)] == 0) and np.all(np.isfinite(grad))


def test_the_values_of_a_category_have_the_probability_1(part, x):
    params = part.init(jnp.array(x))
    outputs = jax.random.normal(jax.random.key(0), (5, *SHAPE, part.num_outputs)) * 3
    for place, num in ((0, 3), (3, 4), (5, 2), (6, 3)):
        base = jnp.broadcast_to(x[0], (num, 5, *SHAPE)).at[:, :, place].set(jnp.arange(num, dtype=jnp.float32)[:, None])
        each = observed(part, SHAPE).build(params, outputs)
        alone = jnp.where(jnp.arange(len(SHAPE) and SHAPE[0]) == place, base, jnp.nan)
        np.testing.assert_allclose(jnp.exp(each.log_prob(alone)).sum(0), 1, rtol=1e-5)


def test_gradients_are_finite_at_extremes(part, x):
    params = part.init(jnp.array(x))
    for size in (-50.0, 0.0, 50.0):
        outputs = jnp.full((len(x), *SHAPE, part.num_outputs), size)
        loss = lambda params, o: part.build(params, o).log_prob(x).sum()  # noqa: E731
        grads = jax.grad(loss, (0, 1))(params, outputs)
        assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(grads))


def test_samples_have_the_moments_and_the_types(part, x, key):
    params = part.init(jnp.array(x))
    outputs = part.output_bias(part.average(jnp.array(x)))
    p = part.build(params, outputs)
    draws = np.asarray(jax.jit(lambda key: p.sample(key, (20_000,)))(key), np.float64)
    assert_within_errors(draws[:, [0, 2, 3, 5, 6]], x[:, [0, 2, 3, 5, 6]].astype(np.float64).mean(0), errors=8)
    np.testing.assert_allclose(draws[:, 1].mean(), x[:, 1].mean(), atol=0.05)
    np.testing.assert_allclose(np.log(draws[:, 4]).mean(), np.log(x[:, 4]).mean(), atol=0.05)
    np.testing.assert_allclose(draws[:, 1].std(), x[:, 1].std(), rtol=0.05)
    for place, num in ((0, 3), (3, 4), (5, 2), (6, 3)):
        share = np.bincount(draws[:, place].astype(int), minlength=num) / len(draws)
        own = np.bincount(x[:, place].astype(int), minlength=num) / len(x)
        np.testing.assert_allclose(share, own, atol=0.03)
    mean = np.asarray(p.mean)
    assert mean[0] == np.bincount(x[:, 0].astype(int)).argmax() and mean[3] == 3 and mean[6] == 0
    w = jnp.array([[0.1, 0.9], [0.9, 0.1]])
    two = jax.tree.map(lambda a: jnp.broadcast_to(a, (2, 2, *a.shape)), p)
    np.testing.assert_allclose(two.mixture_mean(w), jnp.broadcast_to(mean, (2, *mean.shape)), rtol=1e-5)


def test_the_mean_of_a_mixture_of_categories_is_the_most_probable_value():
    part = mixed((1,), columns={"a": "category:3"})
    outputs = jnp.log(jnp.array([[0.5, 0.4, 0.1], [0.05, 0.4, 0.55], [0.1, 0.4, 0.5]]))[:, None, None, :]
    p = part.build({}, outputs)
    assert p.mean[:, 0, 0].tolist() == [0, 2, 2]
    assert p.mixture_mean(jnp.full((3, 1), 1 / 3)).tolist() == [[1]]


def test_the_cut_points_begin_at_the_frequencies(part, x):
    cuts = cuts_of(part.init(jnp.array(x)))
    for row, place, num in ((0, 3, 4), (1, 6, 3)):
        below = (np.cumsum(np.bincount(x[:, place].astype(int), minlength=num) + 1) / (400 + num))[:-1]
        np.testing.assert_allclose(cuts[row, : num - 1], logit(below), atol=2e-3)
        assert expit(cuts[row, 0]) == pytest.approx(below[0], abs=1e-3)


@pytest.mark.parametrize(
    "kind", ["Real", "category", "category:1", "ordinal:x", "real:3", 3, {"category": ["a"]}, {"real": ["a", "b"]}]
)
def test_other_kinds_are_refused(kind):
    with pytest.raises(ValueError, match=r"has the kind .*; expected real, positive"):
        kind_of("a", kind)


# tables

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


def test_every_command_takes_a_mixed_table(run, table, vae):
    figures = json.loads(vae("evaluate", run, "--num_samples=20"))
    assert np.isfinite(figures["nll"])
    figures = json.loads(vae("evaluate", run, f"--data={table}", "--num_samples=5"))
    assert figures["num_examples"] == 300
    for command in ("reconstruct", "encode", "report", "export"):
        vae(command, run, *(["--num_samples=5"] if command == "report" else []))


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


def test_text_of_parquet_is_that_of_csv(table, tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet, arrow_csv = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow.csv")
    options = arrow_csv.ConvertOptions(strings_can_be_null=True)
    parquet.write_table(arrow_csv.read_csv(table, convert_options=options), tmp_path / "t.parquet")
    a, b = (read_table(path, missing=True, texts=True) for path in (table, tmp_path / "t.parquet"))
    np.testing.assert_array_equal(a.x, b.x)
    assert a.texts == b.texts and a.columns == b.columns and pa
