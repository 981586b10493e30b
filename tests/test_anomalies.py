"""How unlikely examples are: against scikit-learn, brute force, and laws that are known in closed form."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import PCA_LATENTS, PCA_SIZE, pca_params, pca_vae
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from vae_jax.__main__ import main
from vae_jax.anomalies import auroc, auroc_error, average_precision, tail
from vae_jax.core import Examples
from vae_jax.data import datasets
from vae_jax.evaluate import make_evaluate

pytestmark = pytest.mark.robust

# The functions.


def test_the_tail_counts_the_training_scores_that_are_as_low():
    rng = np.random.default_rng(0)
    train, new = rng.integers(0, 9, 30), rng.integers(-1, 10, 50)
    expected = [(1 + sum(a <= b for a in train)) / 31 for b in new]
    np.testing.assert_array_equal(tail(train, new), expected)
    np.testing.assert_array_equal(tail([1.0, np.nan, -np.inf], [0.0, -np.inf, np.nan, np.inf]), [0.75, 0.75, np.nan, 1])
    assert tail([], [3.0]) == [1.0]


def test_under_the_training_law_the_tail_is_a_p_value():
    """Each of the 20 places of a new score among 19 others has the same probability."""
    scores = np.random.default_rng(0).normal(size=(4000, 20))
    shares = np.array([tail(row[:19], row[19:])[0] for row in scores])
    places, counts = np.unique(np.round(20 * shares), return_counts=True)
    np.testing.assert_array_equal(places, np.arange(1, 21))
    assert stats.chisquare(counts).pvalue > 0.01


def test_under_the_training_law_the_tails_of_a_vae_are_uniform(key):
    params = pca_params()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6000, PCA_LATENTS)) @ np.asarray(params["w"]) + np.asarray(params["b"])
    x = x + np.exp(0.5 * float(params["log_var"])) * rng.normal(size=x.shape)
    evaluate = make_evaluate(pca_vae(), num_samples=20)
    score = evaluate(params, key, Examples(jnp.asarray(x, jnp.float32), None)).log_px
    assert stats.kstest(tail(score[:5000], score[5000:]), "uniform").pvalue > 0.01
    assert stats.kstest(tail(score[:5000], score[5000:] - 1), "uniform").pvalue < 1e-6


def test_the_order_of_the_scores_of_a_linear_model_is_that_of_the_mahalanobis_distance(key):
    params = pca_params()
    w, b, noise = (np.asarray(params[name], np.float64) for name in ("w", "b", "log_var"))
    x = np.random.default_rng(0).normal(0, 3, (60, PCA_SIZE)).astype(np.float32)
    inverse = np.linalg.inv(w.T @ w + np.exp(noise) * np.eye(PCA_SIZE))
    distance = np.einsum("ni,ij,nj->n", x - b, inverse, x - b)
    score = make_evaluate(pca_vae(exact=True), num_samples=3)(params, key, Examples(jnp.asarray(x), None)).log_px
    np.testing.assert_array_equal(np.argsort(-score), np.argsort(distance))


def labelled(seed):
    """Scores with ties, and labels of both kinds."""
    rng = np.random.default_rng(seed)
    num = rng.integers(2, 80)
    label = rng.permutation(np.arange(num) % rng.integers(2, 6) == 0).astype(int)
    return rng.integers(0, rng.integers(1, 30), num).astype(np.float32) + label, label


@pytest.mark.parametrize("seed", range(30))
def test_auroc_and_average_precision_are_those_of_scikit_learn(seed):
    score, label = labelled(seed)
    assert auroc(score, label) == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert average_precision(score, label) == pytest.approx(average_precision_score(label, score), abs=1e-12)
    score[score == score.max()], finite = np.inf, score
    assert auroc(score, label == 1) == auroc(finite, label)


def test_scores_that_say_nothing_and_scores_that_say_all():
    label = np.arange(10) < 4
    assert auroc(np.zeros(10), label) == 0.5 and average_precision(np.zeros(10), label) == 0.4
    assert auroc(1.0 * label, label) == average_precision(1.0 * label, label) == 1
    assert auroc(-1.0 * label, label) == 0
    assert np.isnan([f(np.full(10, np.nan), label) for f in (auroc, auroc_error, average_precision)]).all()


def test_the_error_of_auroc_is_that_of_delong():
    score, label = labelled(3)
    pairs = np.sign(score[label == 1][:, None] - score[label == 0][None]) / 2 + 0.5
    expected = sum(np.var(pairs.mean(axis), ddof=1) / pairs.shape[1 - axis] for axis in (0, 1)) ** 0.5
    assert auroc_error(score, label) == pytest.approx(expected, rel=1e-12)
    assert np.isnan(auroc_error([1.0, 2.0, 3.0], [1, 0, 0]))


def test_the_error_of_auroc_is_its_spread_over_draws():
    rng, label = np.random.default_rng(0), np.arange(100) < 40
    draws = [rng.normal(label, 1 + label) for _ in range(2000)]
    errors = [auroc_error(score, label) for score in draws]
    assert np.std([auroc(score, label) for score in draws]) == pytest.approx(np.mean(errors), rel=0.05)


@pytest.mark.parametrize(
    ("score", "label", "words"),
    [
        ([[1.0]], [1], "shape \\(1, 1\\)"),
        (["a", "b"], [0, 1], "expected numbers"),
        ([1.0, 2.0], [1], "one 0 or 1 for each of the 2 scores"),
        ([1.0, 2.0], [1, 2], "0 or 1"),
        ([1.0, 2.0], [1, 1], "2 of the 2 examples are anomalies; expected some, and not all"),
        ([1.0, 2.0], [False, False], "0 of the 2"),
    ],
)
def test_scores_and_labels_that_do_not_fit_are_refused(score, label, words):
    for function in (auroc, auroc_error, average_precision):
        with pytest.raises(ValueError, match=words):
            function(score, label)


# The command.

FEW = "--num_samples=3", "--num_train=50"


@pytest.fixture(scope="module")
def threes_run(train, tmp_path_factory):
    """A run on the threes and sevens of the digits."""
    run = tmp_path_factory.mktemp("runs") / "threes"
    train(run, classes="3,7", num_epochs=1, batch_size=20)
    return run


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    return dict(zip(head, map(list, zip(*rows, strict=True)), strict=True))


def scored(vae, run, *flags):
    """The JSON object, and the columns of the file that it names."""
    result = json.loads(vae("score", run, *FEW, *flags))
    return result, rows_of(result["out"])


def test_a_row_for_each_example_in_its_order(vae, threes_run, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    result, columns = scored(vae, threes_run, "--data=digits", "--out", out)
    assert [*columns] == ["log_px", "elbo", "log_likelihood", "share", "label"]
    label = datasets.load("digits").test.label
    assert columns["label"] == [str(value) for value in label]
    assert (result["out"], result["num_examples"], result["num_samples"]) == (str(out), len(label), 3)
    assert (result["num_train"], result["share_by"], result["split"]) == (50, "log_px", "test")
    each = tmp_path / "each.npz"
    vae("evaluate", threes_run, "--data=digits", "--num_samples=3", "--per_example", each)
    vae("score", threes_run, *FEW, "--data=digits", "--out", tmp_path / "scores.NPZ")
    with np.load(each) as expected, np.load(tmp_path / "scores.NPZ") as arrays:
        for name in ("log_px", "log_likelihood"):
            np.testing.assert_array_equal(arrays[name], expected[name])
        np.testing.assert_array_equal(arrays["elbo"], expected["log_likelihood"] - expected["kl"])
        assert [*arrays] == [*columns]
        for name, column in columns.items():
            np.testing.assert_array_equal(np.array(column, arrays[name].dtype), arrays[name])
    assert result["anomalies"] == [0, 1, 2, 4, 5, 6, 8, 9]
    anomaly = ~np.isin(label, (3, 7))
    assert result["num_anomalies"] == anomaly.sum()
    for name in ("log_px", "elbo", "log_likelihood"):
        minus = -np.array(columns[name], np.float32)
        assert result[f"auroc_{name}"] == pytest.approx(roc_auc_score(anomaly, minus), abs=1e-9)
        assert result[f"average_precision_{name}"] == pytest.approx(average_precision_score(anomaly, minus), abs=1e-9)
        assert 0 < result[f"auroc_{name}_se"] < 0.1
    assert "AUROC" not in capsys.readouterr().err


def test_the_share_is_of_the_training_examples(vae, threes_run, tmp_path):
    """50 of them are scored, with other draws than the new examples."""
    _, columns = scored(vae, threes_run, "--split=train", "--out", tmp_path / "x.csv")
    share = np.array(columns["share"], float)
    np.testing.assert_allclose(share * 51, np.round(share * 51), atol=1e-9)
    assert stats.kstest(share, "uniform").statistic < 0.25
    result, columns = scored(vae, threes_run, "--num_train=0", "--data=digits", "--out", tmp_path / "x.csv")
    assert "share" not in columns and (result["num_train"], result["share_by"]) == (0, None)
    assert result["num_anomalies"] > 200  # the config says which classes it was trained on


def test_the_user_says_which_labels_are_anomalies(vae, digits_run, tmp_path, refused, capsys):
    flags = "--out", tmp_path / "x.csv"
    result, _ = scored(vae, digits_run, *flags)
    assert result["anomalies"] is None and "auroc_log_px" not in result
    line = "each of its labels (0, 1, 2, 3, 4, 5, 6, 7, 8, 9) occurred in the training. --anomaly=LABEL says"
    assert line in capsys.readouterr().err
    for anomaly in (["--anomaly=9,3"], ["--anomaly=3", "--anomaly=9"]):
        result, columns = scored(vae, digits_run, *flags, *anomaly)
        assert result["anomalies"] == [3, 9]
        assert result["num_anomalies"] == sum(label in "39" for label in columns["label"])
    argv = "score", digits_run, *FEW, *flags
    assert "--anomaly is '10'; digits has the labels 0, 1, " in refused(main, [*argv, "--anomaly=3,10"])
    line = refused(main, [*argv, "--anomaly=0,1,2,3,4,5,6,7,8,9"])
    assert line.startswith("--anomaly names every label of digits")


def test_labels_of_text_are_quoted_and_compared_with_those_of_the_training(train, vae, tmp_path, capsys, refused):
    x, digit, *_ = datasets.load("digits").test
    kinds = np.array(["a,b", 'say "0"', "ü", "other"])[np.minimum(digit, 3)]
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=kinds, x_test=x, y_test=kinds)
    train(tmp_path / "run", dataset=tmp_path / "mine.npz", classes='say "0",ü', num_epochs=1, batch_size=10)
    few = kinds != "other"
    np.savez(tmp_path / "new.npz", x=x[few], y=kinds[few])  # where the names have other numbers
    flags = f"--data={tmp_path}/new.npz", "--out", tmp_path / "x.csv"
    result, columns = scored(vae, tmp_path / "run", *flags)
    assert columns["label"] == kinds[few].tolist() and result["anomalies"] == ["a,b"]
    assert scored(vae, tmp_path / "run", *flags, "--anomaly=a,b")[0]["anomalies"] == ["a,b"]
    assert scored(vae, tmp_path / "run", *flags, '--anomaly=ü,say "0"')[0]["anomalies"] == ['say "0"', "ü"]
    np.savez(tmp_path / "new.npz", x=x[digit == 0], y=kinds[digit == 0])
    capsys.readouterr()
    scored(vae, tmp_path / "run", *flags)
    err = capsys.readouterr().err
    assert "all examples have the label a,b. --data=FILE takes examples of several labels." in err
    np.savez(tmp_path / "new.npz", x=x)
    result, columns = scored(vae, tmp_path / "run", *flags)
    assert "label" not in columns and result["anomalies"] is None
    line = refused(main, ["score", tmp_path / "run", *flags, "--anomaly=ü"])
    assert line.endswith("new.npz has no labels. Give data with labels.")


def test_training_examples_among_those_scored_are_named(train, vae, tmp_path, capsys):
    x, digit, *_ = datasets.load("digits").test
    np.savez(tmp_path / "mine.npz", x=x, y=digit)
    train(tmp_path / "run", dataset=tmp_path / "mine.npz", classes="3,7", num_epochs=1, batch_size=10)
    capsys.readouterr()
    scored(vae, tmp_path / "run", f"--data={tmp_path}/mine.npz")
    line = "mine.npz: the training examples are among those scored, so that AUROC flatters.\n"
    assert capsys.readouterr().err.endswith(line)


def test_a_label_that_is_not_text_is_refused_by_a_table_alone(vae, digits_run, tmp_path, refused):
    np.savez(tmp_path / "new.npz", x=datasets.load("digits").test.x[:2], y=np.array(["a", "\ud800"]))
    argv = ["score", digits_run, *FEW, f"--data={tmp_path}/new.npz", "--anomaly=a", f"--out={tmp_path}/x.csv"]
    assert "a text holds half a character. Give --out=x.npz." in refused(main, argv)
    assert [path.name for path in tmp_path.iterdir()] == ["new.npz"]
    vae(*argv[:-1], f"--out={tmp_path}/x.npz")


def test_without_the_data_of_the_training_there_are_no_shares(train, vae, tmp_path, refused):
    x = datasets.load("digits").test.x
    np.save(tmp_path / "x.npy", x)
    train(tmp_path / "run", dataset=tmp_path / "x.npy", batch_size=20, num_epochs=1)
    (tmp_path / "x.npy").rename(tmp_path / "y.npy")
    argv = "score", tmp_path / "run", f"--data={tmp_path}/y.npy", "--num_samples=2"
    line = refused(main, argv)
    assert line.endswith(
        "is not there. Give --num_train=0, which leaves the shares out, or put the data of the training back."
    )
    np.save(tmp_path / "x.npy", 1 - x)
    assert "Give --num_train=0, which" in refused(main, argv)
    vae(*argv, "--num_train=0")
    assert [*rows_of(tmp_path / "run/scores.csv")] == ["log_px", "elbo", "log_likelihood"]


def test_a_point_posterior_has_no_density(train, vae, tmp_path):
    train(tmp_path / "run", posterior="delta", beta=0, num_epochs=1)
    result, columns = scored(vae, tmp_path / "run", "--anomaly=3")
    assert [*columns] == ["elbo", "log_likelihood", "share", "label"]
    assert result["share_by"] == "elbo" and "auroc_elbo" in result and "auroc_log_px" not in result


def test_scores_that_are_not_finite_are_named_and_written(vae, vectors_run, tmp_path, capsys):
    far = np.zeros((10, 6), np.float32)
    far[:3] = 3e38
    np.savez(tmp_path / "far.npz", x=far, y=np.arange(10) % 2)
    flags = f"--data={tmp_path}/far.npz", "--anomaly=1", "--out", tmp_path / "x.csv"
    result, columns = scored(vae, vectors_run, *flags)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("The scores of 3 of the 10 examples of") and "are not finite" in line
    log_px = np.array([cell or "nan" for cell in columns["log_px"]], float)
    assert not np.isfinite(log_px[:3]).any() and np.isfinite(log_px[3:]).all()
    assert result["num_examples"] == 10


def test_the_file_is_written_whole_or_not_at_all(vae, digits_run, tmp_path, refused, monkeypatch):
    out = tmp_path / "x.csv"
    out.write_text("before")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(csv, "writer", fail)
    line = refused(main, ["score", digits_run, *FEW, "--anomaly=3", f"--out={out}"])
    assert line.endswith("cannot be written (No space left on device). Choose another file with --out.")
    assert out.read_text() == "before" and len([*tmp_path.iterdir()]) == 1


def test_all_training_examples_are_scored_if_there_are_few(vae, digits_run, tmp_path):
    result = json.loads(vae("score", digits_run, "--num_samples=1", "--num_train=9999", f"--out={tmp_path}/x.csv"))
    assert result["num_train"] == 1500
