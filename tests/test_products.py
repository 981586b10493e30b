"""A product of rounded factors is that of the factors rounded by hand, and so are its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import models, objectives
from vae_jax.config import Config
from vae_jax.inputs import DataInfo
from vae_jax.products import DTYPES, product

DATA = DataInfo((6, 6, 1), 0, (0.0, 1.0), 200, 0, 10, "", None)


def rounded(a, dtype):
    return np.asarray(jnp.asarray(a).astype(dtype), np.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ((7,), (5, 7), (2, 3, 7)))
def test_product_and_gradients(key, dtype, shape):
    keys = jax.random.split(key, 3)
    x, w = jax.random.normal(keys[0], shape), jax.random.normal(keys[1], (7, 4))
    y, pull = jax.vjp(lambda x, w: product(x, w, dtype), x, w)
    y_bar = jax.random.normal(keys[2], y.shape)
    x_bar, w_bar = pull(y_bar)
    assert y.dtype == x_bar.dtype == w_bar.dtype == jnp.float32
    x, w, y_bar = (rounded(a, dtype) for a in (x, w, y_bar))
    np.testing.assert_allclose(y, x @ w, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(x_bar, y_bar @ w.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(w_bar, x.reshape(-1, 7).T @ y_bar.reshape(-1, 4), rtol=1e-5, atol=1e-5)


def test_product_by_vmap_is_one_by_one(key):
    x, w = jax.random.normal(key, (3, 2, 7)), jnp.ones((7, 4))
    batched = jax.vmap(lambda x: product(x, w, "bfloat16"))(x)
    np.testing.assert_array_equal(batched, jnp.stack([product(each, w, "bfloat16") for each in x]))


@pytest.mark.parametrize("fields", ({}, {"network": "convolutional"}, {"hierarchy": "hvae"}))
def test_a_vae_of_rounded_products_is_nearly_that_of_exact_ones(key, fields):
    x = jax.random.uniform(jax.random.key(1), (8, 6, 6, 1))
    losses, grads = [], []
    for dtype in DTYPES:
        config = Config(hidden_sizes=(16,), latent_dim=3, compute_dtype=dtype, **fields)
        vae, objective = models.build(config, DATA), objectives.build(config)
        params = vae.init(jax.random.clone(key), x)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
        (loss, metrics), grad = jax.jit(jax.value_and_grad(objective, has_aux=True), static_argnums=3)(
            params, jax.random.key(2), x, vae
        )
        assert all(value.dtype == jnp.float32 for value in (loss, *metrics.values(), *jax.tree.leaves(grad)))
        losses.append(loss)
        grads.append(jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grad)]))
    assert losses[0] != losses[1]
    np.testing.assert_allclose(*losses, rtol=3e-3)
    cosine = jnp.vdot(*grads) / jnp.linalg.norm(grads[0]) / jnp.linalg.norm(grads[1])
    assert cosine > 0.98  # a rounded number may be on the other side of a ReLU
