"""Figures of disentanglement against the definitions of disentanglement_lib, quadrature, and cases of known answers."""

import json

import jax
import numpy as np
import pytest
from conftest import without_pictures
from helpers import CODED
from PIL import Image
from scipy import stats
from scipy.integrate import quad
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.metrics import mutual_info_score
from sklearn.svm import LinearSVC

from vae_jax import disentanglement
from vae_jax.__main__ import main
from vae_jax.data import datasets

SIZES = (2, 3, 5)


def grid(sizes=SIZES, repeats=1):
    """All combinations of factors, in an order without meaning."""
    every = np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), -1)
    return np.random.default_rng(0).permutation(np.tile(every, (repeats, 1)))


def mixed(num=300, num_codes=4, seed=0):
    """Codes that say something of the factors, each of several."""
    rng = np.random.default_rng(seed)
    factors = np.stack([rng.integers(0, n, num) for n in SIZES], -1)
    return factors @ rng.normal(size=(len(SIZES), num_codes)) + rng.normal(size=(num, num_codes)), factors


def halves(codes, factors):
    half = len(codes) // 2
    return codes[:half], factors[:half], codes[half:], factors[half:]


def test_mig_is_that_of_disentanglement_lib():
    codes, factors = mixed()
    edges = [np.histogram(code, 20)[1][:-1] for code in codes.T]
    bins = [np.digitize(code, edge) for code, edge in zip(codes.T, edges, strict=True)]
    expected = np.array([[mutual_info_score(code, factor) for code in bins] for factor in factors.T])
    np.testing.assert_allclose(disentanglement.binned_information(codes, factors), expected, rtol=1e-9)
    entropy = np.array([mutual_info_score(factor, factor) for factor in factors.T])
    np.testing.assert_allclose(disentanglement.entropies(factors), entropy, rtol=1e-12)
    first, second = np.sort(expected, 1)[:, ::-1][:, :2].T
    np.testing.assert_allclose(
        disentanglement.mutual_information_gap(codes, factors), (first - second) / entropy, rtol=1e-9
    )


def test_sap_is_that_of_disentanglement_lib():
    train, v, test, new_v = halves(*mixed())
    scores = np.zeros((4, 3))
    for d in range(4):
        for f in range(3):
            machine = LinearSVC(C=0.01, class_weight="balanced", random_state=0).fit(train[:, [d]], v[:, f])
            scores[d, f] = np.mean(machine.predict(test[:, [d]]) == new_v[:, f])
    top = np.sort(scores, 0)
    np.testing.assert_allclose(disentanglement.separated_attributes(train, v, test, new_v), top[-1] - top[-2])


@pytest.mark.robust
def test_dci_is_that_of_disentanglement_lib():
    train, v, test, new_v = halves(*mixed(200))
    importance, accuracy = np.zeros((4, 3)), np.zeros(3)
    for f in range(3):
        trees = GradientBoostingClassifier(random_state=0).fit(train, v[:, f])
        importance[:, f], accuracy[f] = trees.feature_importances_, trees.score(test, new_v[:, f])
    of_codes = 1 - stats.entropy(importance.T + 1e-11, base=3)
    of_factors = 1 - stats.entropy(importance + 1e-11, base=4)
    found = disentanglement.dci(train, v, test, new_v)
    assert found.disentanglement == pytest.approx(np.sum(of_codes * importance.sum(1)) / importance.sum(), rel=1e-9)
    assert found.completeness == pytest.approx(np.sum(of_factors * importance.sum(0)) / importance.sum(), rel=1e-9)
    assert found.informativeness == pytest.approx(accuracy.mean())
    np.testing.assert_allclose(found.completeness_of, of_factors, rtol=1e-9)
    np.testing.assert_array_equal(found.informativeness_of, accuracy)


def test_codes_that_are_the_factors_in_another_order_are_disentangled(key):
    factors = grid(repeats=4)
    codes = np.stack([-3.0 * factors[:, 2], 0.1 * factors[:, 0], 7 + factors[:, 1]], -1)
    np.testing.assert_allclose(disentanglement.mutual_information_gap(codes, factors), 1, atol=1e-12)
    found = disentanglement.dci(*halves(codes, factors))
    assert found[:3] == pytest.approx((1, 1, 1), abs=1e-6)
    information = disentanglement.information_from_posterior(key, codes, np.full(codes.shape, -12.0), factors)
    gap = disentanglement.gap(information, disentanglement.entropies(factors))
    np.testing.assert_allclose(gap, 1, atol=2e-3)


def test_sap_of_factors_of_two_values_is_at_most_what_is_left_above_chance():
    factors = grid((2, 2, 2), repeats=20)
    balanced = np.concatenate([factors[np.lexsort(factors.T)][::2]] * 2)  # both halves hold each combination as often
    codes = 2.0 * balanced[:, [1, 2, 0]] - 1
    np.testing.assert_allclose(disentanglement.separated_attributes(*halves(codes, balanced)), 0.5)


def test_noise_says_nothing(key):
    rng = np.random.default_rng(0)
    factors, codes = grid(repeats=100), rng.normal(size=(3000, 4))
    assert np.all(disentanglement.mutual_information_gap(codes, factors) < 0.02)
    assert np.all(disentanglement.separated_attributes(*halves(codes[:600], factors[:600])) < 0.15)
    information = disentanglement.information_from_posterior(key, 0 * codes, 0 * codes, factors, num_samples=300)
    np.testing.assert_allclose(information, 0, atol=1e-5)
    importance = np.ones((4, 3))
    assert disentanglement.disentanglement(importance) == pytest.approx(0, abs=1e-9)
    assert disentanglement.completeness(importance) == pytest.approx(0, abs=1e-9)


def test_figures_do_not_depend_on_the_order_of_the_codes(key):
    codes, factors = mixed()
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(
        disentanglement.mutual_information_gap(codes[:, order], factors),
        disentanglement.mutual_information_gap(codes, factors),
    )
    np.testing.assert_allclose(
        disentanglement.separated_attributes(*halves(codes[:, order], factors)),
        disentanglement.separated_attributes(*halves(codes, factors)),
    )
    importance = np.random.default_rng(0).random((4, 3))
    for figure in (disentanglement.disentanglement, disentanglement.completeness):
        assert figure(importance[order]) == pytest.approx(figure(importance))
        assert figure(importance[:, [2, 0, 1]]) == pytest.approx(figure(importance))


def test_each_sample_is_compared_with_its_own_dimension_and_factor(key):
    """An array that is reshaped where it must be transposed would mix the dimensions, whose scales differ."""
    factors = grid((2, 3, 5, 7))
    codes, log_var = factors * 10.0 ** np.arange(-2, 2), np.log(1e-6) + 2 * np.log(10.0) * np.arange(-2, 2)
    log_var = np.tile(log_var, (len(codes), 1))
    expected = np.diag(np.log([2, 3, 5, 7]))
    information = disentanglement.information_from_posterior(key, codes, log_var, factors, num_samples=210)
    np.testing.assert_allclose(information, expected, atol=1e-4)
    np.testing.assert_allclose(disentanglement.binned_information(codes, factors), expected, atol=1e-12)


@pytest.mark.parametrize("num", (7, 20_000))
def test_the_information_of_the_posterior_is_that_by_quadrature(key, num):
    """Whether there are fewer samples than examples or more, of which the last call holds only some."""
    rng = np.random.default_rng(1)
    mean, log_var = rng.normal(0, 1.5, (6, 2)), rng.normal(-1, 1, (6, 2))
    factors = np.array([[0, 4], [0, 9], [0, -1], [5, 4], [5, 9], [5, 4]])
    repeats = 1 if num > 6 else 50

    def information(d, f):
        def density(z, rows):
            return np.mean(stats.norm.pdf(z, mean[rows, d], np.exp(0.5 * log_var[rows, d])))

        total, every = 0.0, np.arange(6)
        for value in np.unique(factors[:, f]):
            rows = np.flatnonzero(factors[:, f] == value)
            part = quad(
                lambda z, rows=rows: density(z, rows) * np.log(density(z, rows) / density(z, every)), -12, 12, limit=200
            )
            total += len(rows) / 6 * part[0]
        return total

    found = disentanglement.information_from_posterior(
        key,
        np.tile(mean, (repeats, 1)),
        np.tile(log_var, (repeats, 1)),
        np.tile(factors, (repeats, 1)),
        num_samples=num,
    )
    expected = [[information(d, f) for d in range(2)] for f in range(2)]
    np.testing.assert_allclose(found, expected, atol=0.02 if num > 1000 else 1.0)


def test_the_information_does_not_depend_on_numbers_of_the_values_or_on_far_examples(key):
    """Where one posterior is narrow, the density of the others falls below the smallest float."""
    mean = np.array([[0.0], [100.0], [0.0], [1e4]])
    log_var = np.array([[0.0], [-20.0], [0.0], [-20.0]])
    found = [
        disentanglement.information_from_posterior(key, mean, log_var, np.array([v]).T, num_samples=400)
        for v in ([0, 1, 0, 2], [70, -3, 70, 10**6])
    ]
    expected = -(0.5 * np.log(0.5) + 0.5 * np.log(0.25))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.robust
def test_constant_codes_and_factors_and_a_single_code():
    codes, factors = mixed()
    codes[:, 0], factors[:, 1] = 3, 1
    information = disentanglement.binned_information(codes, factors)
    np.testing.assert_allclose([*information[:, 0], *information[1]], 0, atol=1e-12)
    assert np.isnan(disentanglement.mutual_information_gap(codes, factors)).tolist() == [False, True, False]
    few = [array[:60] for array in (codes, factors)]
    assert disentanglement.separated_attributes(*halves(*few))[1] == 0
    assert disentanglement.dci(*halves(*few)).importance[:, 1].sum() == 0
    one = disentanglement.gap([[0.5]], [1.0])
    assert one == 0.5 and disentanglement.purity([[3.0]]) == 1 and disentanglement.completeness([[0.0]]) == 0


@pytest.mark.parametrize(
    ("codes", "factors", "words"),
    [
        (np.zeros((3, 2)), np.zeros((3, 2)), "factors are float64"),
        (np.zeros((3, 2)), np.zeros(3, int), r"shape \(3,\)"),
        (np.zeros((4, 2)), np.zeros((3, 2), int), r"expected numbers of shape \(3, L\)"),
        (np.full((3, 2), np.nan), np.zeros((3, 2), int), "not finite"),
    ],
)
def test_other_arrays_are_refused(codes, factors, words):
    with pytest.raises(ValueError, match=words):
        disentanglement.mutual_information_gap(codes, factors)


def test_log_variances_of_another_shape_are_refused(key):
    with pytest.raises(ValueError, match=r"log_var has shape \(3, 1\)"):
        disentanglement.information_from_posterior(key, np.zeros((3, 2)), np.zeros((3, 1)), np.zeros((3, 1), int))


# The command.


@pytest.fixture(scope="module")
def sprites_run(train, tmp_path_factory):
    """A run on small sprites, of which one factor has one value. Leave it as it is."""
    run_dir = tmp_path_factory.mktemp("runs") / "sprites"
    grid = {"image_size": 8, "num_scales": 2, "num_angles": 1, "num_positions": 4}
    with without_pictures():
        train(run_dir, dataset="sprites", dataset_options=json.dumps(grid), num_epochs=3, latent_dim=4, batch_size=20)
    return run_dir


FIGURES = ("mig", "mig_q", "sap", "dci_disentanglement", "dci_completeness", "dci_informativeness")


@pytest.mark.robust
def test_the_command_writes_the_figures_of_the_codes_and_a_picture(vae, sprites_run, tmp_path):
    text = vae("disentangle", sprites_run, "--split=train", "--num_samples=100", "--out", tmp_path / "m.png")
    result = json.loads(text)
    with Image.open(tmp_path / "m.png") as picture:
        assert picture.width > 400 and picture.height > 100
    assert list(result["factors"]) == ["shape", "scale", "x", "y"]
    assert all(0 <= result[name] <= 1 for name in FIGURES) and result["num_train"] == 43
    assert (result["num_examples"], result["num_samples"], result["split"]) == (87, 100, "train")
    assert result["out"] == str(tmp_path / "m.png")

    vae("encode", sprites_run, "--split=train", "--out", tmp_path / "z.npz")
    grid = {"image_size": 8, "num_scales": 2, "num_angles": 1, "num_positions": 4}
    factors = datasets.load("sprites", options=grid).train.factors
    with np.load(tmp_path / "z.npz") as codes:
        expected = disentanglement.mutual_information_gap(codes["mean"], factors)
        key = jax.random.key(0)
        information = disentanglement.information_from_posterior(
            key, codes["mean"], codes["log_var"], factors, num_samples=100
        )
    assert [own["mig"] for own in result["factors"].values()] == pytest.approx(expected)
    assert result["mig"] == pytest.approx(expected.mean())
    np.testing.assert_allclose([own["information"] for own in result["factors"].values()], information, atol=1e-6)
    again = vae("disentangle", sprites_run, "--split=train", "--num_samples=100", "--out", tmp_path / "m.png")
    assert again == text


@pytest.mark.robust
def test_labels_and_factors_of_a_file_serve_too(vae, digits_run, vectors_run, tmp_path, capsys):
    label = json.loads(vae("disentangle", digits_run, "--num_train=50", "--num_samples=50", f"--out={tmp_path}/a.png"))
    assert list(label["factors"]) == ["label"] and label["factors"]["label"]["num_values"] == 10
    rng = np.random.default_rng(0)
    f = np.stack([np.zeros(60), rng.integers(0, 3, 60)], -1)
    np.savez(tmp_path / "own.npz", x=rng.normal(3, 2, (60, 6)), f=f)
    own = json.loads(vae("disentangle", vectors_run, f"--data={tmp_path}/own.npz", f"--out={tmp_path}/b.png"))
    assert list(own["factors"]) == ["f_1"] and (own["split"], own["num_examples"]) == ("all", 60)
    assert own["mig_q"] is not None and "one value in all examples: f_0." in capsys.readouterr().err


@pytest.mark.robust
def test_a_posterior_that_is_not_gaussian_has_no_figure_of_q(train, vae, tmp_path, capsys):
    with without_pictures():
        train(tmp_path / "run", num_epochs=1, posterior="flow", kl="monte_carlo")
    result = json.loads(vae("disentangle", tmp_path / "run", "--num_train=30"))
    assert "mig_q" not in result and "mig" in result and (tmp_path / "run" / "disentangle.png").exists()
    assert "mig_q is left out" in capsys.readouterr().err


@pytest.mark.robust
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"posterior": "fsq", "latent_dim": 3, **CODED["fsq"]}, "whose z is discrete"),
        ({"hierarchy": "markov"}, "has several latents"),
    ],
)
def test_other_latents_are_refused(train, refused, tmp_path, fields, words):
    fields = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in fields.items()}
    with without_pictures():
        train(tmp_path / "run", num_epochs=1, **fields)
    assert words in refused(main, ["disentangle", tmp_path / "run"])


@pytest.mark.robust
def test_data_without_factors_is_refused(refused, vectors_run, tmp_path):
    assert "has no factors of variation" in refused(main, ["disentangle", vectors_run])
    np.savez(tmp_path / "one.npz", x=np.zeros((9, 6), np.float32), f=np.ones((9, 2)))
    line = refused(main, ["disentangle", vectors_run, f"--data={tmp_path}/one.npz"])
    assert "(f_0, f_1) has one value in all 9 examples" in line
