"""The zip of `export`: alone, it gives what the commands give, bit for bit."""

import importlib.util
import io
import os
import subprocess
import sys
import zipfile
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mostly_slow
from helpers import CODED, KINDS, names_of_kind

from vae_jax import build, generate, priors
from vae_jax.__main__ import main
from vae_jax.cli import console
from vae_jax.config import Config
from vae_jax.core import condition
from vae_jax.data.inputs import DataInfo
from vae_jax.run.checkpoints import Restored
from vae_jax.show import export

pytestmark = pytest.mark.robust

FUNCTIONS = ("sample", "encode", "decode")
SHAPE, NUM_CLASSES = (5, 4, 1), 3
OPTIONS = {
    "mixture": {"prior_options": {"num_components": 4}},
    "vamp": {"prior_options": {"num_components": 4}},
    "convolutional": {"network_options": {"channels": [3, 4]}},
    "temporal": {"network_options": {"channels": [3, 4]}},
    "markov": {"hierarchy_options": {"latent_dim": 2, "hidden_sizes": [5]}},
    "hvae": {"hierarchy_options": {"latent_dim": 2, "hidden_sizes": [5]}},
    "ladder": {"hierarchy_options": {"latent_dims": [2, 2], "hidden_sizes": [5, 4]}},
}
FAMILIES = [
    {kind: name, **(CODED[name] if kind == "posterior" and name in CODED else OPTIONS.get(name, {}))}
    for kind in KINDS
    for name in names_of_kind(kind)
    if not (kind == "prior" and name in priors.OF_CODES)  # these come with the posteriors of codes
    and name != "mixed"  # of tables
]
FAMILIES += [
    {"conditional": True},
    {"conditional": True, "network": "convolutional", "hierarchy": "hvae", **OPTIONS["convolutional"]},
    {"hierarchy": "hvae", "prior": "vamp", **OPTIONS["hvae"], **OPTIONS["vamp"]},
]
FAST = {"full_covariance", "real_nvp", "markov", "uniform_codes"}


def is_fast(fields):
    names = {value for value in fields.values() if isinstance(value, str)}
    return names & FAST or ("hvae" in names and len(names) > 1)


def untrained(**fields):
    """A VAE with weights that no two of which are alike."""
    config = Config(**{"hidden_sizes": (6,), "latent_dim": 3, "batch_size": 4} | fields)
    data = DataInfo(SHAPE, tuple(range(NUM_CLASSES)) if config.conditional else (), (0.1, 1.0), 20, 0, 4, "", None)
    vae = build.make_vae(config, data)
    params = jax.jit(vae.init)(jax.random.key(0), jax.random.uniform(jax.random.key(1), (20, *SHAPE)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: a + jnp.asarray(0.1 * rng.normal(size=a.shape), a.dtype), params)
    return Restored(config, data, vae, params, 0)


def loaded(contents, folder):
    """vae.py of a zip, unpacked."""
    zipfile.ZipFile(io.BytesIO(contents)).extractall(folder)
    spec = importlib.util.spec_from_file_location(f"vae_{abs(hash(folder))}", folder / "vae.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name], strict=True)


@pytest.mark.parametrize(
    "fields",
    mostly_slow(FAMILIES, is_fast),
    ids=lambda fields: " ".join(v for v in fields.values() if isinstance(v, str)),
)
def test_every_family_gives_the_same_bits(fields, tmp_path):
    config, _, vae, params, _ = restored = untrained(**fields)
    alone, num = loaded(export.to_zip(restored), tmp_path), 5
    label = np.arange(num) % NUM_CLASSES if config.conditional else None
    own = condition(vae, None if label is None else jax.nn.one_hot(label, NUM_CLASSES))

    drawn = jax.jit(lambda params, key: generate.sample_flat(params, key, own, num))(params, jax.random.key(7))
    assert_same(alone.sample(7, num), drawn._asdict())
    q = jax.jit(lambda params, x: generate.moments(own.encode(params, x)))(params, drawn.x)
    assert_same(alone.encode(drawn.x, label), q)
    like = jax.eval_shape(lambda: vae.prior(params).sample(jax.random.key(0), (1,)))
    mean = jax.jit(lambda params, z: own.decode(params, generate.unflat(z, like)).mean)(params, drawn.z)
    np.testing.assert_array_equal(alone.decode(drawn.z, label), mean)


# against the commands


def command(vae, run_dir, folder, name, *flags):
    vae(name, run_dir, "--out", folder / "arrays.npz", *flags)
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture
def exported(vae, tmp_path):
    def call(run_dir):
        assert vae("export", run_dir, "--out", tmp_path / "vae.zip") == f"{tmp_path / 'vae.zip'}\n"
        return loaded((tmp_path / "vae.zip").read_bytes(), tmp_path / "unpacked")

    return call


@pytest.mark.parametrize("num", [1, 3, 7])
def test_any_number_of_samples_is_that_of_the_command(vae, digits_run, exported, tmp_path, num):
    alone, flags = exported(digits_run), (f"--num={num}", "--seed=5")
    expected = command(vae, digits_run, tmp_path, "sample", *flags)
    assert_same(alone.sample(5, num), expected)
    assert_same(alone.sample(jax.random.key(5), num), expected)


def test_labels(vae, conditional_run, exported, tmp_path):
    alone = exported(conditional_run)
    assert_same(alone.sample(0, 12), command(vae, conditional_run, tmp_path, "sample", "--num=12"))
    threes = command(vae, conditional_run, tmp_path, "sample", "--num=4", "--label=3")
    assert_same(alone.sample(0, 4, 3), threes)
    assert_same(alone.sample(0, 4, [3] * 4), threes)
    for label in (None, 10, -1):
        with pytest.raises(ValueError, match="expected one of 0, 1, 2"):
            alone.encode(threes["x"], label)


def test_more_samples_than_a_chunk_are_those_of_the_command(vae, conditional_run, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "MAX_CHUNK", 6)
    alone = exported(conditional_run)
    for num in (6, 7, 20):
        expected = command(vae, conditional_run, tmp_path, "sample", f"--num={num}")
        assert_same(alone.sample(0, num), expected)
    monkeypatch.undo()
    whole = command(vae, conditional_run, tmp_path, "sample", "--num=6")
    assert_same({name: a[:6] for name, a in expected.items()}, whole)
    assert len(np.unique(expected["z"], axis=0)) == 20


def test_a_label_without_classes_is_refused(digits_run, exported):
    with pytest.raises(ValueError, match="label is 1; expected none"):
        exported(digits_run).sample(0, 4, 1)


def test_encode_is_that_of_the_command(vae, vectors_run, vectors_file, exported, tmp_path):
    with np.load(vectors_file) as data:
        x = data["x_test"]
    assert_same(exported(vectors_run).encode(x), command(vae, vectors_run, tmp_path, "encode"))


def test_bytes_are_scaled(digits_run, exported):
    alone, x = exported(digits_run), np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    assert_same(alone.encode(x), alone.encode(x.astype(np.float32) / np.float32(255)))


def test_bytes_of_counts_are_themselves(tmp_path):
    zipped = export.to_zip(untrained(likelihood="poisson"))
    alone, x = loaded(zipped, tmp_path), np.arange(100, dtype=np.uint8).reshape(5, *SHAPE)
    assert_same(alone.encode(x), alone.encode(x.astype(np.float32)))
    assert "`encode` takes every number as it is" in zipfile.ZipFile(io.BytesIO(zipped)).read("README.md").decode()


# the file


@pytest.fixture(scope="module")
def archive():
    return zipfile.ZipFile(io.BytesIO(export.to_zip(untrained(network="convolutional", **OPTIONS["convolutional"]))))


def test_there_is_no_pickle_and_each_weight_once(archive):
    files = ["README.md", "vae.py", "config.json", "weights.npz", "sample.jax", "encode.jax", "decode.jax"]
    assert [name for name in archive.namelist() if not name.startswith("flatbuffers/")] == files
    with np.load(io.BytesIO(archive.read("weights.npz")), allow_pickle=False) as weights:
        kernel = weights["decoder/output/kernel"]
        assert kernel.shape == (3, 3, 3, 1) and {weights[name].dtype for name in weights} == {np.dtype("float32")}
    assert not any(kernel.tobytes() in archive.read(f"{name}.jax") for name in FUNCTIONS)


def test_it_tells_what_it_is_and_nothing_of_this_machine(archive):
    text = archive.read("README.md").decode()
    for part in ("flatbuffers", "[N, 5, 4, 1]", "[N, 3]", "network: convolutional", "6 months", version("jaxlib")):
        assert part in text
    for name in archive.namelist():
        assert os.path.dirname(export.__file__).encode() not in archive.read(name), name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_platform_has_its_convolution(archive, name):
    function = jax.export.deserialize(bytearray(archive.read(f"{name}.jax")))
    assert function.platforms == ("cpu", "cuda", "tpu")
    assert "stablehlo.convolution" in function.mlir_module()


def test_the_readme_of_the_zip_runs(digits_run, vae, tmp_path, monkeypatch):
    vae("export", digits_run, "--out", tmp_path / "vae.zip")
    with zipfile.ZipFile(tmp_path / "vae.zip") as archive:
        code = archive.read("README.md").decode().split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# without this package

ALONE = """
import sys

for name in ("vae_jax", "flax", "optax", "orbax", "tensorflow_datasets"):
    sys.modules[name] = None  # its import fails
sys.path.insert(0, sys.argv[1])
import numpy as np
import vae

samples = vae.sample(3, 6)
assert np.allclose(vae.decode(samples["z"]), samples["mean"], atol=1e-5)
np.savez(sys.argv[2], **samples)
"""


def assert_runs_alone(python, run_dir, folder):
    """In processes of its own, with the compiler settings of a user."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}

    def run(program, *argv, **variables):
        done = subprocess.run([program, *map(str, argv)], cwd=folder, env=environment | variables)
        assert done.returncode == 0

    for name, flags in (("export", ("--out=vae.zip",)), ("sample", ("--out=x.npz", "--seed=3", "--num=6"))):
        run(sys.executable, "-m", "vae_jax", name, run_dir, *flags)
    run(python, "-c", ALONE, "vae.zip", "alone.npz", PYTHONPATH="")
    with np.load(folder / "x.npz") as expected, np.load(folder / "alone.npz") as got:
        assert_same(dict(got), dict(expected))


def test_it_needs_no_package_that_trained_it(digits_run, tmp_path):
    assert_runs_alone(sys.executable, digits_run, tmp_path)


@pytest.mark.slow
def test_it_runs_where_there_is_only_jax(digits_run, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    packages = f"jax=={version('jax')}", f"jaxlib=={version('jaxlib')}"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    assert_runs_alone(python, digits_run, tmp_path)


# what does not work


def one_line(capsys, argv):
    assert console.run(main, list(map(str, argv))) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_a_bad_out_is_one_line(digits_run, tmp_path, capsys):
    assert "cannot be written" in one_line(capsys, ["export", digits_run, "--out", tmp_path / "none/vae.zip"])
    assert not list(tmp_path.iterdir())
