"""The arithmetic of the benchmarks' tables; nothing here is timed."""

import json
import os
import subprocess
import sys
import time
from argparse import Namespace

import accelerator
import accelerator_parts
import anomalies
import disentangle
import iwae
import jax
import measure
import numpy as np
import ours
import pytest
import recipes
from conftest import ROOT, without_pictures


def test_exponent_of_a_power_law():
    sizes = [10, 100, 3000]
    assert measure.exponent(sizes, [5 * size**1.5 for size in sizes]) == pytest.approx(1.5)


def test_alternate_calls_in_turn():
    called = []
    runs = {name: lambda name=name: called.append(name) or len(called) for name in "ab"}
    assert measure.alternate(runs, 2) == {"a": [1, 3], "b": [2, 4]}
    assert called == list("abab")


def test_the_fastest_variant_is_that_of_the_highest_rate():
    assert measure.fastest({"slow": lambda: 1.0, "fast": lambda: 2.0})[0] == "fast"


def test_spread_is_the_median_and_the_range():
    assert measure.spread([3.0, 1.0, 2.0]) == "2.00 (1.00 to 3.00)"
    assert measure.spread([123456.7]) == "123,457 (123,457 to 123,457)"


def test_a_pattern_that_no_row_contains_is_refused():
    measure.check_some(["train: pythae"], Namespace(only="pythae"))
    with pytest.raises(SystemExit, match="No row contains 'pytae'"):
        measure.check_some(["train: pythae"], Namespace(only="pytae"))


def test_headlines_are_means_of_seeds_with_their_standard_error():
    row = {"recipe": "fast", "num_samples": 500, "seconds": 60.0}
    rows = [row | {"seed": seed, "nll": nll} for seed, nll in enumerate((85.0, 86.0, 87.0))]
    rows += [{"recipe": "faster", "num_samples": 500, "seconds": 30.0, "seed": 0, "nll": 90.0}]
    figures = recipes.table(rows)
    assert list(figures) == [("faster", 500), ("fast", 500)]
    assert figures["fast", 500] == pytest.approx((86.0, 3**-0.5, 60.0, 3))
    assert figures["faster", 500] == (90.0, 0.0, 30.0, 1)


def test_the_pages_and_the_recipes_say_what_was_measured():
    readme, page = ((ROOT / folder / "README.md").read_text() for folder in (".", "configs"))
    for (name, num_samples), (nll, error, _, seeds) in recipes.table(recipes.read()).items():
        recipe = recipes.path(name).read_text()
        figure = f"**{nll:,.2f}**" + (f" ± {error:.2f}" if seeds > 1 else "")
        assert figure in page and f"{nll:,.2f}" in recipe
        assert figure in readme or num_samples != 500 or name not in recipes.PICTURED


def test_the_page_has_the_table_of_the_iwae_paper_as_measured():
    assert iwae.table(iwae.read(), 4) in (ROOT / "tests/benchmarks/README.md").read_text()


def test_a_cell_of_the_iwae_table_says_what_is_known_of_it():
    row = {"layers": "two_layers", "objective": "IWAE", "k": 5, "num_epochs": 4, "nll": 90.0, "nll_se": 0.014}
    lines = iwae.table([row | {"active_units": [20.0, 5 / 3]}], 4).splitlines()
    assert len(lines) == 2 + len(iwae.PUBLISHED)
    assert lines[5] == "| IWAE | 5 |  | 90.00 ± 0.01 (20.0 + 1.7) | 85.54 | 83.89 |"
    assert iwae.cell(row | {"nll_se": None, "active_units": [3.0]}) == "90.00 (3.0)"


def test_the_anomalies_are_the_malignant_rows_and_no_training_row_is_scored():
    train, new, anomaly = anomalies.split(1)
    assert (len(train), len(new), anomaly.sum()) == (250, 319, 212)
    assert not {row.tobytes() for row in train} & {row.tobytes() for row in new}
    np.testing.assert_allclose([train.mean(0), train.std(0) - 1], 0, atol=1e-5)
    assert new[anomaly].mean() > new[~anomaly].mean() + 1


def test_the_cells_of_a_contender_are_its_seeds_and_their_mean():
    assert anomalies.cells([(0.9, 0.5), (0.8, 0.7)]) == ["0.8500 (0.9000, 0.8000)", "0.6000 (0.5000, 0.7000)"]
    assert anomalies.cells(["skipped: it is missing"] * 2) == ["skipped: it is missing", ""]


def test_a_figure_of_disentanglement_is_the_mean_of_the_seeds(capsys):
    rows = {"a": [{"mig": 0.1}, {"mig": 0.3}], "b": [{"mig": 0.5}, {"mig": 0.5}]}
    disentangle.table(rows)
    assert capsys.readouterr().out.splitlines()[-1] == "| mig | 0.200 ± 0.100 | 0.500 ± 0.000 |"
    assert disentangle.cell([0.25]) == "0.250"


@pytest.mark.robust
@pytest.mark.parametrize("contender", ("beta-VAE", "beta-TC-VAE"))
def test_the_benchmark_of_disentanglement_runs_in_small_sizes(contender):
    with without_pictures():
        row = disentangle.measured(*disentangle.contenders(2.0)[contender], 1, 1, True)
    assert set(disentangle.FIGURES) < row.keys()
    assert {f"MIG of {name}, 20 bins" for name in ("shape", "scale", "x", "y")} < row.keys()
    assert np.isfinite(list(row.values())).all()


@pytest.mark.parametrize("network", accelerator_parts.NETWORKS)
def test_the_operations_of_a_training_step_are_those_that_xla_counts(network):
    config = ours.recipe_config({"recipe": accelerator_parts.NETWORKS[network][0]})
    params, gradients = ours.linear(config)
    step = jax.jit(gradients).lower(params, jax.ShapeDtypeStruct((16, 28, 28, 1), "float32"))
    assert accelerator_parts.flops(network) == pytest.approx(step.cost_analysis()["flops"] / 16, rel=0.03)


def test_a_part_without_time_is_left_out_and_a_failure_spares_the_rows_after_it():
    rows, left_out, saved = {}, {}, []

    def fail():
        raise RuntimeError("out of memory\nand more")

    jobs = {"a, 1": fail, "a, 2": lambda: {"nll": 1.0}}
    accelerator.attempt(jobs, time.monotonic() + 60, rows, left_out, lambda: saved.append(len(rows)))
    assert (rows, left_out) == ({"a, 2": {"nll": 1.0}}, {"a, 1": "RuntimeError: out of memory"})
    assert saved == [0, 1]
    accelerator.attempt(jobs, time.monotonic() - 1, {}, left_out, lambda: None)
    assert left_out == dict.fromkeys(jobs, "no time was left")


@pytest.mark.robust
def test_the_benchmark_of_an_accelerator_runs_whole_without_the_packages_that_it_does_not_need(tmp_path):
    absent = ["tensorflow_datasets", "tensorflow", "tqdm", "matplotlib", "PIL", "sklearn", "orbax"]
    code = "import runpy, sys; sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(','))); "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    code = f"import sys; sys.argv = sys.argv[1:]; {code}"
    program = ROOT / "tests/benchmarks/accelerator.py"
    command = [sys.executable, "-c", code, str(program), ",".join(absent), "--tiny", f"--out={tmp_path}"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(program.parent)])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (tmp_path / "accelerator.md").read_text().strip()
    result = json.loads((tmp_path / "accelerator.json").read_text())
    assert {part for part, *_ in result["left_out"]} <= {"pytorch"}
    assert {"device", "backend", "jax", "driver", "commit"} <= result["machine"].keys()
    assert result.keys() == {"tiny", "machine", "seconds", "left_out", *accelerator.PARTS}
    assert len(result["speed"]["784-400-20, batch 16, bfloat16"]["images_per_second"]) == 3
    assert np.isfinite([row["nll"] for part in ("nll", "recipe") for row in result[part].values()]).all()
    assert result["agreement"]["784-400-20, 10 steps"]["as_expected"]
    assert result["members"]["784-400-20, batch 16"]["members"] == 3


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"x_train": np.zeros((300, 28, 28), np.uint8)}, "x_test"),
        (
            {name: np.zeros((300, 28, 28), np.float32) for name in ("x_train", "x_test")},
            "x_train is float32 .300, 28, 28.",
        ),
        ({name: np.zeros((9, 28, 28), np.uint8) for name in ("x_train", "x_test")}, "x_train holds 9 images"),
    ],
)
def test_the_benchmark_of_an_accelerator_refuses_other_data(tmp_path, arrays, words):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(SystemExit, match=words):
        accelerator.load(str(tmp_path / "data.npz"), accelerator.TINY)


def test_the_benchmark_of_an_accelerator_reads_images_with_and_without_channels(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (300, 28, 28), np.uint8)
    np.savez(tmp_path / "data.npz", x_train=x, x_test=x[..., None], y_train=np.zeros(300))
    data = accelerator.load(str(tmp_path / "data.npz"), accelerator.TINY)
    np.testing.assert_array_equal(data["x_train"], x[:228, ..., None])
    np.testing.assert_array_equal(data["x_test"], x[:40, ..., None])


def test_a_recipe_says_how_it_is_evaluated_and_whether_it_takes_hours():
    flags = {name: recipes.evaluation(recipes.path(name)) for name in ("digits", "mnist", "own_model", "mnist_gpu")}
    gpu = ["--checkpoint=best", "--num_samples=5000"]
    assert flags == {"digits": None, "mnist": [], "own_model": ["--trust"], "mnist_gpu": gpu}
    assert not {"mnist_gpu", "iwae/one_layer", "iwae/two_layers"} & set(recipes.names())
    assert {"digits", "conv", "photos"} < set(recipes.names())


def test_a_recipe_is_trained_after_the_one_whose_weights_it_begins_with_and_its_seconds_are_those_of_both(monkeypatch):
    rows, trained = [], []
    monkeypatch.setattr(recipes, "read", lambda: list(rows))
    monkeypatch.setattr(recipes, "write", lambda new: rows.__setitem__(slice(None), new))
    figures = {"cores": 1, "split": "test", "loss": 1.0}
    train = lambda recipe, seed: trained.append(recipe) or {"seconds": 10.0, **figures}  # noqa: E731
    monkeypatch.setattr(recipes, "train", train)
    monkeypatch.setattr(recipes, "evaluate", lambda *_: {"num_samples": 5, "nll": 2.0})
    recipes.measure("mnist_gated_iwae", 0, 5, redo=False)
    assert trained == ["mnist_gated", "mnist_gated_iwae"]
    assert {row["recipe"]: row["seconds"] for row in rows} == {"mnist_gated": 10.0, "mnist_gated_iwae": 20.0}
    assert recipes.begins_from("digits") == ""
