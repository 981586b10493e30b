"""JAX's switches: in 64-bit mode a float32 run stays float32 with its figures, and the pure functions take float64.

Types are found by `jax.eval_shape`, which compiles nothing.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, train_flags
from helpers import CODED, KINDS, names_of_kind, pca_data, pca_log_px, pca_params, pca_vae

from vae_jax import build, generate
from vae_jax.annealing import annealed_log_weights
from vae_jax.codes import discrete
from vae_jax.config import Config
from vae_jax.core import Examples, condition
from vae_jax.data import inputs
from vae_jax.data.inputs import DataInfo
from vae_jax.evaluate import make_evaluate
from vae_jax.likelihoods import mixed
from vae_jax.missing import observed
from vae_jax.objectives import log_weights, negative_iwae
from vae_jax.update import make_train

pytestmark = pytest.mark.robust

SHAPE, NUM, CLASSES = (5, 4, 1), 8, 3
CONVOLUTIONAL = {"network": "convolutional", "network_options": {"channels": [3], "decoder_blocks": [1]}}
FEW = {"num_components": 4}
FLOW = {"num_couplings": 1, "hidden_size": 4}
FEW_ABOVE = {"latent_dim": 2, "hidden_sizes": [5]}

# Each member of each family at least once: what is traced takes the time.
MODELS = [
    {"likelihood": "bernoulli", "beta_warmup_steps": 5, "ema_decay": 0.9, "binarization": "dynamic"},
    {"likelihood": "gaussian", "posterior": "delta", "beta": 0.0},
    {"likelihood": "poisson"},
    {"likelihood": "negative_binomial", "likelihood_options": {"shares": True}},
    {"likelihood": "zero_inflated_negative_binomial", "likelihood_options": {"shares": True}},
    {
        **CONVOLUTIONAL,
        "likelihood": "gaussian_scalar",
        "posterior": "flow",
        "prior": "real_nvp",
        **{"posterior_options": FLOW, "prior_options": FLOW},
        **{"objective": "iwae", "num_samples": 2},
    },
    {
        "likelihood": "gaussian_pixel",
        "posterior": "full_covariance",
        **{"prior": "mixture", "prior_options": FEW, "kl": "monte_carlo", "estimator": "stl", "num_samples": 2},
    },
    {
        **CONVOLUTIONAL,
        "conditional": True,
        "likelihood": "continuous_bernoulli",
        **{"hierarchy": "markov", "hierarchy_options": FEW_ABOVE, "schedule": "cosine", "warmup_steps": 3},
    },
    {
        "likelihood": "discretized_logistic",
        **{"prior": "vamp", "prior_options": FEW, "hierarchy": "hvae", "hierarchy_options": FEW_ABOVE},
        **{"objective": "iwae", "num_samples": 2, "estimator": "dreg"},
    },
    {
        **{"network": "temporal", "network_options": {"channels": [3]}},
        "likelihood": "categorical",
        "likelihood_options": {"num_levels": 3},
        "free_bits": 0.1,
    },
    {**CONVOLUTIONAL, "compute_dtype": "bfloat16", "posterior": "diagonal"},
    {"likelihood": "student_t", "latent_dim": 3, "posterior": "categorical", **CODED["categorical"]},
    {"likelihood": "laplace", "latent_dim": 3, "posterior": "fsq", **CODED["fsq"]},
    {"latent_dim": 3, "posterior": "vq", **CODED["vq"], "ema_decay": 0.5},
    {
        "likelihood": "log_normal",
        **{"hierarchy": "ladder", "hierarchy_options": {"latent_dims": [2], "hidden_sizes": [3]}, "free_bits": 0.1},
    },
    {"likelihood": "logistic_mixture"},
]


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def built(fields):
    config = Config(**{"hidden_sizes": (6,), "latent_dim": 2, "batch_size": 4, "num_epochs": 3} | fields)
    data = DataInfo(SHAPE, tuple(range(CLASSES)), (0.1, 1.0), NUM, 0, 4, "", None)
    return config, build.make_vae(config, data), build.make_objective(config)


def like(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype)


def types(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def floats(tree):
    return {name for name in types(tree) if "float" in name}


def states(config, vae):
    """The state before and after an epoch, and the sums of the metrics."""
    init, update = build.make_training(config, vae, 2)
    context = like("float32", NUM, CLASSES) if config.conditional else None
    examples = Examples(like("float32", NUM, *SHAPE), context)
    before = jax.eval_shape(lambda x: init(jax.random.key(0), x), examples.x)
    with jax.numpy_dtype_promotion("standard"):  # as a program has it
        return before, *jax.eval_shape(make_train(update, 4), before, examples, like("int32"))


def test_every_member_is_tested():
    for kind in KINDS:
        tested = {fields.get(kind, getattr(Config, kind)) for fields in MODELS}
        assert tested | {"mixed"} >= set(names_of_kind(kind))  # mixed is of tables: see the next test


def test_a_mixed_table_is_float32_in_64_bit_mode(x64):
    columns = {"a": "real", "b": "positive", "c": "count", "d": "category:3", "e": "ordinal:3"}
    part, x = mixed((5,), columns=columns), np.tile(np.float32([0.5, 2, 3, 1, 2]), (4, 1)) + np.float32(1e-3)
    x[:, 2:] = np.floor(x[:, 2:])
    params, outputs = part.init(jnp.asarray(x)), part.output_bias(part.average(jnp.asarray(x)))
    p = observed(part, (5,)).build(params, outputs)
    drawn = p.sample(jax.random.key(0), (2,))
    assert floats((params, outputs, part.features(jnp.asarray(x)), p.mean, drawn, p.log_prob(drawn))) == {"float32"}


def names_of(fields):
    return "-".join(value for value in fields.values() if isinstance(value, str))


@pytest.mark.parametrize("fields", MODELS, ids=names_of)
def test_a_float32_run_is_float32_in_64_bit_mode(fields, x64):
    config, vae, objective = built(fields)
    before, after, sums = states(config, vae)
    assert floats(before) == floats(sums) == {"float32"}
    assert jax.tree.map(lambda a: a.dtype, before) == jax.tree.map(lambda a: a.dtype, after)

    def figures(params, x, context, dtype):
        """What is made of a model and examples, all of it of their type."""
        own, one = condition(vae, context), condition(vae, None if context is None else context[:1])
        keys = jax.random.split(jax.random.key(0), 4)
        made = [
            jax.value_and_grad(objective, has_aux=True)(params, keys[0], x, own),
            generate.sample(params, keys[1], own, len(x)),
            generate.reconstruct(params, x, own),
            generate.interpolate(params, x, x, own, 3),
            generate.traverse(params, x[:1], one, 3),
            generate.moments(own.encode(params, x)),
            log_weights(params, keys[2], x, discrete(own), num_samples=2),
        ]
        if config.posterior not in {"delta", *CODED}:
            made.append(annealed_log_weights(params, keys[3], x, own, num_chains=2, num_steps=2))
        assert floats(made) == {dtype}
        return made

    for dtype in ("float32", "float64")[: 1 if config.compute_dtype == "bfloat16" else 2]:
        params = jax.tree.map(lambda a, dtype=dtype: like(dtype, *a.shape), after.params)
        context = like(dtype, 3, CLASSES) if config.conditional else None
        jax.eval_shape(partial(figures, dtype=dtype), params, like(dtype, 3, *SHAPE), context)


def test_data_and_parameters_may_have_different_types(x64):
    """A float64 copy of the parameters evaluates stored data, as a dense layer of Flax does."""
    config, vae, objective = built(CONVOLUTIONAL)
    before, *_ = states(config, vae)
    params = jax.tree.map(lambda a: like("float64", *a.shape), before.params)
    with jax.numpy_dtype_promotion("standard"):
        loss, _ = jax.eval_shape(partial(objective, vae=vae), params, jax.random.key(0), like("float32", 3, *SHAPE))
        started = jax.eval_shape(vae.init, jax.random.key(0), like("float64", 3, *SHAPE))
    assert loss.dtype == jnp.float64
    assert floats(started) == {"float32"}


def test_bounds_at_the_exact_posterior_are_log_px_to_the_precision_of_float64(x64):
    vae, x = pca_vae(exact=True), jnp.asarray(pca_data(), jnp.float64)
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), pca_params())
    expected = pca_log_px(params, x)
    bound, _ = jax.jit(lambda params, x: negative_iwae(params, jax.random.key(0), x, vae, num_samples=2))(params, x)
    result = make_evaluate(vae, num_samples=3, chunk_size=2)(params, jax.random.key(0), Examples(x, None))
    np.testing.assert_allclose(-bound, np.mean(expected), rtol=1e-12)
    np.testing.assert_allclose(result.log_px, expected, rtol=1e-12)


def test_draws_are_those_of_32_bit_mode():
    """Bits of 64 would make other numbers: another binarised test split, other weights to begin with."""

    def draws():
        _, vae, _ = built({"prior": "mixture", "prior_options": FEW, **CONVOLUTIONAL})
        x = jax.random.uniform(jax.random.key(1), (NUM, *SHAPE), jnp.float32)
        return inputs.binarize(jax.random.key(2), x), jax.jit(vae.init)(jax.random.key(0), x)

    plain = draws()
    with jax.enable_x64(True):
        jax.tree.map(np.testing.assert_array_equal, draws(), plain)


def test_evaluation_is_that_of_32_bit_mode(digits_run, vae):
    flags = ("--num_samples=3", "--limit=20")
    plain = json.loads(vae("evaluate", digits_run, *flags))
    with jax.enable_x64(True):
        wide = json.loads(vae("evaluate", digits_run, *flags))
    assert numbers(wide) == pytest.approx(numbers(plain), rel=1e-4, abs=1e-5)


def numbers(record):
    return {name: value for name, value in record.items() if isinstance(value, int | float)}


def test_a_run_goes_on_in_64_bit_mode(digits_run, train, tmp_path, no_pictures):
    run_dir = tmp_path / "run"
    shutil.copytree(digits_run, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "90")
    with jax.enable_x64(True):
        record = train(run_dir, num_epochs=6)
    expected = json.loads((digits_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert numbers(record) == pytest.approx(numbers(expected), rel=1e-3, abs=1e-3)


def test_a_run_goes_on_with_keys_of_its_kind_only(digits_run, train_py, refused, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(digits_run, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "90")
    with jax.default_prng_impl("rbg"):
        line = refused(train_py.main, train_flags(run_dir, num_epochs=6))
    assert "JAX_DEFAULT_PRNG_IMPL=threefry2x32; now it is rbg. Set threefry2x32" in line


def test_held_out_examples_are_binarised_alike_whatever_the_kind_of_keys():
    x = np.full((50, 4), 0.5, np.float32)
    config = Config(binarization="static")
    plain = inputs.prepare_fixed(x, "test", config)
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(inputs.prepare_fixed(x, "test", config), plain)


def test_an_export_serves_either_mode_and_kind_of_keys(digits_run, vae, tmp_path):
    with jax.enable_x64(True), jax.default_prng_impl("rbg"):
        vae("export", digits_run, "--out", tmp_path / "vae.zip")
        vae("sample", digits_run, "--num=3", "--out", tmp_path / "samples.npz")
    with zipfile.ZipFile(tmp_path / "vae.zip") as archive:
        archive.extractall(tmp_path / "vae")
    spec = importlib.util.spec_from_file_location("vae", tmp_path / "vae" / "vae.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module._read = lambda name: (tmp_path / "vae" / name).read_bytes()
    drawn = module.sample(0, 3)
    with np.load(tmp_path / "samples.npz") as expected:
        for name in expected.files:
            np.testing.assert_allclose(drawn[name], expected[name], atol=1e-5)
    with pytest.raises(ValueError, match="threefry2x32; expected a seed"):
        module.sample(jax.random.key(0), 3)


SWITCHES = {
    "64-bit": {"JAX_ENABLE_X64": "1"},
    "rbg": {"JAX_DEFAULT_PRNG_IMPL": "rbg"},
    "strict": {
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_DEBUG_NANS": "1",
    },
    "devices": {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
}


@pytest.mark.parametrize(
    "switch", [pytest.param(name, marks=() if name == "64-bit" else pytest.mark.slow) for name in SWITCHES]
)
def test_a_process_with_the_switch_trains_and_evaluates(switch, tmp_path):
    env = {**os.environ, **SWITCHES[switch]}

    def run(*argv):
        argv = [sys.executable, *map(str, argv)]
        return subprocess.run(argv, env=env, cwd=ROOT, check=True, capture_output=True, text=True).stdout

    fields = {"network": "convolutional", "network_options": '{"channels":[4]}', "ema_decay": 0.9, "num_epochs": 1}
    record = json.loads(run("train.py", *train_flags(tmp_path / "run", **fields, batch_size=100)))
    assert record["step"] == 15 and record["loss"] < 44  # of a decoder that knows nothing
    if switch == "64-bit":  # the others start slowly
        return
    figures = json.loads(run("-m", "vae_jax", "evaluate", tmp_path / "run", "--num_samples=3"))
    assert figures["elbo"] == pytest.approx(-record["loss"], abs=0.5)
    assert run("-m", "vae_jax", "sample", tmp_path / "run")
