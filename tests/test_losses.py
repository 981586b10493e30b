"""Every objective that a config can name trains, resumes and is swept, and contradictions are refused."""

import json
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mostly_slow, train_flags
from helpers import jit, mlp_vae

from vae_jax import build, losses
from vae_jax.config import Config, override
from vae_jax.core import Examples
from vae_jax.data.inputs import DataInfo
from vae_jax.errors import UserError
from vae_jax.evaluate import make_evaluate_objective
from vae_jax.losses import make_evaluation_objective, make_objective, split_loss
from vae_jax.run import metrics

# What each needs beside its name.
NEEDS = {
    "elbo": {},
    "iwae": {"num_samples": 2},
    "miwae": {"num_samples": 2, "objective_options": {"num_groups": 2}},
    "piwae": {"num_samples": 2, "objective_options": {"num_groups": 2}},
    "ciwae": {"num_samples": 2, "objective_options": {"elbo_weight": 0.05}},
    "renyi": {"num_samples": 2, "objective_options": {"order": 0.5}},
    "thermodynamic": {"num_samples": 2, "objective_options": {"num_points": 3, "smallest": 0.1}},
    "capacity": {"objective_options": {"gamma": 2.0, "capacity": 1.5, "capacity_warmup_steps": 20}},
    "total_correlation": {"beta": 2.0},
    "mmd": {"objective_options": {"weight": 5.0}},
    "dip": {"objective_options": {"off_diagonal": 2.0, "diagonal": 3.0}},
    "vq": {
        **{"posterior": "vq", "prior": "uniform_codes", "ema_decay": 0.9},
        "posterior_options": {"num_codes": 50, "code_dim": 2, "restart_steps": 3},
    },
}
NAMES = sorted(losses.OBJECTIVES)
every = pytest.mark.parametrize("name", NAMES)
COVARIANCE = NEEDS["thermodynamic"] | {"objective": "thermodynamic", "estimator": "covariance"}


def config_of(name, **fields):
    return Config(objective=name, **NEEDS[name] | fields)


def test_every_objective_is_here():
    choices = Config.__dataclass_fields__["objective"].metadata["choices"]
    assert set(choices) == set(NEEDS) == set(losses.OBJECTIVES)
    estimators = {"pathwise", *losses.ESTIMATORS.values()}
    assert set(Config.__dataclass_fields__["estimator"].metadata["choices"]) == estimators


@pytest.fixture(scope="module")
def mlp():
    vae, x = mlp_vae((6,), latent_dim=2), jax.random.uniform(jax.random.key(1), (8, 6)).round()
    return vae, jax.jit(vae.init)(jax.random.key(2), x), x


@pytest.mark.parametrize("name", [name for name in NAMES if name != "vq"])  # see test_codebooks.py
def test_its_gradient_is_a_descent_and_its_evaluation_is_finite(name, mlp):
    """A small step along the gradient lowers the loss at the same noise by what the gradient says."""
    vae, params, x = mlp
    config = config_of(name)
    own = jit(make_objective(config, num_examples=20), vae)
    loss = jax.jit(lambda params: own(params, jax.random.key(3), x)[0])
    (value, grads), before = jax.value_and_grad(loss)(params), set(own(params, jax.random.key(3), x)[1])
    norm = sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads))
    moved = jax.tree.map(lambda p, g: p - 1e-3 / norm**0.5 * g, params, grads)
    if name != "piwae":  # whose gradient is of two losses
        np.testing.assert_allclose(value - loss(moved), 1e-3 * norm**0.5, rtol=0.1)
    values, mean = make_evaluate_objective(vae, make_evaluation_objective(config))(
        params, jax.random.key(4), Examples(x, None)
    )
    figures = split_loss(config, values)
    assert mean.shape == (8, 2) and figures.keys() == {"loss", *before}
    assert all(np.isfinite(value) for value in figures.values())


FEW = {"num_epochs": 1, "batch_size": 250, "learning_rate": 0.003}
# The others go the same way.
FAST = ("piwae", "capacity", "total_correlation", "vq")


def flags_of(name):
    text = {field: json.dumps(value) for field, value in NEEDS[name].items() if isinstance(value, dict)}
    return FEW | {"objective": name} | NEEDS[name] | text


@pytest.mark.robust
@pytest.mark.parametrize("name", mostly_slow(NAMES, lambda name: name in FAST))
def test_it_trains_the_digits_resumes_and_is_swept(name, train, tmp_path, no_pictures):
    from vae_jax.__main__ import main

    fields = flags_of(name)
    train(tmp_path / "once", **fields | {"num_epochs": 3})
    train(tmp_path / "twice", **fields)
    train(tmp_path / "twice", **fields | {"num_epochs": 3})
    once, twice = (metrics.read(tmp_path / run) for run in ("once", "twice"))
    tests = [[r for r in records if r["split"] == "test"] for records in (once, twice)]
    assert tests[0] == tests[1] and len(tests[0]) == 3
    # The loss of the capacity rises with it.
    assert name == "capacity" or tests[0][-1]["loss"] < tests[0][0]["loss"]
    with jax.numpy_dtype_promotion("standard"):
        flags = train_flags("x", **fields | {"num_epochs": 3})[2:]
        assert main(["sweep", str(tmp_path / "sweep"), "--seeds=0,1", *flags]) == 0
    swept = [r for r in metrics.read(tmp_path / "sweep" / "seed-0") if r["split"] == "test"]
    assert swept == tests[0]


@pytest.mark.robust
def test_betas_of_the_total_correlation_are_swept(train, tmp_path, no_pictures):
    """A traced beta gives what a constant one gives, in training and in the loss of a split."""
    from vae_jax.__main__ import main

    fields = flags_of("total_correlation")
    alone = train(tmp_path / "alone", **fields | {"beta": 4.0})
    with jax.numpy_dtype_promotion("standard"):
        flags = [flag for flag in train_flags("x", **fields)[2:] if "beta" not in flag]
        assert main(["sweep", str(tmp_path / "sweep"), "--betas=1,4", *flags]) == 0
    (last,) = [r for r in metrics.read(tmp_path / "sweep" / "seed-0_beta-4") if r["split"] == "test"]
    assert last["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    parts = last["mutual_information"] + 4 * last["total_correlation"] + last["dimension_wise_kl"]
    assert last["loss"] == pytest.approx(parts - last["log_likelihood"], rel=1e-5)


def test_the_number_of_training_examples_reaches_the_total_correlation(mlp):
    vae, params, x = mlp
    config = config_of("total_correlation")
    data = DataInfo((6,), (), (0.0, 1.0), 20, 0, 8, "", None)
    build.check_objective(config, vae, data)
    few, many = (
        jit(make_objective(config, num_examples=num), vae)(params, jax.random.key(3), x)[1]["mutual_information"]
        for num in (8, 1000)
    )
    assert many > few + 0.01
    with pytest.raises(TypeError, match="num_examples"):
        make_objective(config)(params, jax.random.key(3), x, vae)


def refused(fields):
    with pytest.raises(UserError) as caught:
        make_objective(Config(**fields))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("elbo", "iwae")])
@pytest.mark.parametrize("field, value", (("free_bits", 0.1), ("estimator", "dreg"), ("posterior", "delta")))
def test_what_does_not_apply_is_refused(name, field, value):
    if (name, field) == ("mmd", "posterior"):
        make_objective(config_of(name, posterior="delta", beta=0.0))
        return
    message = refused({"objective": name} | NEEDS[name] | {field: value})
    assert repr(value) in message or "posterior=diagonal" in message
    assert repr(name) in message


@pytest.mark.parametrize("name", losses.WEIGHTED)
@pytest.mark.parametrize("field, value", (("alpha", 0.5), ("beta", 2.0), ("beta_warmup_steps", 3), ("kl", "analytic")))
def test_importance_weights_have_no_weighted_terms(name, field, value):
    message = refused({"objective": name} | NEEDS[name] | {field: value})
    assert message == f"{field} is {value!r}, which objective {name!r} does not use. Leave it out."


@pytest.mark.parametrize("name", ("capacity", *losses.AGGREGATE))
@pytest.mark.parametrize("fields", ({"hierarchy": "hvae"}, {"prior": "real_nvp"}, {"prior": "mixture"}), ids=str)
def test_penalties_need_one_latent_with_the_standard_normal_prior(name, fields):
    assert "prior=standard_normal and no hierarchy" in refused({"objective": name} | NEEDS[name] | fields)


def traced(config, dtype):
    """The types of the loss, the metrics and the gradient of a model of `dtype`."""
    data = DataInfo((6,), (), (0.0, 1.0), 20, 0, 8, "", None)
    config = replace(config, hidden_sizes=(4,), latent_dim=2, batch_size=4)
    vae, objective = build.make_vae(config, data), make_objective(config, num_examples=20)
    shapes = jax.eval_shape(vae.init, jax.random.key(0), jax.ShapeDtypeStruct((4, 6), "float32"))
    x = jax.ShapeDtypeStruct((4, 6), dtype)
    params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), shapes)
    grad = jax.value_and_grad(objective, has_aux=True)
    found = jax.eval_shape(lambda p, key, x: grad(p, key, x, vae), params, jax.random.key(0), x)
    return {str(leaf.dtype) for leaf in jax.tree.leaves(found)}


@pytest.mark.parametrize("name", losses.WEIGHTED)
def test_importance_weights_take_any_model_with_a_density(name):
    """Also a latent of two parts, and a posterior without a closed form."""
    model = {"hierarchy": "markov", "prior": "real_nvp", "posterior": "flow"}
    estimators = {"pathwise", losses.ESTIMATORS.get(name, "pathwise")}
    assert all(traced(config_of(name, **model, estimator=e), "float32") == {"float32"} for e in estimators)
    assert "has no density" in refused({"objective": name} | NEEDS[name] | {"posterior": "delta"})


@every
def test_its_type_is_that_of_the_model_in_64_bit_mode(name):
    with jax.enable_x64(True):
        for dtype in ("float32", "float64"):
            assert traced(config_of(name), dtype) == {dtype}


@pytest.mark.parametrize(
    ("fields", "part"),
    (
        ({"objective": "miwae"}, "needs the option num_groups"),
        ({"objective": "renyi"}, "needs the option order"),
        ({"objective": "capacity", "objective_options": {"gamma": 2}}, "needs the option capacity"),
        ({"objective": "mmd"}, "needs the option weight"),
        ({"objective": "dip"}, "needs the options off_diagonal and diagonal"),
        ({"objective": "thermodynamic"}, "needs the options num_points and smallest, or points"),
        ({"objective": "thermodynamic", "objective_options": {"points": 3}}, "expected numbers, such as"),
        ({"objective": "miwae", "objective_options": {"num_groups": 0}}, "positive whole numbers"),
        ({"objective": "miwae", "objective_options": {"num_groups": "2"}}, "expected a whole number"),
        ({"objective": "renyi", "objective_options": {"order": True}}, "expected a number"),
        ({"objective": "ciwae", "objective_options": {"elbo_weight": 2}}, "expected a number from 0 to 1"),
        ({"objective": "ciwae", "objective_options": {"elbo_weight": -1}}, "expected at least 0"),
        ({"objective": "mmd", "objective_options": {"weight": 1, "bandwidth": 0}}, "expected a positive number"),
        ({"objective": "mmd", "objective_options": {"weight": 1}, "batch_size": 1}, "batch_size is 1"),
        ({"objective": "total_correlation", "batch_size": 1}, "batch_size is 1"),
        ({"objective": "total_correlation", "objective_options": {"num_examples": 9}}, "no option 'num_examples'"),
        ({"objective": "total_correlation", "objective_options": {"stratified": 1}}, "expected true or false"),
        ({"objective": "elbo", "objective_options": {"order": 1}}, "Its options: none"),
        ({"objective": "elbo", "objective_options": {"beta": 1}}, "Set --config.beta"),
        ({"objective": "iwae", "estimator": "stl", "kl": "monte_carlo"}, "biased"),
        (COVARIANCE | {"num_samples": 1}, "Set --config.num_samples=2"),
        ({"objective": "vq", "objective_options": {"commitment": -1}}, "expected at least 0"),
        ({"objective": "elbo", "estimator": "covariance"}, "Choose stl or pathwise"),
        ({"objective": "miwae", "objective_options": {"num_groups": 2}, "estimator": "stl"}, "Choose pathwise."),
        (
            {"objective": "dip", "objective_options": {"off_diagonal": 1, "diagonal": 1, "kind": "iii"}},
            "expected i or ii",
        ),
    ),
    ids=str,
)
def test_options_that_are_missing_or_wrong_are_refused(fields, part):
    assert part in refused(fields)


@pytest.mark.parametrize("name", ("miwae", "piwae", "ciwae", "renyi", "capacity", "mmd", "dip"))
def test_advice_to_give_options_works(name):
    (options,) = re.findall(r"--config.objective_options='(.*)', say", refused({"objective": name}))
    make_objective(override(Config(objective=name), {"objective_options": options}))
    assert json.loads(options).keys() == NEEDS[name]["objective_options"].keys() - {"capacity_warmup_steps"}


def test_the_covariance_estimator_is_evaluated_as_the_bound(mlp):
    vae, params, x = mlp
    config = Config(**COVARIANCE)
    values = [
        jit(f, vae)(params, jax.random.key(5), x)[0]
        for f in (make_objective(config), make_evaluation_objective(config))
    ]
    np.testing.assert_allclose(*values, rtol=1e-6)
