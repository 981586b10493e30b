"""Convolutions that are fast on every backend, inside `lax.scan` and with gradients (in reverse mode only).

XLA:CPU compiles a convolution in the body of a loop to scalar code, 25 to 60 times slower than outside the loop, so on
CPU these convolutions are matrix products.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from vae_jax.errors import UserError
from vae_jax.xla.products import moved, outer, product, with_vmap

# On CPU, a convolution copies its windows side by side and takes one matrix product; a transposed convolution takes one
# matrix product and adds up overlapping windows. Copying and adding up are each other's transposes.

Size = tuple[int, int]
Convolution = Callable[[Array, Array], Array]
_NHWC = ("NHWC", "HWIO", "NHWC")


def conv(x: Array, kernel: Array, stride: int = 1, compute_dtype: str = "float32") -> Array:
    """Convolution with 'SAME' padding: `lax.conv_general_dilated(x, kernel, (stride, stride), "SAME")` in NHWC, HWIO.

    x: [B, H, W, C]; kernel: [kh, kw, C, D]. Returns [B, ceil(H / stride), ceil(W / stride), D]. compute_dtype: the type
    of the factors in its products.
    Raises UserError if the shapes do not fit.
    """
    _check(x, kernel)

    def products(x: Array, kernel: Array) -> Array:
        (kh, kw, c, d), (_, h, w, _) = kernel.shape, x.shape
        if stride == 1 and kh % 2 == kw % 2 == 1:
            if d < c:  # this moves D numbers per tap of the kernel, not C
                return _product_then_fold(x, kernel[::-1, ::-1], 1, (h, w), compute_dtype)
            if compute_dtype != "float32":
                return _same(x, kernel, compute_dtype)
        return _product(_windows(x, (kh, kw), stride, (h, w)), kernel.reshape(kh * kw * c, d), compute_dtype)

    def native(x: Array, kernel: Array) -> Array:
        factors = _rounded(x, compute_dtype), _rounded(kernel, compute_dtype)
        y = lax.conv_general_dilated(*factors, (stride, stride), "SAME", dimension_numbers=_NHWC)
        return y.astype(x.dtype)

    return _in_one_batch(lambda x, kernel: lax.platform_dependent(x, kernel, cpu=products, default=native))(x, kernel)


def conv_transpose(x: Array, kernel: Array, stride: int, output_size: Size, compute_dtype: str = "float32") -> Array:
    """Transpose of `conv`: each pixel of x adds a multiple of the kernel to the output, `stride` pixels apart.

    x: [B, h, w, C]; kernel: [kh, kw, C, D]; output_size: (H, W) with ceil(H / stride) = h and ceil(W / stride) = w.
    Returns [B, H, W, D]: the linear transpose, applied to x, of the `conv` from [B, H, W, D] to [B, h, w, C] with
    `kernel.swapaxes(2, 3)`. It equals
    `lax.conv_general_dilated(x, kernel[::-1, ::-1], (1, 1), padding, lhs_dilation=(stride, stride))`.
    The padding of the rows is (kh - 1 - p, p + H - 1 - (h - 1) * stride), where p is the number of rows that 'SAME'
    puts before H rows, max((h - 1) * stride + kh - H, 0) // 2. The columns are padded in the same way.
    Raises UserError if the shapes do not fit.
    """
    _check(x, kernel)
    (height, width), small, kernel_size = output_size, x.shape[1:3], kernel.shape[:2]
    if (-(-height // stride), -(-width // stride)) != small:
        raise UserError(
            f"Output size {(height, width)} at stride {stride} does not fit x of {small} pixels: "
            f"choose one with ceil(size / {stride}) = {small}."
        )
    padding = [
        (k - 1 - _before(n, k, stride), _before(n, k, stride) + n - 1 - (m - 1) * stride)
        for n, m, k in zip(output_size, small, kernel_size, strict=True)
    ]

    def products(x: Array, kernel: Array) -> Array:
        return _product_then_fold(x, kernel, stride, (height, width), compute_dtype)

    def native(x: Array, kernel: Array) -> Array:
        factors = _rounded(x, compute_dtype), _rounded(kernel[::-1, ::-1], compute_dtype)
        y = lax.conv_general_dilated(*factors, (1, 1), padding, (stride, stride), dimension_numbers=_NHWC)
        return y.astype(x.dtype)

    return _in_one_batch(lambda x, kernel: lax.platform_dependent(x, kernel, cpu=products, default=native))(x, kernel)


def _in_one_batch(function: Convolution) -> Convolution:
    """`function`, but so that an axis which `vmap` adds to x becomes part of the batch, unless it is differentiated.

    XLA:CPU takes a quarter longer for arrays of more axes. A derivative needs the axis, because it asks for the
    gradient of the kernel from each part of the batch.
    """

    def batch(size: int, batched: list[bool], x: Array, kernel: Array) -> tuple[Array, bool]:
        if batched[1]:  # each model has its own kernel
            return jax.vmap(function, [0 if own else None for own in batched])(x, kernel), True
        y = merged(x.reshape(-1, *x.shape[2:]), kernel)
        return y.reshape(size, -1, *y.shape[1:]), True

    merged = with_vmap(function, batch)
    return merged


def _product_then_fold(x: Array, kernel: Array, stride: int, size: Size, dtype: str) -> Array:
    (kh, kw, c, d), (b, h, w, _) = kernel.shape, x.shape
    if stride > 1 or d >= 16 or kh % 2 == 0 or kw % 2 == 0:
        return _fold(_product(x, kernel.transpose(2, 0, 1, 3).reshape(c, kh * kw * d), dtype), (kh, kw), stride, size)
    # So few channels do not fill a vector register, but an image's rows do, so each tap becomes a plane of pixels.
    weights = kernel.swapaxes(2, 3).reshape(kh * kw * d, c)
    planes = product(weights, x.reshape(-1, c).T, dtype).reshape(kh, kw, d, b, h, w)
    return jnp.moveaxis(_fold_planes(planes, (kh, kw)), 0, -1)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _same(x: Array, kernel: Array, dtype: str) -> Array:
    """Convolution of stride 1 with an odd kernel, which rounds its factors before it copies windows.

    In narrow types products are fast, so copies take most of the time. Here the windows of the result's gradient are
    copied once for both gradients, and the windows of x are not needed again. In float32, adding up windows is a little
    faster than such a copy.
    """
    return _same_forward(x, kernel, dtype)[0]


def _same_forward(x: Array, kernel: Array, dtype: str) -> tuple[Array, tuple[Array, Array]]:
    x = x.astype(dtype)
    return _windows_product(x, kernel, dtype)[0], (x, kernel)


def _same_backward(dtype: str, saved: tuple[Array, Array], y_bar: Array) -> tuple[Array, Array]:
    x, kernel = saved
    kh, kw, c, d = kernel.shape
    x_bar, windows = _windows_product(y_bar.astype(dtype), kernel[::-1, ::-1].swapaxes(2, 3), dtype)
    return x_bar, outer(x, windows).reshape(c, kh, kw, d).transpose(1, 2, 0, 3)[::-1, ::-1]


def _windows_product(x: Array, kernel: Array, dtype: str) -> tuple[Array, Array]:
    """The convolution of stride 1, and the windows of x that it multiplied."""
    (kh, kw, c, d), (_, h, w, _) = kernel.shape, x.shape
    windows = _windows(x, (kh, kw), 1, (h, w))
    return _product(windows, kernel.reshape(kh * kw * c, d), dtype), windows


_same.defvjp(_same_forward, _same_backward)


def _product(x: Array, w: Array, dtype: str) -> Array:
    """x @ w as a product of two matrices: with a 4-axis x, a training step takes 1.7 times as long on XLA:CPU."""
    return product(x.reshape(-1, w.shape[0]), w, dtype).reshape(*x.shape[:-1], w.shape[1])


# The gradients are written by hand, because JAX's gradient of a slice is a whole padded image.


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _windows(x: Array, kernel_size: Size, stride: int, size: Size) -> Array:
    """The kh x kw pixels under each position of the kernel: [B, H, W, C] to [B, h, w, kh * kw * C]."""
    kh, kw = kernel_size
    h, w = small = tuple(-(-n // stride) for n in size)
    before = [_before(n, k, stride) for n, k in zip(size, kernel_size, strict=True)]
    after = [max((m - 1) * stride + k - n - p, 0) for n, m, k, p in zip(size, small, kernel_size, before, strict=True)]
    rows, columns = (h - 1) * stride + 1, (w - 1) * stride + 1

    def copy(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), *zip(before, after, strict=True), (0, 0)))
        taps = [x[:, t : t + rows : stride, u : u + columns : stride] for t in range(kh) for u in range(kw)]
        return jnp.concatenate(taps, -1)

    # Without the barrier, XLA computes each pixel of x again for each window that it is in.
    return moved(copy, lax.optimization_barrier(x))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _fold(y: Array, kernel_size: Size, stride: int, size: Size) -> Array:
    """The sum of overlapping windows, each in its place: [B, h, w, kh * kw * C] to [B, H, W, C]."""
    (b, h, w, _), (kh, kw) = y.shape, kernel_size
    y = y.reshape(b, h, w, kh, kw, -1)
    p, q = (_before(n, k, stride) for n, k in zip(size, kernel_size, strict=True))

    def shifted(t: int, u: int, di: int, dj: int) -> Array:  # tap (t, u) of the window di rows down, dj columns right
        rows, columns = ((max(-d, 0), max(d, 0)) for d in (di, dj))
        return jnp.pad(y[:, :, :, t, u], ((0, 0), rows, columns, (0, 0)))[:, rows[1] :, columns[1] :][:, :h, :w]

    def phase(i: int, j: int) -> Array:  # the pixels (i, j), (i + stride, j), ... all get the same taps
        rows = [(t, (i + p - t) // stride) for t in range((i + p) % stride, kh, stride)]
        columns = [(u, (j + q - u) // stride) for u in range((j + q) % stride, kw, stride)]
        return sum((shifted(t, u, di, dj) for t, di in rows for u, dj in columns), jnp.zeros_like(y[:, :, :, 0, 0]))

    phases = jnp.stack([phase(i, j) for i in range(stride) for j in range(stride)], 3)
    image = phases.reshape(b, h, w, stride, stride, -1).swapaxes(2, 3).reshape(b, h * stride, w * stride, -1)
    return image[:, : size[0], : size[1]]


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _fold_planes(y: Array, kernel_size: Size) -> Array:
    """The sum of planes of pixels, each shifted to its place: [kh, kw, ..., H, W] to [..., H, W]."""
    (kh, kw), (h, w) = kernel_size, y.shape[-2:]
    y = _frame(y, kernel_size)
    shifted = [y[t, u, ..., kh - 1 - t :, kw - 1 - u :][..., :h, :w] for t in range(kh) for u in range(kw)]
    return sum(shifted[1:], shifted[0])


def _planes(y_bar: Array, kernel_size: Size) -> Array:
    (kh, kw), (h, w) = kernel_size, y_bar.shape[-2:]
    y_bar = _frame(lax.optimization_barrier(y_bar), kernel_size)
    return jnp.stack([jnp.stack([y_bar[..., t : t + h, u : u + w] for u in range(kw)]) for t in range(kh)])


def _frame(x: Array, kernel_size: Size) -> Array:
    kh, kw = kernel_size
    return jnp.pad(x, ((0, 0),) * (x.ndim - 2) + ((kh // 2, kh // 2), (kw // 2, kw // 2)))


_windows.defvjp(lambda x, *static: (_windows(x, *static), None), lambda *args: (_fold(args[-1], *args[:3]),))
_fold.defvjp(lambda y, *static: (_fold(y, *static), None), lambda *args: (_windows(args[-1], *args[:3]),))
_fold_planes.defvjp(lambda y, size: (_fold_planes(y, size), None), lambda size, _, y_bar: (_planes(y_bar, size),))


def _rounded(a: Array, dtype: str) -> Array:
    return a if dtype == "float32" else a.astype(dtype)  # float64 is not rounded for 'float32'


def _before(n: int, k: int, stride: int) -> int:
    """The number of zeros that 'SAME' puts before n pixels for a kernel of k pixels."""
    return max((-(-n // stride) - 1) * stride + k - n, 0) // 2


def _check(x: Array, kernel: Array) -> None:
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2]:
        raise UserError(
            f"x {x.shape} and kernel {kernel.shape} do not fit: expected [B, H, W, C] and [kh, kw, C, D] with equal C."
        )
