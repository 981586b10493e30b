"""A product of rounded factors is that of the factors rounded by hand, and so are its gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mostly_slow

from vae_jax import build
from vae_jax.config import Config
from vae_jax.data.inputs import DataInfo
from vae_jax.xla.products import DTYPES, product

pytestmark = pytest.mark.robust

DATA = DataInfo((6, 6, 1), (), (0.0, 1.0), 200, 0, 10, "", None)


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


@pytest.mark.parametrize("axes", ((0, None), (None, 0), (0, 0)))
@pytest.mark.parametrize("shape", ((7,), (5, 7), (2, 3, 7)))
def test_product_and_gradients_by_vmap_are_one_by_one(key, shape, axes):
    shapes = (s if axis is None else (6, *s) for s, axis in zip((shape, (7, 4)), axes, strict=True))
    x, w = map(jax.random.normal, jax.random.split(key), shapes)

    def both(x, w):
        y, pull = jax.vjp(lambda x, w: product(x, w, "bfloat16"), x, w)
        return y, pull(y)

    batched = jax.jit(jax.vmap(both, axes))(x, w)
    each = [both(x if axes[0] is None else x[i], w if axes[1] is None else w[i]) for i in range(6)]
    expected = jax.tree.map(lambda *a: jnp.stack(a), *each)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), batched, expected)


def test_gradient_of_a_transposed_weight(key):
    x, w = (jax.random.normal(k, shape) for k, shape in zip(jax.random.split(key), ((96, 64), (48, 64)), strict=True))
    grad = jax.jit(jax.grad(lambda w: jnp.sum(product(x, w.T, "bfloat16") ** 2)))(w)
    x, w = (rounded(a, "bfloat16") for a in (x, w))
    np.testing.assert_allclose(
        grad, rounded(2 * x @ w.T, "bfloat16").T @ x, rtol=1e-2, atol=1e-2 * np.max(np.abs(grad))
    )


def test_second_derivatives(key):
    x, w = (jax.random.normal(k, shape) for k, shape in zip(jax.random.split(key), ((3, 5, 7), (7, 4)), strict=True))

    def curvature(x, w, dtype):
        grad = jax.grad(lambda w: jnp.sum(jnp.tanh(product(x, w, dtype))))
        return jax.grad(lambda w: jnp.sum(grad(w) ** 2))(w)

    exact, narrow = (jax.vmap(partial(curvature, dtype=dtype), (0, None))(x, w) for dtype in DTYPES)
    np.testing.assert_allclose(narrow, exact, atol=0.05 * jnp.max(jnp.abs(exact)))


SUB_PIXEL = {"network": "convolutional", "network_options": {"channels": [16, 16], "decoder_channels": [16, 16]}}


@pytest.mark.parametrize(
    "fields",
    mostly_slow(
        ({}, {"num_samples": 3}, {"network": "convolutional"}, SUB_PIXEL | {"num_samples": 3}, {"hierarchy": "hvae"}),
        lambda fields: fields.keys() >= {"num_samples", "network"},
    ),
)
def test_a_vae_of_rounded_products_is_nearly_that_of_exact_ones(key, fields):
    x = jax.random.uniform(jax.random.key(1), (8, 6, 6, 1))
    losses, grads = [], []
    for dtype in DTYPES:
        config = Config(hidden_sizes=(16,), latent_dim=3, compute_dtype=dtype, **fields)
        vae, objective = build.make_vae(config, DATA), build.make_objective(config)
        params = jax.jit(vae.init)(jax.random.clone(key), x)
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
