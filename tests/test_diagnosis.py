"""A run that surprises is explained once, with a remedy that can be followed; a healthy run is not talked about."""

import io
import json
import re
from contextlib import redirect_stdout

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import train_flags

from vae_jax import build
from vae_jax.__main__ import main
from vae_jax.cli import console
from vae_jax.config import Config, digits, override
from vae_jax.data.inputs import DataInfo
from vae_jax.run import diagnosis

pytestmark = pytest.mark.robust

DATA = DataInfo((4,), (), (0.0, 1.0), 1000, 0, 50, "", None)
GREY = jnp.full((50, 4), 0.5).at[:, 0].set(1)  # a share of 3/4 is grey
BITS = jnp.eye(4)[jnp.arange(50) % 4]
HEALTHY = {"loss": 2.0, "nll": 1.5, "elbo": -2.0, "log_likelihood": -1.0, "kl": 1.0, "active_units": 2}
COLLAPSED = HEALTHY | {"active_units": 0, "kl": 0.003}
FAR = HEALTHY | {"kl": 8.0, "kl_aggregate": 3.5}
SMALL = {"hidden_sizes": (8,), "latent_dim": 2}


def notes(figures, x=BITS, data=DATA, skipped=0, is_own=True, **fields):
    return diagnosis.notes(Config(**SMALL | fields), data, figures, x, skipped=skipped, is_own=is_own)


def follow(text, data=DATA, **fields):
    """Give every flag of a text with a value; each must be one that the config allows. Returns their fields."""
    config, followed = Config(**SMALL | fields), []
    for flags in re.findall(r"(?:--config\.\w+=[^\s,]*[^\s,.](?: (?=--))?)+|--config\.init_from=", text):
        values = dict(flag.removeprefix("--config.").split("=", 1) for flag in flags.split())
        changed = override(config, values)
        assert changed != config
        build.make_vae(changed, data)
        build.make_objective(changed)
        followed.append(tuple(values))
    return followed


def test_a_healthy_run_is_not_talked_about():
    assert notes(HEALTHY) == {}
    assert notes(HEALTHY | {"kl_aggregate": 1.9}) == {}
    assert notes({}) == {}  # a run that was never evaluated
    assert notes(HEALTHY, skipped=3) == {}  # of data in [0, 1]


@pytest.mark.parametrize(
    ("fields", "remedies"),
    [
        ({}, ["beta", "beta_warmup_steps", "free_bits"]),
        ({"beta_warmup_steps": 9}, ["beta", "free_bits"]),
        ({"beta": 4.0}, ["beta"]),
        ({"beta": 0.0}, ["free_bits"]),
        ({"free_bits": 0.5}, ["beta", "beta_warmup_steps"]),
        ({"posterior": "full_covariance"}, ["beta", "beta_warmup_steps"]),
        ({"kl": "monte_carlo", "estimator": "stl"}, ["beta", "beta_warmup_steps"]),
        ({"objective": "iwae", "num_samples": 5}, []),
    ],
    ids=str,
)
def test_a_collapsed_posterior_is_named_with_the_remedies_that_the_config_allows(fields, remedies):
    fields = {"num_epochs": 200} | fields
    text = notes(COLLAPSED, **fields)["collapse"]
    assert text.startswith("Posterior collapse: 0 of 2 latent dimensions are active (KL 0.003)")
    assert [name for (name,) in follow(text, **fields)] == remedies
    assert ("a smaller decoder (--config.hidden_sizes)" in text) is (fields.get("beta", 1) <= 1)
    assert "--config.num_epochs" not in text


def test_a_short_run_may_only_need_more_epochs():
    assert "Train anew with more epochs (--config.num_epochs), --config.beta=0.5," in notes(COLLAPSED)["collapse"]


def test_a_sigma_beyond_the_spread_of_the_data_is_the_cause_of_a_collapse():
    x = jax.random.normal(jax.random.key(0), (200, 4))
    fields = {"likelihood": "gaussian", "likelihood_options": {"sigma": 2.0}}
    flags = "--config.likelihood=gaussian_scalar --config.likelihood_options={}."
    assert notes(COLLAPSED, x, **fields)["collapse"].endswith(f"Train anew with {flags}")
    assert "scalar" not in notes(COLLAPSED, x, likelihood="gaussian")["collapse"]
    assert "scalar" not in notes(COLLAPSED, 0.1 * x, likelihood="gaussian", standardize=True)["collapse"]


@pytest.mark.parametrize(
    "case",
    [
        {"posterior": "delta"},
        {"posterior": "flow"},
        {"prior": "mixture"},
        {"prior": "real_nvp"},
        {"hierarchy": "hvae"},
        {"figures": COLLAPSED | {"kl": None}},
        {"figures": COLLAPSED | {"loss": float("nan")}},
        {"x": BITS[:1]},
        {"is_own": False},
    ],
    ids=str,
)
def test_no_collapse_is_claimed_where_active_units_say_little(case):
    assert notes(case.pop("figures", COLLAPSED), **case) == {}


@pytest.mark.parametrize(
    ("fields", "remedies"),
    [
        ({}, [("prior",)] * 3),
        ({"free_bits": 0.5}, [("prior", "free_bits")] * 3),
        ({"kl": "analytic"}, [("prior", "kl")] * 3),
        ({"posterior": "full_covariance"}, [("prior",)] * 2),  # vamp needs a diagonal one
        ({"likelihood": "gaussian", "standardize": True}, [("prior",)] * 2),  # vamp needs x in [0, 1]
    ],
    ids=str,
)
def test_a_far_aggregate_posterior_is_named_with_the_priors_that_the_config_allows(fields, remedies):
    text = notes(FAR, **fields)["aggregate"]
    assert "is 3.50 nats from the prior (kl_aggregate, of a KL of 8.00)" in text
    assert follow(text, **fields) == remedies


@pytest.mark.parametrize("case", [{"prior": "mixture"}, {"hierarchy": "markov"}, {"is_own": False}], ids=str)
def test_a_far_aggregate_posterior_has_no_sure_remedy_there(case):
    assert notes(FAR, **case) == {}


def test_another_model_does_not_begin_with_the_weights_of_this_one():
    text = notes(FAR, init_from="/runs/a")["aggregate"]
    assert text.count("--config.init_from=") == 3
    assert "init_from" not in notes(COLLAPSED, init_from="/runs/a")["collapse"]


def test_a_negative_nll_is_right_for_a_density_alone():
    below = HEALTHY | {"loss": -3.5, "nll": -3.75, "log_likelihood": 5.0}
    for likelihood in ("gaussian", "gaussian_scalar", "gaussian_pixel", "continuous_bernoulli"):
        assert notes(below, likelihood=likelihood)["density"].startswith("The NLL is -3.75, below 0: this is right")
    trained = {name: value for name, value in below.items() if name != "nll"}
    assert notes(trained, likelihood="gaussian")["density"].startswith("The loss is -3.50, below 0")
    assert "density" in notes(below, likelihood="gaussian", is_own=False)
    assert notes(HEALTHY, likelihood="gaussian") == {}
    for likelihood in ("bernoulli", "discretized_logistic", "categorical"):
        assert notes(below, likelihood=likelihood) == {}


def test_grey_values_of_a_bernoulli_are_named_with_two_remedies():
    text = notes(HEALTHY, GREY)["grey"]
    assert "a share of 0.75 is neither 0 nor 1" in text
    assert follow(text) == [("binarization",), ("likelihood",)]
    assert notes(HEALTHY, GREY, likelihood="continuous_bernoulli") == {}


@pytest.mark.parametrize(
    ("fields", "shape", "flags"),
    [
        ({}, (4,), "Give --config.standardize=true."),
        (
            {"prior": "vamp", "prior_options": {"num_components": 3}},
            (4,),
            "Give --config.standardize=true --config.prior=standard_normal --config.prior_options={}.",
        ),
        ({"init_from": "/runs/a"}, (4,), "Give --config.standardize=true --config.init_from=."),
        ({}, (300, 300), "Give data with standard deviations of about 1."),
    ],
    ids=str,
)
def test_skipped_updates_of_unscaled_data_are_explained(fields, shape, flags):
    data = DATA._replace(range=(-3.0, 1e4), shape=shape)
    fields = {"likelihood": "gaussian"} | fields
    x = jnp.zeros((3, *shape))
    text = notes(HEALTHY, x, data, skipped=7, **fields)["scale"]
    assert text.startswith("7 updates were skipped") and text.endswith(f"The data goes from -3 to 10000. {flags}")
    assert notes(HEALTHY, x, data, **fields) == {}
    assert notes(HEALTHY, x, data, skipped=7, **fields, is_own=False) == {}


# Through the commands


def said(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if not line.startswith("epoch")]


def test_a_run_says_each_note_once_at_its_end_and_evaluate_puts_them_into_its_json(
    train, vae, tmp_path, no_pictures, capsys
):
    """A beta of 1000 collapses the posterior."""
    train(tmp_path / "run", beta=1000, num_epochs=4)
    grey, collapse = said(capsys)
    assert grey.startswith("Bernoulli of grey values (a share of 0.4")
    assert collapse.startswith("Posterior collapse: 0 of 2 latent") and collapse.endswith("with --config.beta=1.")
    train(tmp_path / "again", beta=1, num_epochs=4)
    assert said(capsys) == [grey]
    (line,) = vae("evaluate", tmp_path / "run", "--num_samples=2").splitlines()
    assert [note.split(" ")[0] for note in json.loads(line)["notes"]] == ["Bernoulli", "Posterior"]
    assert said(capsys) == []


def test_a_run_that_a_signal_stops_has_not_ended(train_py, tmp_path, no_pictures, capsys, monkeypatch):
    import contextlib

    @contextlib.contextmanager
    def stops():
        yield lambda: 143

    monkeypatch.setattr(console, "stop_signals", stops)
    with jax.numpy_dtype_promotion("standard"), redirect_stdout(io.StringIO()):
        assert train_py.main(train_flags(tmp_path / "run")) == 143
    assert ["stopped at step 0" in line for line in said(capsys)] == [True]


def test_a_healthy_run_says_nothing(train, vae, tmp_path, no_pictures, capsys):
    train(tmp_path / "run", binarization="dynamic")
    assert said(capsys) == []
    assert "notes" not in json.loads(vae("evaluate", tmp_path / "run", "--num_samples=2"))


def test_a_sweep_says_a_note_once_and_counts_its_runs(tmp_path, no_pictures, capsys):
    argv = ["sweep", str(tmp_path), "--seeds=0,1", "--betas=1,1000"]
    fields = {**{"hidden_sizes": 8, "latent_dim": 2, "learning_rate": 0.01}, "num_epochs": 4, "eval_epochs": 2}
    with jax.numpy_dtype_promotion("standard"), redirect_stdout(io.StringIO()):
        main(argv + [f"--config.{name}={value}" for name, value in fields.items()])
    lines = [line for line in said(capsys) if not re.match(r"seed-\d_beta-\d+  epoch", line)]
    grey, collapse = lines
    assert grey.startswith("Bernoulli of grey")
    assert collapse.startswith("seed-0_beta-1000 and 1 more: Posterior collapse")


def test_data_of_a_large_scale_gets_the_advice_which_helps(train_py, train, tmp_path, no_pictures, capsys):
    """In images too, whose columns nothing is said about before."""
    x = np.random.default_rng(0).normal(1e4, 3e3, (60, 3, 3, 1)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    fields = {"dataset": tmp_path / "x.npy", "likelihood": "gaussian_scalar", "batch_size": 10}
    with jax.numpy_dtype_promotion("standard"):
        assert console.run(train_py.main, train_flags(tmp_path / "run", **fields)) == 2
    *_, line = said(capsys)
    assert line.endswith("Give --config.standardize=true. Give --restart too, which moves this run aside.")
    train(tmp_path / "run", "--restart", **fields, standardize="true")
    assert not any("skipped" in line or "standardize" in line for line in said(capsys))


def test_the_default_run_is_told_that_it_is_grey_alone():
    """The settings without a recipe."""
    assert digits().likelihood == "bernoulli"
    found = diagnosis.notes(digits(), DATA, HEALTHY | {"kl_aggregate": 0.5}, GREY)
    assert list(found) == ["grey"]
