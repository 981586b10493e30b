"""Use a trained variational autoencoder with `sample`, `encode` and `decode`, which README.md explains.

This module needs only jax and the files beside it, such as the folder flatbuffers; they may stay in their zip.
"""

import io
import json
from functools import cache
from pkgutil import get_data

import jax
import numpy as np
from jax import export


def sample(key, num, label=None):
    """Draw z ~ p(z), mean = E[x | z] and x ~ p(x | z), [num, ...] each, in a dict. key: a JAX key or a seed.

    label: for a VAE with classes, a label of the data or [num] labels; by default all labels in turn. For a VAE with
    covariates, those of one example, [C], or of all, [num, C].
    """
    prng = _config()["prng"]
    key = key if isinstance(key, jax.Array) else jax.random.key(key, impl=prng)
    if jax.random.key_impl(key) != prng:
        raise ValueError(
            f"key is of {jax.random.key_impl(key)}; expected a seed or jax.random.key(..., impl={prng!r})."
        )
    label = np.resize(_classes(), num) if label is None and _classes() else label
    labels, size = _labels(label, num), _config()["chunk_size"]
    if num <= size:
        return _function("sample")(_weights(), key, labels)
    labels, chunks = (
        np.resize(labels, (-(-num // size) * size, *labels.shape[1:])),
        [],
    )  # full chunks, cut to num at the end
    for i in range(0, len(labels) // size):
        own = key if i == 0 else jax.random.fold_in(key, i)
        chunk = _function("sample")(_weights(), own, labels[i * size : (i + 1) * size])
        chunks.append(jax.device_get(chunk))
    return {name: np.concatenate([chunk[name] for chunk in chunks])[:num] for name in chunks[0]}


def encode(x, label=None):
    """The mean of q(z | x) and, if q is Gaussian, its log_var, [N, L] each.

    x: [N, *shape]; README.md says what a byte is. If z is discrete, the mean is the most probable z, and `code` holds
    the numbers of its codes, [N, G].
    """
    is_part = np.asarray(x).dtype == np.uint8 and _config()["bytes"]  # the byte v stands for v / 255
    x = np.asarray(x, np.float32) / np.float32(255 if is_part else 1)
    return _function("encode")(_weights(), x, _labels(label, len(x)))


def decode(z, label=None):
    """E[x | z], [N, *shape]. z: [N, L]."""
    return _function("decode")(_weights(), np.asarray(z, np.float32), _labels(label, len(z)))


def _labels(label, num):
    """The index of each label in the classes, [num], or the covariates, [num, C]."""
    classes, covariates = _classes(), _config()["num_covariates"]
    if covariates:
        if label is None or np.shape(label)[-1:] != (covariates,):
            raise ValueError(f"label has shape {np.shape(label)}; expected the covariates, [{num}, {covariates}].")
        return np.array(np.broadcast_to(np.asarray(label, np.float32), (num, covariates)))
    if label is None and not classes:
        return np.zeros(num, np.int32)  # only the length matters
    labels = np.broadcast_to(np.asarray(-1 if label is None else label), (num,))
    if not np.isin(labels, classes).all():
        raise ValueError(f"label is {label}; expected {f'one of {str(classes)[1:-1]}' if classes else 'none'}.")
    return np.array([classes.index(label) for label in labels.tolist()], np.int32)


@cache
def _function(name):
    return jax.jit(export.deserialize(bytearray(_read(f"{name}.jax"))).call)


@cache
def _weights():
    return jax.device_put(dict(np.load(io.BytesIO(_read("weights.npz")), allow_pickle=False)))


@cache
def _config():
    return json.loads(_read("config.json"))


def _classes():
    return _config()["classes"]


def _read(name):
    return get_data(__name__, name) or b""
