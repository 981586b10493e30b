"""Export a trained VAE as one zip that runs without this package: `jax.export` functions, weights and a loader."""

import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import files, version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array, export
from jax.export import Exported

from vae_jax import generate
from vae_jax.config import to_json
from vae_jax.core import VAE, condition
from vae_jax.data.inputs import reading_of
from vae_jax.data.splits import text_of
from vae_jax.names import portable
from vae_jax.run.arrays import named
from vae_jax.run.checkpoints import Restored

PLATFORMS = ("cpu", "cuda", "tpu")


def to_zip(restored: Restored) -> bytes:
    """Make the zip: sample.jax, encode.jax, decode.jax, weights.npz, config.json, vae.py to load these, and README.md.

    It also holds the package flatbuffers, with which `jax.export` reads its files, so that a user must install only
    jax.
    """
    description = _description(restored)
    members = {
        "README.md": _readme(description).encode(),
        "vae.py": _beside("exported.py").encode(),
        "config.json": (json.dumps(description, indent=2) + "\n").encode(),
        "weights.npz": _npz(named(restored.params)),
        **{f"{name}.jax": bytes(function.serialize()) for name, function in functions(restored).items()},
        **{str(file): Path(file.locate()).read_bytes() for file in files("flatbuffers") or () if file.suffix == ".py"},
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in members.items():
            archive.writestr(name, contents)
    return file.getvalue()


def functions(restored: Restored) -> dict[str, Exported]:
    """Export the functions sample, encode and decode of a trained VAE, for any number of examples on all `PLATFORMS`.

    sample(weights, key, label) and encode(weights, x, label) return what the commands sample and encode write.
    decode(weights, z, label) returns E[x | z]. weights: the parameters as `named` returns them. label: [N], int32, the
    index of each label in the classes; without classes only its length matters. With covariates they take its place,
    [N, C], float32.
    """
    _, data, vae, params, _ = restored
    names, structure, latent = list(named(params)), jax.tree.structure(params), _latent(restored)

    def unpack(weights: dict[str, Array], label: Array) -> tuple[Any, VAE]:
        classes = jax.nn.one_hot(label, len(data.classes), dtype="float32") if data.classes else None
        context = label if data.num_covariates else classes
        return jax.tree.unflatten(structure, [weights[name] for name in names]), condition(vae, context)

    def sample(weights: dict[str, Array], key: Array, label: Array) -> dict[str, Array]:
        params, vae = unpack(weights, label)
        return generate.sample_flat(params, key, vae, label.shape[0])._asdict()

    def encode(weights: dict[str, Array], x: Array, label: Array) -> dict[str, Array]:
        params, vae = unpack(weights, label)
        return generate.moments(vae.encode(params, x))

    def decode(weights: dict[str, Array], z: Array, label: Array) -> Array:
        params, vae = unpack(weights, label)
        return vae.decode(params, generate.unflat(z, latent)).mean

    (num,) = export.symbolic_shape("num")
    key, weights = jax.eval_shape(lambda: (jax.random.key(0), named(params)))
    x = jax.ShapeDtypeStruct((num, *data.shape), "float32")
    z = jax.ShapeDtypeStruct((num, sum(leaf.size for leaf in jax.tree.leaves(latent))), "float32")
    label = jax.ShapeDtypeStruct((num,), "int32")
    if data.num_covariates:
        label = jax.ShapeDtypeStruct((num, data.num_covariates), "float32")
    with _no_locations():
        return {
            function.__name__: export.export(jax.jit(function), platforms=PLATFORMS)(weights, given, label)
            for function, given in ((sample, key), (encode, x), (decode, z))
        }


def _latent(restored: Restored) -> Any:
    """The shape of one latent, [1, L], or a pytree of such shapes if there are several latents."""
    return jax.eval_shape(lambda params: restored.vae.prior(params).sample(jax.random.key(0), (1,)), restored.params)


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")


@contextmanager
def _no_locations() -> Iterator[None]:
    """Within the block, keep the lines of code behind each operation, and their paths, out of exported functions."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _npz(arrays: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _description(restored: Restored) -> dict[str, Any]:
    config, data, vae, params, step = restored
    reading = reading_of(config)
    return {
        "config": to_json(portable(config)),
        "shape": data.shape,
        "range": data.range,
        "bytes": not (reading.counts or reading.texts or data.columns),
        "columns": data.columns or tuple(config.likelihood_options["columns"] if reading.texts else ()),
        "classes": [text_of(data.names, label) for label in data.classes],
        "num_covariates": data.num_covariates,
        "chunk_size": generate.samples_per_call(params, vae, data.context_size),
        "latent": {name or "z": leaf.size for name, leaf in named(_latent(restored)).items()},
        "fingerprint": data.fingerprint,
        "prng": jax.random.key_impl(jax.random.key(0)),
        "step": step,
        "versions": {name: version(name) for name in ("jax", "jaxlib")},
    }


def _readme(description: dict[str, Any]) -> str:
    latent, classes, columns = description["latent"], description["classes"], description["columns"]
    return _beside("exported.md").format(
        **description,
        settings="\n".join(f"- {name}: {value}" for name, value in description["config"].items()),
        size=sum(latent.values()),
        x=", ".join(map(str, description["shape"])),
        byte="a byte v as v / 255" if description["bytes"] else "every number as it is",
        names=f"\n- the columns of x: {', '.join(map(repr, columns))}" if columns else "",
        gaps="\n- NaN in x was not observed" if description["config"]["missing"] else "",
        parts=" and then ".join(f"the {size} of {name}" for name, size in latent.items()),
        labels=f"\n- label: one of {', '.join(map(str, classes))[:200]}, or [N] of them" if classes else "",
        argument=f", label={classes[0]}" if classes else "",
    )
