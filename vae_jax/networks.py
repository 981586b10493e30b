"""The networks that a config can name. Only this file knows that encoders and decoders are Flax Linen modules."""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import Array

from vae_jax.core import Params, with_context
from vae_jax.errors import MAX_LAYERS
from vae_jax.xla.convolution import conv, conv_transpose
from vae_jax.xla.products import product

NAMES = ("convolutional", "mlp", "temporal")  # what a config may name

MAX_WEIGHTS = 2**48  # of one layer: no memory holds more, and from 2^63 on XLA would end the process


class Function(NamedTuple):
    """A network as a pure function of its parameters. `context`, [..., C] or None, is joined to the input."""

    init: Callable[[Array, Array, Array | None], Params]  # (key, input, context) -> params
    apply: Callable[[Params, Array, Array | None], Array]  # (params, input, context) -> outputs


OutputBias = Callable[[Params, Array, Callable[[Array], Array]], Params]


class Network(NamedTuple):
    encoder: Function  # [..., *shape] -> [..., encoder_outputs]
    decoder: Function  # [..., latent_dim] -> [..., *shape, decoder_outputs]
    # (decoder's params, average of the data [*shape, ...], outputs_of) -> params with which the decoder's last bias is
    # outputs_of(average), [*shape, decoder_outputs]. None: the last bias stays as `init` makes it.
    output_bias: OutputBias | None = None


def mlp(
    shape: tuple[int, ...],
    encoder_outputs: int,
    decoder_outputs: int,
    *,
    hidden_sizes: Sequence[int] = (400,),
    activation: str = "relu",
    decoder_activation: str = "",
    init_scale: float = 1.0,
    compute_dtype: str = "float32",
) -> Network:
    """Dense layers of `hidden_sizes` units; the decoder has them in reverse order.

    An activation is the name of a function in `jax.nn`, or one name per hidden layer, separated by commas. An empty
    `decoder_activation` means that the decoder uses `activation`. Weights begin with the variance init_scale / fan_in,
    as LeCun's do for 1 and PyTorch's for 1/3. compute_dtype: the type of the factors in `products.product`.
    """
    _check_scale(init_scale)
    sizes, activations = tuple(hidden_sizes), activations_of(activation, len(hidden_sizes))
    encoder = _MLP(sizes, encoder_outputs, activations, init_scale, compute_dtype)
    decoder = _MLP(
        tuple(reversed(hidden_sizes)),
        prod(shape) * decoder_outputs,
        activations_of(decoder_activation or activation, len(hidden_sizes)),
        init_scale,
        compute_dtype,
    )
    flatten = lambda x: x.reshape(*x.shape[: x.ndim - len(shape)], prod(shape))  # noqa: E731
    unflatten = lambda y: y.reshape(*y.shape[:-1], *shape, decoder_outputs)  # noqa: E731
    return Network(_function(encoder, before=flatten), _function(decoder, after=unflatten), _output_bias)


def convolutional(
    shape: tuple[int, ...],
    encoder_outputs: int,
    decoder_outputs: int,
    *,
    channels: Sequence[int] = (32, 64),
    decoder_channels: Sequence[int] = (),
    encoder_blocks: Sequence[int] = (),
    decoder_blocks: Sequence[int] = (),
    hidden_sizes: Sequence[int] = (),
    activation: str = "relu",
    decoder_activation: str = "",
    init_scale: float = 1.0,
    compute_dtype: str = "float32",
) -> Network:
    """3x3 convolutions of stride 2 with `channels`, then dense layers of `hidden_sizes`; the decoder mirrors them.

    Images may have any size H x W x C. The decoder's dense layers give the smallest image, each transposed convolution
    doubles its size, and a last convolution gives the outputs. `decoder_channels` are the channels of the decoder's
    images, from the smallest on; by default channels[0], then `channels` reversed. If fewer are given, the last image
    is smaller than x, and each of its pixels gives the outputs of all pixels that it covers (sub-pixel convolution, Shi
    et al. 2016). `encoder_blocks` and `decoder_blocks` are the numbers of residual blocks, x + conv(activation(x)), on
    each image, from the smallest on. The other arguments are as in `mlp`.
    """
    if len(shape) != 3:
        raise ValueError(f"The convolutional network got examples of shape {shape}; expected images [H, W, C].")
    if not channels:
        raise ValueError(f"channels is {channels!r}; expected positive whole numbers.")
    _check_scale(init_scale)
    num = len(hidden_sizes)
    channels, hidden_sizes = tuple(channels), tuple(hidden_sizes)
    up = tuple(decoder_channels) or (channels[0], *reversed(channels))
    if len(up) > len(channels) + 1:
        raise ValueError(f"decoder_channels is {up}; expected at most {len(channels) + 1} for channels {channels}.")
    blocks_down, blocks_up = _pad_blocks(encoder_blocks, len(channels))[::-1], _pad_blocks(decoder_blocks, len(up))
    weights = (init_scale, compute_dtype)
    encoder = _ConvEncoder(
        channels,
        blocks_down,
        hidden_sizes,
        encoder_outputs,
        *_split_activations(activation, len(channels), num),
        *weights,
    )
    activations = _split_activations(decoder_activation or activation, num + 1, len(up) - 1)
    decoder = _ConvDecoder(shape, len(channels), up, blocks_up, hidden_sizes, decoder_outputs, *activations, *weights)
    unflatten = lambda y: y.reshape(*y.shape[:-1], shape[-1], decoder_outputs)  # noqa: E731
    return Network(_function(encoder), _function(decoder, after=unflatten), _output_bias)


def temporal(
    shape: tuple[int, ...],
    encoder_outputs: int,
    decoder_outputs: int,
    *,
    channels: Sequence[int] = (32, 64),
    hidden_sizes: Sequence[int] = (),
    activation: str = "relu",
    decoder_activation: str = "",
    init_scale: float = 1.0,
    compute_dtype: str = "float32",
) -> Network:
    """Convolutions over time, 5 steps wide and of stride 2, then dense layers; the decoder mirrors them.

    Sequences [T] or [T, F] may have any length T, and the F features of a step are the channels of the first
    convolution. [T, F, 1] is taken as [T, F], since files of [N, T, F] are read as images of one channel. The other
    arguments are as in `convolutional`. The average of the data over time sets the output bias, one for each feature.
    """
    if len(shape) not in (1, 2) and (len(shape) != 3 or shape[2] != 1):
        raise ValueError(
            f"The temporal network got examples of shape {shape}; expected sequences [T], [T, F] or [T, F, 1]."
        )
    if not channels:
        raise ValueError(f"channels is {channels!r}; expected positive whole numbers.")
    _check_scale(init_scale)
    num, channels, hidden_sizes = len(hidden_sizes), tuple(channels), tuple(hidden_sizes)
    image = (shape[0], 1, prod(shape[1:]))  # one pixel wide, with the features as channels
    up, kernel_size = (channels[0], *reversed(channels)), (5, 1)
    down_blocks, up_blocks = (0,) * len(channels), (0,) * len(up)
    weights = (init_scale, compute_dtype)
    encoder = _ConvEncoder(
        channels,
        down_blocks,
        hidden_sizes,
        encoder_outputs,
        *_split_activations(activation, len(channels), num),
        *weights,
        kernel_size=kernel_size,
    )
    decoder = _ConvDecoder(
        image,
        len(channels),
        up,
        up_blocks,
        hidden_sizes,
        decoder_outputs,
        *_split_activations(decoder_activation or activation, num + 1, len(channels)),
        *weights,
        kernel_size=kernel_size,
    )
    fold = lambda x: x.reshape(*x.shape[: x.ndim - len(shape)], *image)  # noqa: E731
    unfold = lambda y: y.reshape(*y.shape[:-3], *shape, decoder_outputs)  # noqa: E731
    return Network(
        _function(encoder, before=fold), _function(decoder, after=unfold), partial(_output_bias, shared_axes=(0,))
    )


def coupling(num_outputs: int, *, hidden_size: int = 256, num_layers: int = 2) -> Function:
    """The network inside a flow's coupling layer. Its outputs begin at 0, so a new flow only reorders dimensions."""
    return _function(_MLP((hidden_size,) * num_layers, num_outputs, (jax.nn.gelu,) * num_layers, 1.0, output_scale=0.0))


Activations = tuple[Callable[[Array], Array], ...]


def activations_of(names: str, num_layers: int) -> Activations:
    if not isinstance(names, str):
        raise ValueError(f"activation is {names!r}; expected a name, or names separated by commas.")
    each = [name.strip() for name in names.split(",")]
    each = each * num_layers if len(each) == 1 else each
    if len(each) != num_layers:
        raise ValueError(f"activation {names!r} names {len(each)} layers; expected one name or {num_layers}.")
    for name in each:
        try:
            (size,) = jax.eval_shape(getattr(jax.nn, name), jax.ShapeDtypeStruct((2,), jnp.float32)).shape
            [1, 2].index(size)  # glu halves
        except Exception:
            raise ValueError(f"Unknown activation {name!r}. Choose one of jax.nn, such as relu, elu or tanh.") from None
    return tuple(getattr(jax.nn, name) for name in each)


def _pad_blocks(numbers: Sequence[int], num_images: int) -> tuple[int, ...]:
    if len(numbers) > num_images:
        raise ValueError(f"{tuple(numbers)} are blocks for {len(numbers)} images; expected at most {num_images}.")
    if sum(numbers) > MAX_LAYERS:
        raise ValueError(f"{tuple(numbers)} are {sum(numbers)} residual blocks; expected at most {MAX_LAYERS}.")
    return (*numbers, *(0,) * (num_images - len(numbers)))


def _split_activations(names: str, first: int, second: int) -> tuple[Activations, Activations]:
    every = activations_of(names, first + second)
    return every[:first], every[first:]


class _MLP(nn.Module):
    hidden_sizes: tuple[int, ...]
    num_outputs: int
    activations: Activations
    init_scale: float
    compute_dtype: str = "float32"
    output_scale: float | None = None

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> Array:
        output_scale = self.init_scale if self.output_scale is None else self.output_scale
        dot = lambda x, w, *_, **__: product(x, w, self.compute_dtype)  # noqa: E731
        x = with_context(x, context)
        for size, activation in zip(self.hidden_sizes, self.activations, strict=True):
            x = activation(nn.Dense(size, kernel_init=_initializer(self.init_scale), dot_general=dot)(x))
        return nn.Dense(self.num_outputs, kernel_init=_initializer(output_scale), dot_general=dot, name="output")(x)


class _Kernel(nn.Module):
    """A convolution with a bias; if `output_size` is given, a transposed convolution to images of that size."""

    channels: int
    stride: int
    init_scale: float
    compute_dtype: str
    kernel_size: tuple[int, int] = (3, 3)
    output_size: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (*self.kernel_size, x.shape[-1], self.channels)
        kernel = self.param("kernel", _initializer(self.init_scale), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,), jnp.float32)
        x, kernel, bias = promote_dtype(x, kernel, bias)  # nn.Dense does the same
        if self.output_size is None:
            y = conv(x, kernel, self.stride, self.compute_dtype)
        else:
            y = conv_transpose(x, kernel, self.stride, self.output_size, self.compute_dtype)
        return y + bias.reshape(1, 1, 1, -1)


class _Residual(nn.Module):
    """Residual blocks x + conv(activation(x)), then the activation."""

    num_blocks: int
    activation: Callable[[Array], Array]
    init_scale: float
    compute_dtype: str
    kernel_size: tuple[int, int] = (3, 3)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for _ in range(self.num_blocks):
            # With half the variance, what many blocks add stays about as large as their input.
            weights = (self.init_scale / 2, self.compute_dtype, self.kernel_size)
            x = x + _Kernel(x.shape[-1], 1, *weights)(self.activation(x))
        return self.activation(x)


class _ConvEncoder(nn.Module):
    channels: tuple[int, ...]
    blocks: tuple[int, ...]
    hidden_sizes: tuple[int, ...]
    num_outputs: int
    conv_activations: Activations
    dense_activations: Activations
    init_scale: float
    compute_dtype: str
    kernel_size: tuple[int, int] = (3, 3)

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> Array:
        weights = (self.init_scale, self.compute_dtype, self.kernel_size)
        batch, x = x.shape[:-3], x.reshape(-1, *x.shape[-3:])
        for size, blocks, activation in zip(self.channels, self.blocks, self.conv_activations, strict=True):
            x = _Residual(blocks, activation, *weights)(_Kernel(size, 2, *weights)(x))
        features = x.reshape(*batch, prod(x.shape[1:]))
        dense = _MLP(self.hidden_sizes, self.num_outputs, self.dense_activations, *weights[:2], name="dense")
        return dense(features, context)


class _ConvDecoder(nn.Module):
    shape: tuple[int, ...]
    num_halvings: int
    channels: tuple[int, ...]
    blocks: tuple[int, ...]
    hidden_sizes: tuple[int, ...]
    num_outputs: int
    dense_activations: Activations
    conv_activations: Activations
    init_scale: float
    compute_dtype: str
    kernel_size: tuple[int, int] = (3, 3)

    @nn.compact
    def __call__(self, z: Array, context: Array | None = None) -> Array:
        weights = (self.init_scale, self.compute_dtype, self.kernel_size)
        height, width, num_channels = self.shape
        sizes = [(height, width)]  # from the output down to the smallest image
        for _ in range(self.num_halvings):
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        smallest = (*sizes[-1], self.channels[0])
        *hidden, last = self.dense_activations
        sizes_up = tuple(reversed(self.hidden_sizes))
        dense = _MLP(sizes_up, prod(smallest), tuple(hidden), *weights[:2], name="dense")
        x = _Residual(self.blocks[0], last, *weights)(dense(z, context).reshape(-1, *smallest))
        doubled = zip(self.channels[1:], self.blocks[1:], self.conv_activations, strict=True)
        for (size, blocks, activation), output_size in zip(doubled, sizes[-2::-1], strict=False):
            x = _Residual(blocks, activation, *weights)(_Kernel(size, 2, *weights, output_size)(x))
        zoom = 2 ** (self.num_halvings + 1 - len(self.channels))
        x = _Kernel(num_channels * self.num_outputs * zoom**2, 1, *weights, (x.shape[1], x.shape[2]), name="output")(x)
        x = _depth_to_space(x, zoom)[:, :height, :width]
        return x.reshape(*z.shape[:-1], *x.shape[1:])


def _output_bias(
    params: Params, average: Array, outputs_of: Callable[[Array], Array], shared_axes: tuple[int, ...] = (0, 1)
) -> Params:
    """Set the bias of the last layer: one number per output or, in a convolution, per output of a channel.

    A convolution has one bias for all positions along `shared_axes`.
    """
    size = params["output"]["bias"].size
    bias = outputs_of(average)
    if bias.size != size:
        bias = outputs_of(jnp.mean(average, shared_axes))
    output = params["output"] | {"bias": jnp.tile(bias.reshape(-1), size // bias.size)}
    return params | {"output": output}


def _depth_to_space(x: Array, zoom: int) -> Array:
    """Turn each pixel into zoom x zoom pixels: [B, h, w, zoom * zoom * C] to [B, h * zoom, w * zoom, C]."""
    b, h, w, _ = x.shape
    return x.reshape(b, h, w, zoom, zoom, -1).swapaxes(2, 3).reshape(b, h * zoom, w * zoom, -1)


def _check_scale(init_scale: float) -> None:
    if init_scale < 0:
        raise ValueError(f"init_scale is {init_scale}; expected at least 0.")


def _initializer(scale: float) -> Callable[..., Array]:
    draw = nn.initializers.variance_scaling(scale, "fan_in", "uniform") if scale else nn.initializers.zeros

    def init(key: Array, shape: tuple[int, ...], *dtype) -> Array:
        if prod(shape) >= MAX_WEIGHTS:
            raise ValueError(f"a layer has weights of shape {shape}; expected less than {MAX_WEIGHTS} in all.")
        return draw(key, shape, *dtype)

    return init


def _function(
    module: nn.Module,
    before: Callable[[Array], Array] = lambda x: x,
    after: Callable[[Array], Array] = lambda y: y,
) -> Function:
    return Function(
        lambda key, x, context: module.init(key, before(x), context)["params"],
        lambda params, x, context: after(cast(Array, module.apply({"params": params}, before(x), context))),
    )
