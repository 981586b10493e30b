"""The package is light to import, knows few libraries, each in one place, and its imports point one way."""

import ast
import inspect
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vae_jax

FILES = sorted(Path(vae_jax.__file__).parent.glob("*.py"))
MODULES = {file.stem: ast.parse(file.read_text()) for file in FILES}
NEVER = {"haiku", "equinox", "numpyro", "tensorflow", "torch", "pickle"}
ONLY_IN = {
    "flax": {"networks"},
    "orbax": {"arrays"},
    "tensorflow_datasets": {"tfds_builders"},
    "tensorboardX": {"tensorboard"},
}


def imported(tree):
    """The dotted names that a module imports, in its functions too; `from a import b` counts as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


IMPORTS = {name: set(imported(tree)) for name, tree in MODULES.items()}


def test_the_scan_sees_the_package():
    assert {"core", "networks", "checkpoints", "__init__"} <= set(MODULES)
    assert "vae_jax.core.VAE" in IMPORTS["objectives"] and "flax.linen" in IMPORTS["networks"]


@pytest.mark.parametrize("statement", ("import vae_jax", "import vae_jax.config", "import vae_jax.errors"))
def test_importing_what_a_command_line_needs_imports_no_jax(statement):
    heavy = "{'jax', 'flax', 'optax', 'orbax', 'tensorflow_datasets', 'matplotlib'}"
    code = f"import sys; {statement}; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_a_library_that_it_should_not_know(module):
    roots = {name.split(".")[0] for name in IMPORTS[module]}
    assert not roots & NEVER
    assert not any(name.startswith("flax.nnx") for name in IMPORTS[module])
    assert not {library for library, homes in ONLY_IN.items() if library in roots and module not in homes}


@pytest.mark.parametrize("module", ("core", "errors", "config"))
def test_the_foundations_import_at_most_jax_and_errors(module):
    roots = {name.split(".")[0] for name in IMPORTS[module]} - set(sys.stdlib_module_names)
    assert roots <= ({"jax"} if module == "core" else {"vae_jax"})


def test_imports_point_one_way():
    """`__init__` and `__main__` import by name, when asked."""
    graph = {
        module: {name.split(".")[1] for name in IMPORTS[module] if name.startswith("vae_jax.")} & set(MODULES)
        for module in MODULES
        if module not in ("__init__", "__main__")
    }
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("core") < order.index("objectives") < order.index("checkpoints") < order.index("commands")


@pytest.mark.parametrize("name", vae_jax.__all__)
def test_every_public_name_resolves_and_is_documented(name):
    value = getattr(vae_jax, name)
    assert not inspect.isfunction(value) or inspect.getdoc(value)
    assert not inspect.isclass(value) or value.__module__.startswith("vae_jax.")


def test_dir_lists_the_public_names():
    assert {*vae_jax.__all__, "__version__"} <= set(dir(vae_jax))


@pytest.mark.parametrize("module", MODULES)
def test_text_is_utf_8_whatever_the_locale(module):
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("read_text", "write_text"):
            assert getattr(node.func.value, "id", "") == "metrics" or "utf-8" in ast.unparse(node), ast.unparse(node)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'elob'"):
        _ = vae_jax.elob
