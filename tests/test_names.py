"""Code from outside: named by a config, kept by its run, run by a command only if it is trusted."""

import json
import os
import subprocess
import sys
import time
from inspect import isfunction
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, contents, train_flags

from vae_jax import build, load, names, networks, save
from vae_jax.__main__ import main
from vae_jax.cli import console
from vae_jax.config import Config
from vae_jax.errors import UserError
from vae_jax.run import metrics

pytestmark = pytest.mark.robust

COMMANDS = ("sample", "reconstruct", "interpolate", "traverse", "encode", "evaluate", "score", "report", "export")

PARTS = """
from __future__ import annotations

import jax.numpy as jnp
import optax
from vae_jax import Posterior, Prior, hierarchies, likelihoods, networks, posteriors, priors

with open({ran!r}, "a") as file:
    file.write("x")  # so that a test can tell


def network(shape, encoder_outputs, decoder_outputs, hidden_sizes, activation):
    return networks.mlp(shape, encoder_outputs, decoder_outputs, hidden_sizes=hidden_sizes, activation=activation)


def likelihood(shape):
    return likelihoods.bernoulli(shape)


def posterior(latent_dim):
    return posteriors.diagonal(latent_dim)


def prior(latent_dim):
    return priors.mixture(latent_dim, num_components=3)


def hierarchy(*, latent_dim=2):
    return hierarchies.markov(latent_dim=latent_dim, hidden_sizes=(4,))


def chain(learning_rate):
    return optax.sgd(learning_rate)
"""

OWN = '''
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from vae_jax import VAE, Bernoulli, DiagonalGaussian, Network, elbo
from vae_jax.networks import Function


def network(shape, encoder_outputs, decoder_outputs):
    """Linear, with parameters that are plain arrays, and no option."""
    size = shape[0] * shape[1]

    def linear(rows, columns):
        return lambda key, x, context: jax.random.normal(key, (rows, columns)) / rows**0.5

    return Network(
        Function(linear(size, encoder_outputs), lambda w, x, _: x.reshape(*x.shape[:-3], size) @ w),
        Function(
            linear(2, size * decoder_outputs),
            lambda w, z, _: (z @ w).reshape(*z.shape[:-1], *shape, decoder_outputs),
        ),
    )


def objective(params, key, x, vae, *, beta, strength=0.0):
    log_likelihood, kl = elbo(params, key, x, vae)
    return jnp.mean(beta * kl - log_likelihood) + strength, {"surprise": jnp.max(kl)}


def chain(learning_rate):
    return optax.chain(optax.clip(0.5), optax.contrib.muon(learning_rate))


class Pair(eqx.Module):
    encoder: eqx.nn.MLP
    decoder: eqx.nn.MLP


def make_vae(data, width=8):
    """A whole VAE of Equinox modules, of a label too if there are classes."""
    (size, classes), latent = (data.shape[0] * data.shape[1], data.context_size), 2
    make = lambda key: Pair(  # noqa: E731
        eqx.nn.MLP(size + classes, 2 * latent, width, 1, key=key),
        eqx.nn.MLP(latent + classes, size, width, 1, key=jax.random.fold_in(key, 1)),
    )
    static = eqx.filter(eqx.filter_eval_shape(make, jax.random.key(0)), eqx.is_array_like, inverse=True)
    _, static = eqx.partition(make(jax.random.key(0)), eqx.is_array)

    def apply(mlp, x, context):
        x = x if context is None else jnp.concatenate(
            [x, jnp.broadcast_to(context, (*x.shape[:-1], classes))], -1)
        flat = x.reshape(-1, x.shape[-1])
        return jax.vmap(mlp)(flat).reshape(*x.shape[:-1], -1)

    def encode(params, x, context=None):
        model = eqx.combine(params, static)
        outputs = apply(model.encoder, x.reshape(*x.shape[: -len(data.shape)], size), context)
        return DiagonalGaussian(*jnp.split(outputs, 2, -1))

    def decode(params, z, context=None):
        logits = apply(eqx.combine(params, static).decoder, z, context)
        return Bernoulli(logits.reshape(*z.shape[:-1], *data.shape), len(data.shape))

    return VAE(
        lambda key, x: eqx.filter(make(key), eqx.is_array),
        encode,
        decode,
        lambda params: DiagonalGaussian(jnp.zeros(latent), jnp.zeros(latent)),
    )
'''


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """parts.py, whose parts are those of the package, and own.py, whose parts are not."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "parts.py").write_text(PARTS.format(ran=str(folder / "ran")))
    (folder / "own.py").write_text(OWN)
    return folder


@pytest.fixture
def offer(monkeypatch):
    """The environment trusts nothing."""
    monkeypatch.delenv("VAE_JAX_TRUST", raising=False)


BUILT_IN = [
    ({"network": "network"}, {"network": "mlp"}),
    ({"likelihood": "likelihood", "posterior": "posterior"}, {}),
    ({"prior": "prior"}, {"prior": "mixture", "prior_options": '{"num_components": 3}'}),
    (
        {"hierarchy": "hierarchy"},
        {"hierarchy": "markov", "hierarchy_options": '{"latent_dim": 2, "hidden_sizes": [4]}'},
    ),
]


@pytest.mark.parametrize(("own", "same"), BUILT_IN, ids=lambda fields: "-".join(fields) or "default")
def test_parts_from_outside_are_those_of_the_package_to_the_bit(own, same, train, files, tmp_path, no_pictures):
    own = {field: f"{files}/parts.py:{name}" for field, name in own.items()}
    for fields, name in ((own, "own"), (same, "same")):
        train(tmp_path / name, num_epochs=1, **fields)
    own, same = load(tmp_path / "own", trust=True), load(tmp_path / "same")
    jax.tree.map(np.testing.assert_array_equal, own.params, same.params)
    assert metrics.read(tmp_path / "own")[-1]["loss"] == metrics.read(tmp_path / "same")[-1]["loss"]


@pytest.fixture(scope="module")
def own_run(train, files, tmp_path_factory):
    """A run of a network, an objective and an optimiser from outside."""
    run_dir = tmp_path_factory.mktemp("runs") / "own"
    named = {name: f"{files}/own.py:{name}" for name in ("network", "objective")}
    options = {"objective_options": '{"strength": 0.25}', "optimizer": f"{files}/own.py:chain"}
    train(run_dir, **named, **options, beta=2)
    return run_dir


def test_a_network_an_objective_and_an_optimiser_from_outside(own_run):
    run = json.loads((own_run / "run.json").read_text())
    assert run["config"]["network"] == "own.py:network" and set(run["code"]) == {"own.py"}
    train, test = metrics.read(own_run)[-2:]
    assert {"loss", "surprise"} <= train.keys() & test.keys() and "elbo" not in test
    restored = load(own_run, trust=True)
    assert isinstance(restored.params["encoder"], jax.Array)
    assert build.without_effect(restored.config) == ["activation", "hidden_sizes"]


def test_the_log_the_curves_and_the_report_show_own_metrics(own_run, tmp_path):
    record = metrics.read(own_run)[-1]
    assert f"surprise {record['surprise']:.3f}" in metrics.describe(record, 1.0, 1.0)
    assert metrics.names_in(record) == ["surprise"]
    assert main(["report", str(own_run), "--trust", f"--out={tmp_path}/x.html", "--num_samples=2", "--limit=9"]) == 0
    assert "surprise by epoch" in (tmp_path / "x.html").read_text()


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "conditional"])
def equinox_run(request, train, files, tmp_path_factory):
    """A run of a whole VAE written with Equinox."""
    run_dir = tmp_path_factory.mktemp("runs") / "equinox"
    fields = {"vae": f"{files}/own.py:make_vae", "vae_options": '{"width": 6}'}
    train(run_dir, conditional=str(request.param).lower(), num_epochs=3, **fields)
    return run_dir


@pytest.mark.parametrize("command", (*COMMANDS, "manifold"))
def test_a_whole_vae_serves_every_command(command, equinox_run, vae, tmp_path, offer):
    flags = ["--num_samples=4"] * (command in ("evaluate", "score", "report"))
    flags += ["--limit=20"] * (command in ("evaluate", "report"))
    flags += ["--ais_chains=2", "--ais_steps=4"] * (command == "evaluate")
    ending = {"encode": "npz", "score": "csv", "report": "html", "export": "zip"}.get(command, "png")
    flags += [f"--out={tmp_path}/x.{ending}"] * (command != "evaluate")
    stdout = vae(command, equinox_run, "--trust", *flags)
    if command == "evaluate":
        figures = json.loads(stdout)
        assert figures["nll"] <= -figures["elbo"] and "nll_ais" in figures and "bits_per_dim" not in figures
    elif command == "score":
        assert Path(json.loads(stdout)["out"]).read_text().startswith("log_px,elbo,log_likelihood,share,label\n")
    else:
        assert Path(stdout.strip()).stat().st_size


def test_a_whole_vae_resumes_and_begins_others(train, files, tmp_path, no_pictures, offer):
    fields = {"vae": f"{files}/own.py:make_vae"}
    train(tmp_path / "whole", num_epochs=2, **fields)
    train(tmp_path / "two", num_epochs=1, **fields)
    train(tmp_path / "two", num_epochs=2, **fields)
    whole, two = (load(tmp_path / name, trust=True) for name in ("whole", "two"))
    for a, b in zip(*map(jax.tree.leaves, (whole.params, two.params)), strict=True):
        np.testing.assert_array_equal(a, b)
    train(tmp_path / "more", num_epochs=1, init_from=tmp_path / "whole", **fields)
    assert metrics.read(tmp_path / "more")[-1]["loss"] < metrics.read(tmp_path / "whole")[1]["loss"]


def test_a_sweep_of_code_from_outside(files, tmp_path, no_pictures, capsys):
    flags = train_flags("x", objective=f"{files}/own.py:objective", num_epochs=1)[2:]
    assert main(["sweep", str(tmp_path / "both"), "--betas=1,3", *flags]) == 0
    assert "loss (test)" in capsys.readouterr().out
    assert (tmp_path / "both/seed-0_beta-3/code/own.py").exists()


# trust


def test_nothing_of_a_run_runs_without_trust(train, files, tmp_path, no_pictures, capsys, offer):
    train(tmp_path / "run", num_epochs=1, likelihood=f"{files}/parts.py:likelihood")
    names._execute.cache_clear()
    before, kept, _ = (files / "ran").read_text(), contents(tmp_path / "run"), capsys.readouterr()
    for command in COMMANDS:
        assert console.run(main, [command, str(tmp_path / "run")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith("uses code/parts.py. Read it, then add --trust to run it; from Python, trust=True.")
    with pytest.raises(UserError, match="add --trust"):
        load(tmp_path / "run")
    fields = {"num_epochs": 1, "init_from": tmp_path / "run"}
    with pytest.raises(UserError, match=r"likelihood \(there 'parts.py:likelihood', here 'bernoulli'\)"):
        train(tmp_path / "other", **fields)
    assert (files / "ran").read_text() == before and contents(tmp_path / "run") == kept


@pytest.fixture
def optimizer_of_optax(tmp_path, train, no_pictures):
    """A run with an optimiser that is in a module of optax."""
    run_dir = tmp_path / "muon"
    train(run_dir, num_epochs=1, optimizer="optax.contrib:muon")
    return run_dir


def test_an_optimiser_of_optax_needs_no_trust(optimizer_of_optax, train, vae):
    assert json.loads((optimizer_of_optax / "run.json").read_text())["code"] == {}
    vae("evaluate", optimizer_of_optax, "--num_samples=2", "--limit=9")
    assert load(optimizer_of_optax).config.optimizer == "optax.contrib:muon"
    train(optimizer_of_optax, num_epochs=2, optimizer="optax.contrib:muon")
    assert load(optimizer_of_optax).step == 30


def test_only_training_needs_the_code_of_an_optimiser(train, files, vae, tmp_path, no_pictures):
    train(tmp_path / "run", num_epochs=1, optimizer=f"{files}/parts.py:chain")
    names._execute.cache_clear()
    before = (files / "ran").read_text()
    vae("evaluate", tmp_path / "run", "--num_samples=2", "--limit=9")
    vae("export", tmp_path / "run")
    assert (files / "ran").read_text() == before
    assert load(tmp_path / "run", trust=True).config.optimizer == f"{tmp_path}/run/code/parts.py:chain"
    (tmp_path / "run/code/parts.py").write_text("1 / 0")
    assert load(tmp_path / "run").config.optimizer == "parts.py:chain"
    with pytest.raises(UserError, match="differs from its digest"):
        load(tmp_path / "run", trust=True)


@pytest.mark.parametrize("name", ["optax.py:adam", "optax.contrib/x.py:adam", "optaxes.contrib:adam", "optax_:adam"])
def test_only_the_modules_of_optax_are_those_of_optax(name):
    assert names.outside(Config(optimizer=name, network="optax.x:mlp")) == {"optimizer": name, "network": "optax.x:mlp"}


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_copy_that_is_not_the_one_trained_with_is_not_run(damage, train, files, tmp_path, no_pictures, monkeypatch):
    train(tmp_path / "run", num_epochs=1, likelihood=f"{files}/parts.py:likelihood")
    names._execute.cache_clear()
    copy, before = tmp_path / "run/code/parts.py", (files / "ran").read_text()
    assert copy.read_bytes() == (files / "parts.py").read_bytes()
    if damage == "missing":
        copy.unlink()
    else:
        copy.write_text(copy.read_text() + "\n")
    monkeypatch.setenv("VAE_JAX_TRUST", "1")
    with pytest.raises(UserError, match=r"code/parts.py (is missing|differs from its digest in run.json)"):
        load(tmp_path / "run")
    assert (files / "ran").read_text() == before


def test_the_environment_may_trust(own_run, monkeypatch):
    monkeypatch.setenv("VAE_JAX_TRUST", "1")
    assert load(own_run).step == 30


def test_a_path_in_the_run_of_another_leads_nowhere(own_run, tmp_path):
    run = json.loads((own_run / "run.json").read_text())
    config = names.inside(Config(network="../../etc/own.py:network"), tmp_path / "code")
    assert config.network == f"{tmp_path}/code/own.py:network"
    assert all("/" not in name for name in run["code"])


def test_changed_code_is_another_run(train, files, tmp_path, no_pictures):
    (tmp_path / "mine.py").write_text((files / "own.py").read_text())
    fields = {"objective": f"{tmp_path}/mine.py:objective", "num_epochs": 1}
    train(tmp_path / "run", **fields)
    (tmp_path / "mine.py").write_text((files / "own.py").read_text() + "# another line\n")
    with pytest.raises(UserError, match=r"another config: the code of mine.py"):
        train(tmp_path / "run", **fields)


def test_a_module_is_imported_by_name(train, tmp_path, no_pictures, monkeypatch, offer):
    (tmp_path / "installed_parts.py").write_text("from vae_jax.likelihoods import bernoulli\n")
    monkeypatch.syspath_prepend(tmp_path)
    train(tmp_path / "run", num_epochs=1, likelihood="installed_parts:bernoulli")
    assert not (tmp_path / "run/code").exists()
    with pytest.raises(UserError, match=r"uses the module installed_parts\. Read it"):
        load(tmp_path / "run")
    assert load(tmp_path / "run", trust=True).config.likelihood == "installed_parts:bernoulli"


def test_the_wrong_folder_to_load_is_explained(digits_run, tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).symlink_to(digits_run)
    with pytest.raises(UserError, match=r"a folder of runs: first, second\. Give one of them, such as .*/first\."):
        load(tmp_path)
    with pytest.raises(UserError, match=r"has no metadata.json. Load a run directory without like=\."):
        load(digits_run, like={"w": jnp.zeros(3)})


def test_only_what_a_person_has_set_is_said_to_be_without_effect(train, files, tmp_path, no_pictures, capsys):
    vae = f"{files}/own.py:make_vae"
    for flags, said in (([], False), (["--config.latent_dim=3"], True)):
        argv = ["train", f"--workdir={tmp_path}/{len(flags)}", "--config.num_epochs=1", "--config.eval_epochs=1"]
        with jax.numpy_dtype_promotion("standard"):
            assert main([*argv, f"--config.vae={vae}", '--config.vae_options={"width": 6}', *flags]) == 0
        assert (f"latent_dim: without effect on {vae}" in capsys.readouterr().err) == said


# own functions and loops


def test_own_functions_for_the_weights_of_a_run(digits_run):
    restored = load(digits_run)
    twice = restored.vae._replace(decode=lambda params, z, context=None: restored.vae.decode(params, 2 * z))
    again = load(digits_run, vae=twice)
    z = jnp.ones((3, 2))
    expected = restored.vae.decode(restored.params, 2 * z).mean
    np.testing.assert_array_equal(again.vae.decode(again.params, z).mean, expected)


@pytest.mark.parametrize("library", ["plain", "equinox"])
def test_save_and_load_give_back_every_bit(library, tmp_path, key):
    params = {"w": jax.random.normal(key, (3, 2)), "b": [jnp.int32(3), jnp.zeros(2, bool)]}
    if library == "equinox":
        params = eqx.filter(eqx.nn.MLP(2, 3, 4, 1, key=jax.random.clone(key)), eqx.is_array)
    save(tmp_path / "runs" / "5", params, {"step": 5, "note": "ä"})
    like = jax.tree.map(jnp.zeros_like, params)
    found, metadata = load(tmp_path / "runs" / "5", like=like)
    assert metadata == {"step": 5, "note": "ä"} and jax.tree.structure(found) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_what_cannot_be_saved_or_loaded_is_one_line(tmp_path):
    params = {"w": jnp.zeros(3)}
    save(tmp_path / "a", params)
    before = contents(tmp_path)
    for function, words in (
        (lambda: save(tmp_path / "a", params), "exists already"),
        (lambda: save(tmp_path / "b", {"w": jax.random.key(0)}), "holds a key"),
        (lambda: save(tmp_path / "b", {"w": print}), "holds a builtin_function_or_method at 'w'"),
        (lambda: save(tmp_path / "b", params, {"x": float("nan")}), "metadata cannot be written"),
        (lambda: save(tmp_path / "b", params, {"x": params}), "metadata cannot be written"),
        (lambda: load(tmp_path / "a", like={"w": jnp.zeros(4)}), r"w is \(3,\), expected \(4,\)"),
        (lambda: load(tmp_path / "a", like={"v": jnp.zeros(3)}), "v is missing"),
        (lambda: load(tmp_path, like=params), "was not written by vae_jax.save: .* Choose one that was"),
        (lambda: load(tmp_path / "a", like={"w": jnp.zeros(4)}), r"params does not fit like \(.*\)\. Give the shapes"),
        (lambda: load(tmp_path / "a"), r"only weights that vae_jax.save wrote; .* vae_jax.load .* like=params\."),
    ):
        with pytest.raises(UserError, match=words):
            function()
    assert contents(tmp_path) == before
    (tmp_path / "a" / "metadata.json").write_text('{"step": 6}')
    with pytest.raises(UserError, match="is damaged"):
        load(tmp_path / "a", like=params)


# bad input: what the file or the name is -> parts of the line


BAD = {
    "no file": (None, "likelihood", "x.py:f", ["x.py cannot be read (No such file or directory)"]),
    "no module": (None, "likelihood", "no_such.parts:f", ["There is no module 'no_such.parts'"]),
    "no function": ("def laplace(): pass\n", "likelihood", "x.py:laplce", ["laplce", "Did you mean 'laplace'?"]),
    "nothing at all": ("", "prior", "x.py:f", ["Unknown name in", "it defines no function"]),
    "no callable": ("f = 3\n", "likelihood", "x.py:f", ["a int; expected a function that returns a Likelihood"]),
    "another result": ("def f(shape): return {}\n", "likelihood", "x.py:f", ["returned a dict; expected a vae_jax"]),
    "a syntax error": ("def f(:\n", "likelihood", "x.py:f", ["failed: SyntaxError", "x.py, line 1."]),
    "an error while importing": (
        "\n\nimport nothing_like_it\n",
        "prior",
        "x.py:f",
        ["ModuleNotFoundError", "x.py, line 3."],
    ),
    "an exit": ("raise SystemExit(3)\n", "prior", "x.py:f", ["failed: SystemExit: 3. See", "x.py, line 1."]),
    "an error in a function": (
        "def f(shape):\n    1 / 0\n",
        "likelihood",
        "x.py:f",
        ["ZeroDivisionError", "x.py, line 2."],
    ),
    "an unknown option": (
        "def f(shape, *, sigma=1): pass\n",
        "likelihood",
        "x.py:f",
        ["has no option 'nope'. Its options: sigma"],
    ),
    "too few arguments": ("def f(): pass\n", "network", "x.py:f", ["failed", "TypeError"]),
    "a VAE that is none": ("def f(data): return 3\n", "vae", "x.py:f", ["returned a int; expected a vae_jax.VAE"]),
    "an optimiser that is none": ("def f(learning_rate): return 3\n", "optimizer", "x.py:f", ["optimizer", "x.py:f"]),
    "an objective without metrics": (
        "def f(params, key, x, vae): return x.sum()\n",
        "objective",
        "x.py:f",
        ["gives ()", "expected (loss, metrics)"],
    ),
    "an objective of every example": (
        "def f(params, key, x, vae): return x.sum((1, 2, 3)), {}\n",
        "objective",
        "x.py:f",
        ["gives ((2,), {})", "expected (loss, metrics)"],
    ),
    "a metric named loss": (
        "def f(params, key, x, vae): return x.sum(), {'loss': x.sum()}\n",
        "objective",
        "x.py:f",
        ["with other names than", "loss"],
    ),
    "an objective that fails": (
        "def f(params, key, x, vae):\n    return x @ 3, {}\n",
        "objective",
        "x.py:f",
        ["ValueError", "x.py, line 2."],
    ),
    "an objective that takes no beta": (
        "def f(params, key, x, vae): return x.sum(), {}\n",
        "objective",
        "x.py:f",
        ["beta is 4.0", "does not take 'beta'"],
    ),
    "wrong shapes": (
        "from vae_jax import networks\ndef f(shape, e, d): return networks.mlp(shape, e + 1, d)\n",
        "network",
        "x.py:f",
        ["x.py:f failed"],
    ),
}
MORE = {"an unknown option": {"likelihood_options": '{"nope": 1}'}, "an objective that takes no beta": {"beta": 4}}


@pytest.mark.parametrize("case", BAD)
def test_bad_code_is_one_line(case, refused, train_py, tmp_path):
    text, field, name, parts = BAD[case]
    if text is not None:
        (tmp_path / "x.py").write_text(text)
    fields = {field: f"{tmp_path}/{name}" if name.startswith("x.py") else name, **MORE.get(case, {})}
    line = refused(train_py.main, train_flags(tmp_path / "run", **fields))
    assert all(part in line for part in parts), line


def test_two_files_of_one_name_are_refused(tmp_path, files):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.py").write_text(f"# {folder}\n" + (files / "own.py").read_text())
    config = Config(network=f"{tmp_path}/a/x.py:network", objective=f"{tmp_path}/b/x.py:objective")
    with pytest.raises(UserError, match=r"named x\.py too"):
        names.sources(config)


def test_names_of_built_in_parts_are_functions_of_their_modules():
    from vae_jax import hierarchies, likelihoods, posteriors, priors

    parts = {f"vae_jax.{name}" for name in ("counts", "logistics", "mixed", "reals")}  # of likelihoods
    for family in (hierarchies, likelihoods, networks, posteriors, priors):
        homes = {family.__name__} | (parts if family is likelihoods else set())
        functions = [getattr(family, name) for name in family.NAMES]
        assert all(isfunction(function) and function.__module__ in homes for function in functions)


def test_own_kl():
    from vae_jax.distributions import kl_analytic, kl_divergence

    class Own:
        def kl(self, p):
            return 3.0

    class Estimate:
        def kl(self, p, z):
            return z

    assert kl_divergence(Own(), None, None) == kl_analytic(Own(), None) == 3.0
    assert kl_divergence(Estimate(), None, 4.0) == 4.0
    with pytest.raises(ValueError, match="no closed form"):
        kl_analytic(Estimate(), None)


# the recipe


@pytest.mark.robust
def test_the_recipe_is_killed_resumed_and_used_in_other_processes(tmp_path):
    def start(name, *flags):
        fields = ("--config.num_epochs=6", "--config.eval_epochs=1", "--config.schedule=constant")
        recipe = f"--config={ROOT}/configs/own_model.py"
        command = [sys.executable, ROOT / "train.py", recipe, f"--workdir={tmp_path / name}", *fields, *flags]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    whole, killed = start("whole"), start("killed")
    while len(metrics.read(tmp_path / "killed")) < 4:
        assert killed.poll() is None, killed.stderr.read()
        time.sleep(0.001)
    killed.kill()
    killed.communicate()
    for process in (whole, start("killed")):
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr
    whole, killed = (load(tmp_path / name, trust=True) for name in ("whole", "killed"))
    jax.tree.map(np.testing.assert_array_equal, whole.params, killed.params)
    assert whole.step == 90

    def use(command, *flags):
        argv = [sys.executable, "-m", "vae_jax", command, tmp_path / "killed", "--trust", *flags]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    use("sample", "--num=5", f"--out={tmp_path}/x.npz")
    use("export", f"--out={tmp_path}/vae.zip")
    assert json.loads(use("evaluate", "--num_samples=4", "--limit=9"))["num_examples"] == 9
    assert (tmp_path / "killed/report.html").name in use("report", "--num_samples=2", "--limit=9")
    script = "import numpy as np, vae; np.savez('y.npz', **vae.sample(0, 5))"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": "vae.zip"})
    assert done.returncode == 0
    with np.load(tmp_path / "x.npz") as x, np.load(tmp_path / "y.npz") as y:
        for name in x.files:
            np.testing.assert_array_equal(x[name], y[name])
