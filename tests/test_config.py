"""A config is typed, documented and read alike from Python, a recipe, flags and JSON."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import jax
import numpy as np
import pytest

from vae_jax import build, config, update
from vae_jax.__main__ import parse
from vae_jax.cli import console
from vae_jax.config import Config
from vae_jax.data import inputs
from vae_jax.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "configs").rglob("*.py"))

FIELDS = {f.name: f for f in fields(Config)}


def other(name):
    """A value of a field that is not its default."""
    default = getattr(Config(), name)
    if FIELDS[name].metadata["choices"]:
        return next(choice for choice in FIELDS[name].metadata["choices"] if choice != default)
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + type(default)(0.5) + isinstance(default, int)
    if name in ("features", "covariate_columns"):
        return ("a", "b c")
    return {str: "other name", tuple: (5, 6), dict: {"a": [1, "b"]}}[type(default)]


def as_text(value):
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)


def recipe(folder, text):
    path = folder / "recipe.py"
    path.write_text(text)
    return path


def error(function, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_documented_and_listed_by_help(name, capsys):
    documented = FIELDS[name].metadata
    assert len(documented["doc"]) > 8
    with pytest.raises(SystemExit) as caught:
        console.parse_train(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"--config.{name} VALUE {documented['doc']}" in text
    for choice in documented["choices"]:
        assert choice in text


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_set_by_its_flag_and_by_no_other(name):
    value = other(name)
    text = as_text(value)
    before = console.parse_train([]).config
    after = console.parse_train([f"--config.{name}={text}"]).config
    assert getattr(after, name) == value
    assert after == replace(before, **{name: value})
    assert console.parse_train([f"--config.{name}", text]).config == after


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_survives_json(name):
    changed = Config(**{name: other(name)})
    assert changed != Config()
    assert config.from_json(config.to_json(changed)) == changed


@pytest.mark.parametrize("name", FIELDS)
def test_no_field_takes_a_value_of_another_type(name):
    for wrong in (None, object(), [None], "" if not isinstance(getattr(Config(), name), str) else 3):
        assert error(Config, **{name: wrong}).startswith(f"{name} is ")


def test_numbers_are_taken_only_where_nothing_is_lost():
    assert Config(beta=4).beta == 4.0 and isinstance(Config(beta=4).beta, float)
    assert Config(hidden_sizes=[400, 200]).hidden_sizes == (400, 200)
    assert "a whole number" in error(Config, latent_dim=2.0)
    assert "a whole number" in error(Config, latent_dim=True)
    assert "a number" in error(Config, beta=True)
    assert "finite" in error(Config, beta=float("nan"))
    assert "whole number" in error(Config, hidden_sizes=(400, 0.5))


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (bool, "True", True),
        (bool, "0", False),
        (int, "-3", -3),
        (float, "1e-3", 1e-3),
        (str, "a b", "a b"),
        (tuple[int, ...], "", ()),
        (tuple[int, ...], "(4, 5,)", (4, 5)),
        (tuple[int, ...], "[4]", (4,)),
        (dict[str, object], "{}", {}),
        (dict[str, object], '{"a": [1, null]}', {"a": [1, None]}),
    ],
)
def test_parse(kind, text, value):
    assert config.parse("field", text, kind) == value


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (bool, "yes", "true or false"),
        (int, "2.5", "a whole number"),
        (int, "", "a whole number"),
        (float, "fast", "a number"),
        (tuple[int, ...], "4,b", "whole numbers separated by commas"),
        (dict[str, object], "{a: 1}", "a JSON object"),
        (dict[str, object], "[1]", "a JSON object"),
    ],
)
def test_parse_refuses(kind, text, expected):
    message = error(config.parse, "field", text, kind)
    assert message.startswith(f"field is {text!r}; expected ") and expected in message


def test_override_names_the_nearest_field():
    assert "Unknown field 'latent_dims'. Did you mean 'latent_dim'?" in error(
        config.override, Config(), {"latent_dims": "3"}
    )


def test_config_of_a_newer_version_is_refused():
    assert "'flow'" in error(config.from_json, {"flow": "realnvp"})


def test_config_is_a_value():
    assert Config() == Config() and Config().network_options is not Config().network_options
    with pytest.raises(AttributeError):
        Config().seed = 1


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load_and_name_their_command(path):
    assert isinstance(config.load_recipe(path), Config)
    docstring = path.read_text().split('"""')[1]
    flag = "" if path.stem == "digits" else f" --config={path.relative_to(ROOT).as_posix()}"
    assert re.search(rf"{re.escape(f'python train.py{flag}')}[`\n]", docstring)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_fit_their_data(path):
    """Their step, as train.py makes it, keeps the shape of the state."""
    recipe = config.load_recipe(path)
    shapes = {"digits": (8, 8, 1), "photos": (32, 32, 3), "breast_cancer.csv": (30,)}
    shape = shapes.get(recipe.dataset, (28, 28, 1))
    data = inputs.DataInfo(shape, tuple(range(10)), (0.0, 1.0), 60_000, 0, 10_000, "", None)
    vae, objective = build.make_vae(recipe, data), build.make_objective(recipe)
    optimizer = build.make_optimizer(recipe, 60_000 // recipe.batch_size)
    step = update.make_update(
        vae,
        objective,
        optimizer,
        prepare=inputs.make_prepare(recipe),
        ema_decay=recipe.ema_decay,
        schedules=build.make_schedules(recipe),
    )

    def trained(key, x, context):
        state = update.init_state(vae, optimizer, key, x / np.float32(255), ema=recipe.ema_decay > 0)
        return state, *step(state, x, context)

    x = jax.ShapeDtypeStruct((recipe.batch_size, *shape), "uint8")
    context = jax.ShapeDtypeStruct((recipe.batch_size, 10), "float32") if recipe.conditional else None
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
        before, after, metrics = jax.eval_shape(trained, jax.random.key(0), x, context)
    assert jax.tree.leaves(before.params) and before == after
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize(
    "cell",
    (
        {"num_samples": 5},
        {"num_samples": 5, "kl": "monte_carlo"},
        {"num_samples": 5, "objective": "iwae"},
        {"num_samples": 5, "objective": "iwae", "estimator": "dreg"},
    ),
    ids=str,
)
@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "iwae").glob("*.py")), ids=lambda path: path.stem)
def test_the_cells_of_burda_et_al_have_gradients(path, cell):
    recipe = replace(config.load_recipe(path), **cell)
    vae = build.make_vae(
        recipe, inputs.DataInfo((28, 28, 1), tuple(range(10)), (0.0, 1.0), 60_000, 0, 10_000, "", None)
    )
    key, x = jax.random.key(0), jax.ShapeDtypeStruct((2, 28, 28, 1), "float32")
    params = jax.eval_shape(vae.init, key, x)
    loss = lambda params, x: build.make_objective(recipe)(params, key, x, vae)[0]  # noqa: E731
    assert jax.tree.structure(jax.eval_shape(jax.grad(loss), params, x)) == jax.tree.structure(params)


def test_workdir_is_named_after_the_recipe_unless_given():
    mnist = f"--config={ROOT}/configs/mnist.py"
    assert console.parse_train([], ROOT).workdir == ROOT / "checkpoints" / "digits"
    assert console.parse_train([mnist], ROOT).workdir == ROOT / "checkpoints" / "mnist"
    assert console.parse_train(["--workdir=here"], ROOT).workdir == Path("here")
    assert parse(["train"]).workdir == Path("checkpoints/digits")
    assert parse(["train", mnist]).workdir == Path("checkpoints/mnist")


def test_the_recipe_of_the_digits_is_what_a_command_without_a_recipe_has():
    assert config.load_recipe(ROOT / "configs/digits.py") == parse(["train"]).config == parse(["sweep", "x"]).members[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected a function get_config()"),
        ("def get_config():\n    return {}['learning_rate']\n", "failed: KeyError: 'learning_rate'"),
        ("def get_config():\n    return 3\n", "returned a int; expected a vae_jax.config.Config"),
        ("def get_config(: pass\n", "failed: SyntaxError"),
        ("import no_such_module\n", "failed: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def get_config():\n    raise OSError('two\\nlines')\n", "failed: OSError: two lines"),
        ("def get_config():\n    raise SystemExit(0)\n", "failed: SystemExit"),
        (
            "from vae_jax.config import Config\ndef get_config():\n    return Config(beta=-1)\n",
            "recipe.py: beta is -1.0; expected at least 0",
        ),
        (
            "from vae_jax.config import Config\ndef get_config():\n    return Config(betas=1)\n",
            "unexpected keyword argument 'betas'",
        ),
    ],
)
def test_recipes_that_do_not_load(tmp_path, text, says):
    path = recipe(tmp_path, text)
    message = error(config.load_recipe, path)
    assert str(path) in message and says in message


def test_missing_recipe(tmp_path):
    for path in (tmp_path / "none.py", tmp_path, "a\0b"):
        assert f"There is no config file {path}" in error(config.load_recipe, path)


def test_config_and_console_import_no_jax():
    code = "import sys, vae_jax.config, vae_jax.cli.console; assert not {'jax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# paths in a recipe

NAMING = """
from vae_jax.config import Config

def get_config():
    return Config(dataset="x.npy", vae="own.py:vae", init_from="first", likelihood="other.py:f")
"""


def test_paths_of_a_recipe_lead_from_its_folder_first_and_those_of_flags_from_here(tmp_path, monkeypatch):
    beside, here = tmp_path / "recipes", tmp_path / "here"
    for folder in (beside, here):
        (folder / "first").mkdir(parents=True)
        for name in ("x.npy", "own.py", "a.py"):
            (folder / name).write_text("")
    (here / "other.py").write_text("")
    monkeypatch.chdir(here)
    path = f"--config={os.path.relpath(recipe(beside, NAMING))}"
    found = inputs.absolute(parse(["train", path]).config)
    assert found.dataset == f"{beside}/x.npy" and found.vae == f"{beside}/own.py:vae"
    assert found.init_from == f"{beside}/first" and found.likelihood == f"{here}/other.py:f"
    flags = ["--config.dataset=x.npy", "--config.vae=own.py:vae", "--config.init_from=first"]
    found = inputs.absolute(parse(["train", path, *flags]).config)
    assert (found.dataset, found.vae, found.init_from) == (f"{here}/x.npy", f"{here}/own.py:vae", f"{here}/first")


def test_the_name_of_a_data_set_is_no_path_beside_the_recipe(tmp_path):
    (tmp_path / "mnist").mkdir()
    text = "from vae_jax.config import Config\ndef get_config(): return Config(dataset='mnist')\n"
    assert config.load_recipe(recipe(tmp_path, text)) == Config(dataset="mnist")


@pytest.mark.parametrize("field", config.PARTS)
def test_a_file_of_code_needs_the_name_of_a_function(field):
    says = f"{field} is 'my.py', without the name of a function of that file. Give --config.{field}=my.py:NAME."
    assert error(Config, **{field: "my.py"}) == says
