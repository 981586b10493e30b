"""Encoders and decoders by name. The one file that knows they are Flax Linen modules."""

from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from vae_jax.convolution import conv, conv_transpose
from vae_jax.core import Params


class Network(NamedTuple):
    """A pure function of parameters; `context`, [..., C] or None, joins the input."""

    init: Callable[[Array, Array, Array | None], Params]  # (key, input, context) -> params
    apply: Callable[[Params, Array, Array | None], Array]  # (params, input, context) -> outputs


class Pair(NamedTuple):
    encoder: Network  # [..., *shape] -> [..., encoder_outputs]
    decoder: Network  # [..., latent_dim] -> [..., *shape, decoder_outputs]


def mlp(
    shape: tuple[int, ...],
    encoder_outputs: int,
    decoder_outputs: int,
    *,
    hidden_sizes: Sequence[int] = (400,),
    activation: str = "relu",
    decoder_activation: str = "",
) -> Pair:
    """Dense layers of `hidden_sizes` units, in the decoder in reverse order.

    An activation is a name in `jax.nn`, or one name a hidden layer separated by commas; the decoder's is the
    encoder's unless given.
    """
    encoder = _MLP(tuple(hidden_sizes), encoder_outputs, _activations(activation, len(hidden_sizes)))
    decoder = _MLP(
        tuple(reversed(hidden_sizes)),
        prod(shape) * decoder_outputs,
        _activations(decoder_activation or activation, len(hidden_sizes)),
    )
    flatten = lambda x: x.reshape(*x.shape[: x.ndim - len(shape)], prod(shape))  # noqa: E731
    unflatten = lambda y: y.reshape(*y.shape[:-1], *shape, decoder_outputs)  # noqa: E731
    return Pair(_network(encoder, before=flatten), _network(decoder, after=unflatten))


def convolutional(
    shape: tuple[int, ...],
    encoder_outputs: int,
    decoder_outputs: int,
    *,
    channels: Sequence[int] = (32, 64),
    hidden_sizes: Sequence[int] = (),
    activation: str = "relu",
    decoder_activation: str = "",
) -> Pair:
    """3x3 convolutions of stride 2 with `channels`, then dense layers of `hidden_sizes`; the decoder mirrors them.

    The decoder's dense layers end in the smallest image with `channels[0]` channels, each stride-2 transposed
    convolution doubles it, and a last one of stride 1 gives the outputs. For any H x W x C.
    """
    if len(shape) != 3:
        raise ValueError(f"The convolutional network got examples of shape {shape}; expected images [H, W, C].")
    num = len(hidden_sizes)
    channels, hidden_sizes = tuple(channels), tuple(hidden_sizes)
    encoder = _ConvEncoder(channels, hidden_sizes, encoder_outputs, *_split(activation, len(channels), num))
    activations = _split(decoder_activation or activation, num + 1, len(channels))
    decoder = _ConvDecoder(shape, channels, hidden_sizes, decoder_outputs, *activations)
    unflatten = lambda y: y.reshape(*y.shape[:-1], shape[-1], decoder_outputs)  # noqa: E731
    return Pair(_network(encoder), _network(decoder, after=unflatten))


Activations = tuple[Callable[[Array], Array], ...]


def _activations(names: str, num_layers: int) -> Activations:
    each = [name.strip() for name in names.split(",")]
    each = each * num_layers if len(each) == 1 else each
    if len(each) != num_layers:
        raise ValueError(f"activation {names!r} names {len(each)} layers; expected one name or {num_layers}.")
    unknown = [name for name in each if not callable(getattr(jax.nn, name, None))]
    if unknown:
        raise ValueError(f"Unknown activation {unknown[0]!r}. Choose a function of jax.nn, such as relu, elu or tanh.")
    return tuple(getattr(jax.nn, name) for name in each)


def _split(names: str, first: int, second: int) -> tuple[Activations, Activations]:
    every = _activations(names, first + second)
    return every[:first], every[first:]


class _MLP(nn.Module):
    hidden_sizes: tuple[int, ...]
    num_outputs: int
    activations: Activations

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> Array:
        x = _join(x, context)
        for size, activation in zip(self.hidden_sizes, self.activations, strict=True):
            x = activation(nn.Dense(size)(x))
        return nn.Dense(self.num_outputs, name="output")(x)


class _Kernel(nn.Module):
    """A 3x3 convolution, or its transpose to images of `output_size`, with a bias."""

    channels: int
    stride: int
    output_size: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, x.shape[-1], self.channels))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        if self.output_size is None:
            y = conv(x, kernel, self.stride)
        else:
            y = conv_transpose(x, kernel, self.stride, self.output_size)
        return y + bias.reshape(1, 1, 1, -1)


class _ConvEncoder(nn.Module):
    channels: tuple[int, ...]
    hidden_sizes: tuple[int, ...]
    num_outputs: int
    conv_activations: Activations
    dense_activations: Activations

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> Array:
        batch, x = x.shape[:-3], x.reshape(-1, *x.shape[-3:])
        for size, activation in zip(self.channels, self.conv_activations, strict=True):
            x = activation(_Kernel(size, 2)(x))
        features = x.reshape(*batch, prod(x.shape[1:]))
        return _MLP(self.hidden_sizes, self.num_outputs, self.dense_activations, name="dense")(features, context)


class _ConvDecoder(nn.Module):
    shape: tuple[int, ...]
    channels: tuple[int, ...]
    hidden_sizes: tuple[int, ...]
    num_outputs: int
    dense_activations: Activations
    conv_activations: Activations

    @nn.compact
    def __call__(self, z: Array, context: Array | None = None) -> Array:
        height, width, num_channels = self.shape
        sizes = [(height, width)]  # from the output down to the smallest image
        for _ in self.channels:
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        smallest = (*sizes[-1], self.channels[0])
        *hidden, last = self.dense_activations
        dense = _MLP(tuple(reversed(self.hidden_sizes)), prod(smallest), tuple(hidden), name="dense")
        x = last(dense(z, context)).reshape(-1, *smallest)
        for size, output_size, activation in zip(
            reversed(self.channels), reversed(sizes[:-1]), self.conv_activations, strict=True
        ):
            x = activation(_Kernel(size, 2, output_size)(x))
        x = _Kernel(num_channels * self.num_outputs, 1, (height, width), name="output")(x)
        return x.reshape(*z.shape[:-1], *x.shape[1:])


def _join(x: Array, context: Array | None) -> Array:
    if context is None:
        return x
    return jnp.concatenate([x, jnp.broadcast_to(context, (*x.shape[:-1], context.shape[-1])).astype(x.dtype)], -1)


def _network(
    module: nn.Module,
    before: Callable[[Array], Array] = lambda x: x,
    after: Callable[[Array], Array] = lambda y: y,
) -> Network:
    return Network(
        lambda key, x, context: module.init(key, before(x), context)["params"],
        lambda params, x, context: after(cast(Array, module.apply({"params": params}, before(x), context))),
    )
