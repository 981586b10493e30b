"""`conv` and `conv_transpose` against `lax.conv_general_dilated` and its linear transpose."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mostly_slow
from jax import lax

from vae_jax.errors import UserError
from vae_jax.xla.convolution import conv, conv_transpose

# Stride, kernel size and output channels; few and many channels choose different formulations.
FORMS = [
    (1, 1, 17),
    (1, 3, 1),
    (1, 3, 17),
    (1, 5, 1),
    (2, 1, 1),
    (2, 3, 17),
    (2, 5, 1),
    (3, 1, 17),
    (3, 3, 1),
    (3, 5, 2),
]
CASES = [(shape, *form) for shape in [(28, 20, 1), (7, 5, 2), (1, 1, 2)] for form in FORMS]
CASES += [(shape, *form) for shape in [(28, 28, 1), (32, 32, 3), (5, 7, 20)] for form in FORMS if form[1] == 3]


def lax_conv(x, kernel, stride):
    return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def lax_conv_transpose(x, kernel, stride, size):
    image = jax.ShapeDtypeStruct((x.shape[0], *size, kernel.shape[3]), x.dtype)
    return jax.linear_transpose(lambda y: lax_conv(y, kernel.swapaxes(2, 3), stride), image)(x)[0]


LAX = lax_conv, lax_conv_transpose


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def assert_close(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))


def values_and_gradients(conv, conv_transpose, size, stride, *operands):
    """Both functions and their four gradients for cotangents sin(0), sin(1), ... rounded, in one compilation."""

    @jax.jit
    def run(x, small, kernel):
        y, back = jax.vjp(lambda x, w: conv(x, w, stride), x, kernel)
        z, back_transpose = jax.vjp(lambda x, w: conv_transpose(x, w, stride, size), small, kernel)
        cotangents = (rounded(jnp.sin(jnp.arange(a.size, dtype=a.dtype))).reshape(a.shape) for a in (y, z))
        return y, z, *back(next(cotangents)), *back_transpose(next(cotangents))

    return run(*operands)


def rounded(a):
    return a.astype(jnp.bfloat16).astype(a.dtype)


def operands(size, channels, stride, k, features):
    small = [-(-n // stride) for n in size]
    return arrays((2, *size, channels), (2, *small, channels), (*np.broadcast_to(k, 2), channels, features))


@pytest.mark.parametrize(
    ("shape", "stride", "k", "features"),
    mostly_slow(CASES, lambda case: case[0] in ((7, 5, 2), (5, 7, 20))),
    ids=str,
)
def test_values_and_gradients_equal_lax(shape, stride, k, features):
    *size, channels = shape
    case = tuple(size), stride, *operands(size, channels, stride, k, features)
    assert_close(values_and_gradients(conv, conv_transpose, *case), values_and_gradients(*LAX, *case))


@pytest.mark.parametrize(
    ("channels", "stride", "k", "features"),
    mostly_slow([(20, *form) for form in FORMS] + [(2, 1, 2, 4)], lambda case: case[2] in (2, 3)),
)
def test_bfloat16_products_are_those_of_rounded_factors(channels, stride, k, features):
    case = (7, 5), stride, *map(rounded, operands((7, 5), channels, stride, k, features))
    functions = [partial(f, compute_dtype="bfloat16") for f in (conv, conv_transpose)]
    assert_close(values_and_gradients(*functions, *case), values_and_gradients(*LAX, *case))


def test_second_derivatives_of_bfloat16_products():
    x, kernel = arrays((2, 7, 5, 4), (3, 3, 4, 6))

    def curvature(kernel, conv):
        grad = jax.grad(lambda kernel: jnp.sum(jnp.tanh(conv(x, kernel, 1))))
        return jax.grad(lambda kernel: jnp.sum(grad(kernel) ** 2))(kernel)

    narrow, exact = (
        jax.jit(partial(curvature, conv=f))(kernel) for f in (partial(conv, compute_dtype="bfloat16"), lax_conv)
    )
    np.testing.assert_allclose(narrow, exact, rtol=0, atol=0.05 * float(jnp.abs(exact).max()))


@pytest.mark.parametrize("stride", [1, 2])
def test_kernels_need_be_neither_odd_nor_square(stride):
    case = (7, 6), stride, *operands((7, 6), 3, stride, (2, 3), 1)
    assert_close(values_and_gradients(conv, conv_transpose, *case), values_and_gradients(*LAX, *case))


@pytest.mark.parametrize(("size", "stride", "k"), [((28, 20), 1, 3), ((28, 20), 2, 3), ((7, 5), 2, 5), ((7, 5), 3, 1)])
def test_the_accelerator_path_is_the_same_function(monkeypatch, size, stride, k):
    monkeypatch.setattr(lax, "platform_dependent", lambda *operands, cpu, default: default(*operands))
    case = size, stride, *operands(size, 2, stride, k, 3)
    assert_close(values_and_gradients(conv, conv_transpose, *case), values_and_gradients(*LAX, *case))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_the_platform_that_runs_decides_and_not_the_one_that_traces(platform):
    x, kernel = arrays((2, 7, 5, 4), (3, 3, 4, 2))
    both = jax.jit(lambda x, kernel: conv_transpose(conv(x, kernel, 2), kernel.swapaxes(2, 3), 2, (7, 5)))
    text = both.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == (0 if platform == "cpu" else 2)


@pytest.mark.parametrize("features", [1, 17])
def test_gradients_under_vmap_over_kernels_inside_scan(features):
    x, kernels = arrays((2, 7, 5, 4), (3, 3, 3, 4, features))

    def loss(kernel, conv, conv_transpose):
        y = conv_transpose(conv(x, kernel, 2), kernel.swapaxes(2, 3), 2, (7, 5))
        return jnp.mean(conv_transpose(conv(y, kernel, 1), kernel.swapaxes(2, 3), 1, (7, 5)) ** 2)

    def gradients(*functions):
        step = jax.vmap(jax.grad(lambda kernel: loss(kernel, *functions)))
        return jax.jit(lambda k: lax.scan(lambda c, _: (c, step(c)), k, None, length=2)[1][-1])(kernels)

    got, expected = gradients(conv, conv_transpose), gradients(*LAX)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("features", [1, 17])
def test_gradient_of_a_scan_over_convolutions(features):
    x, kernel = arrays((3, 2, 7, 5, 4), (3, 3, 4, features))

    def gradient(conv):
        total = lambda kernel: lax.scan(lambda c, x: (c + jnp.sum(conv(x, kernel, 1) ** 2), None), 0.0, x)[0]  # noqa: E731
        return jax.jit(jax.grad(total))(kernel)

    expected = gradient(lax_conv)
    np.testing.assert_allclose(gradient(conv), expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("several_kernels", (False, True))
def test_vmap_over_images_and_kernels_is_a_loop(several_kernels):
    x, kernels = arrays((3, 2, 2, 7, 5, 4), (3, 3, 3, 4, 6))
    kernels = kernels if several_kernels else kernels[:1].repeat(3, 0)
    both = lambda x, kernel: conv_transpose(conv(x, kernel, 2), kernel.swapaxes(2, 3), 2, (7, 5))  # noqa: E731
    own = jax.vmap(both, (0, None))  # over the second axis of images
    got = jax.vmap(own)(x, kernels) if several_kernels else jax.vmap(own, (0, None))(x, kernels[0])
    expected = [[both(x[i, j], kernels[i]) for j in range(2)] for i in range(3)]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_stays_bfloat16():
    x, kernel = (a.astype(jnp.bfloat16) for a in arrays((2, 7, 5, 20), (3, 3, 20, 4)))
    y = conv_transpose(conv(x, kernel, 2), kernel.swapaxes(2, 3), 2, (7, 5))
    expected = lax_conv_transpose(lax_conv(x, kernel, 2), kernel.swapaxes(2, 3), 2, (7, 5))
    assert y.dtype == jnp.bfloat16
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(y.astype(jnp.float32), expected.astype(jnp.float32), rtol=0, atol=0.03 * scale)


def test_shapes_that_do_not_fit_are_named():
    x, kernel = arrays((2, 7, 7, 3), (3, 3, 4, 5))
    for call in (lambda: conv(x, kernel), lambda: conv_transpose(x, kernel, 2, (14, 14))):
        with pytest.raises(UserError, match=r"\(2, 7, 7, 3\) and kernel \(3, 3, 4, 5\) do not fit"):
            call()
    with pytest.raises(UserError, match=r"Output size \(15, 14\) at stride 2 does not fit x of \(7, 7\)"):
        conv_transpose(x, kernel[:, :, :3], 2, (15, 14))
