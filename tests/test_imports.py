"""The package is light to import, knows few libraries, each in one place, and its imports point one way."""

import ast
import inspect
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vae_jax

ROOT = Path(vae_jax.__file__).parent
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts): ast.parse(file.read_text())
    for file in sorted(ROOT.rglob("*.py"))
}
NEVER = {"haiku", "equinox", "numpyro", "tensorflow", "torch", "pickle"}
ONLY_IN = {
    "flax": {"networks"},
    "orbax": {"run.arrays"},
    "tensorflow_datasets": {"data.tfds_builders", "data.tfds_records"},
    "tensorboardX": {"run.tensorboard"},
    "nicegui": {"show.explorer_page", "show.explorer_tab"},
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
    assert {"core", "networks", "run.checkpoints", "__init__"} <= set(MODULES)
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


# From the foundations to the program. Research code imports the first four and never meets a file or a flag.
LAYERS = (
    {"errors", "progress", "core", "checks", "xla"},
    {
        "codebooks",
        "codes",
        "distributions",
        "likelihoods",
        "mixed",
        "reals",
        "missing",
        "posteriors",
        "priors",
        "flows",
        "networks",
        "logistics",
        "counts",
    },
    {"objectives", "bounds", "penalties", "guard", "annealing", "generate", "fitted", "vae", "hierarchies"},
    {"update", "evaluate", "anomalies", "disentanglement"},
    {"optimizers", "losses"},
    {"build"},
    {"run"},
    {"show"},
    {"cli"},
)
LEAVES = {
    "config": {"errors"},
    "names": {"config", "errors"},
    "data": {"config", "core", "errors", "progress"},
}  # what they know beside themselves


def parts_of(module):
    """The top-level modules and wings of the package that a module imports, but for its own wing."""
    names = {name.split(".")[1] for name in IMPORTS[module] if name.startswith("vae_jax.")}
    return (names & {name.split(".")[0] for name in MODULES}) - {module.split(".")[0]}


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("__")])
def test_imports_point_one_way(module):
    part = module.split(".")[0]
    if part in LEAVES:
        assert parts_of(module) <= LEAVES[part]
        return
    (rank,) = (rank for rank, layer in enumerate(LAYERS) if part in layer)
    known = set().union(*LAYERS[: rank + 1])
    if rank >= LAYERS.index({"update", "evaluate", "anomalies", "disentanglement"}):
        known |= {"data"}  # training streams
    if rank >= LAYERS.index({"optimizers", "losses"}):
        known |= {"config", "names"}
    assert parts_of(module) <= known


def test_no_modules_import_each_other():
    graph = {
        module: {name.removeprefix("vae_jax.") for name in IMPORTS[module]} & set(MODULES)
        | {name.removeprefix("vae_jax.").rpartition(".")[0] for name in IMPORTS[module]} & set(MODULES)
        for module in MODULES
        if module not in ("__init__", "__main__")
    }
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)


def test_the_package_reads_like_a_table_of_contents():
    top = {path.stem for path in ROOT.iterdir() if path.name != "__pycache__" and path.suffix != ".typed"}
    assert top == {"__init__", "__main__", *LEAVES}.union(*LAYERS)


@pytest.mark.parametrize("name", vae_jax.__all__)
def test_every_public_name_resolves_and_is_documented(name):
    value = getattr(vae_jax, name)
    assert not inspect.isfunction(value) or inspect.getdoc(value)
    assert not inspect.isclass(value) or value.__module__.startswith("vae_jax.")


def test_dir_lists_the_public_names():
    assert {*vae_jax.__all__, "__version__", "likelihoods"} <= set(dir(vae_jax))
    assert {"Likelihood", "Posterior", "Prior", "Network", "UserError", "build", "reconstruct", "sample"} <= {
        *vae_jax.__all__
    }


def test_the_library_is_an_attribute_of_the_package():
    code = "import vae_jax; print(vae_jax.build.make_vae.__name__, vae_jax.likelihoods.bernoulli.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "make_vae bernoulli\n"


def test_type_checkers_see_the_names_that_there_are():
    stub = ast.parse((ROOT / "__init__.pyi").read_text())
    assert (ROOT / "py.typed").exists()
    names = {
        (node.module.removeprefix("vae_jax").lstrip("."), alias.name)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name  # else it is private
    }
    expected = {("", name) for name in vae_jax._MODULES} | {(module, name) for name, module in vae_jax._HOME.items()}
    assert names == expected


@pytest.mark.parametrize("module", MODULES)
def test_text_is_utf_8_whatever_the_locale(module):
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("read_text", "write_text"):
            assert getattr(node.func.value, "id", "") == "metrics" or "utf-8" in ast.unparse(node), ast.unparse(node)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'elob'"):
        _ = vae_jax.elob
