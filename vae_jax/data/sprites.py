"""Draw images of one shape each, whose shape, size, angle and place are known: factors to disentangle."""

from __future__ import annotations

from itertools import product
from math import ceil, cos, floor, pi, sin

import numpy as np

from vae_jax.data.files import TooLargeError, check_memory, permutation
from vae_jax.data.splits import Dataset, Split, check_num, take
from vae_jax.errors import UserError

SHAPES = ("square", "ellipse", "heart")
FACTORS = ("shape", "scale", "angle", "x", "y")
LARGEST = 256  # pixels per side
_SUBPIXELS = 4  # per side of a pixel, of images with soft edges
_EDGE = 1e-9  # a point at this distance from the edge is inside, so that no rounding decides


def sprites(
    *,
    image_size: int = 32,
    num_shapes: int = 3,
    num_scales: int = 6,
    num_angles: int = 20,
    num_positions: int = 8,
    antialias: bool = False,
) -> Dataset:
    """White shapes on black, one image for each combination of the factors of dSprites.

    The factors are whole numbers from 0, in this order:
      shape: square, ellipse, heart. It is the label too;
      scale: from 0.5 to 1, where the radius of the circle around the shape is a quarter of the image;
      angle: turns of 2 pi / num_angles against the clock. A square looks the same after a quarter of a turn, and an
        ellipse after a half, so that some images are equal;
      x, y: the centre, from 1/4 to 3/4 of the image, rightwards and downwards.
    The options with num_ say how many values each factor takes; a factor with one value is not listed. dSprites itself
    (Matthey et al. 2017) has image_size=64, num_angles=40 and num_positions=32.

    x: [N, S, S, 1] with S = image_size, uint8. antialias: edges are grey, by the share of the pixel that is covered;
    else all values are 0 and 255. The test split is the last tenth of a fixed permutation. Raises UserError if there
    are fewer than 2 images or too many for the memory.
    """
    _check("image_size", image_size, 8, LARGEST)
    _check("num_shapes", num_shapes, 1, len(SHAPES))
    counts = (num_shapes, num_scales, num_angles, num_positions, num_positions)
    num = int(np.prod([float(count) for count in counts]))
    check_num(num, "sprites")
    try:
        check_memory(num * image_size**2, f"{num} images of {image_size}x{image_size} pixels take")
    except TooLargeError as error:
        raise UserError(f"sprites: {error}. Set smaller numbers with --config.dataset_options.") from None

    radii = np.linspace(1, 0.5, num_scales)[::-1] * image_size / 4
    centres = image_size * (np.linspace(0.25, 0.75, num_positions) if num_positions > 1 else np.array([0.5]))
    x = np.zeros((num_shapes, num_scales, num_angles, num_positions, num_positions, image_size, image_size), np.uint8)
    for shape, scale, angle in product(range(num_shapes), range(num_scales), range(num_angles)):
        _draw(x[shape, scale, angle], SHAPES[shape], radii[scale], 2 * pi * angle / num_angles, centres, antialias)
    factors = np.stack(np.unravel_index(np.arange(num), counts), -1).astype(np.int32)
    varied = [i for i, count in enumerate(counts) if count > 1]
    whole = Split(x.reshape(num, image_size, image_size, 1), factors[:, 0], factors=factors[:, varied])
    order, cut = permutation(num), num - max(1, num // 10)
    names = tuple(FACTORS[i] for i in varied)
    return Dataset("sprites", take(whole, order[:cut]), None, take(whole, order[cut:]), SHAPES, factors=names)


def _check(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise UserError(f"sprites: {name} is {value}; expected a whole number from {least} to {most}.")


def _draw(images: np.ndarray, shape: str, radius: float, angle: float, centres: np.ndarray, antialias: bool) -> None:
    """Draw a shape at all pairs of centres, into images [x, y, S, S] of zeros."""
    parts, size = _SUBPIXELS if antialias else 1, ceil(2 * radius) + 1
    firsts = [floor(centre - radius) for centre in centres]
    firsts = [min(first, images.shape[-1] - size) for first in firsts]
    points = (np.arange(size * parts) + 0.5) / parts
    away = np.stack([(points + first - centre) / radius for first, centre in zip(firsts, centres, strict=True)])
    for j, dy in enumerate(away):
        u = cos(angle) * away[:, None] - sin(angle) * dy[None, :, None]  # [x, size, size]
        v = -sin(angle) * away[:, None] - cos(angle) * dy[None, :, None]
        inside = _inside(shape, u, v).reshape(-1, size, parts, size, parts)
        grey = np.rint(255 * inside.mean((2, 4)))
        for i, first in enumerate(firsts):
            images[i, j, firsts[j] : firsts[j] + size, first : first + size] = grey[i]


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Which points are in a shape that the unit circle just holds. u, v: rightwards and upwards."""
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) <= 0.5**0.5 + _EDGE
    if shape == "ellipse":
        return u**2 + 4 * v**2 <= 1 + _EDGE
    u, v = 1.25 * u, 1.25 * v + 0.25  # the heart curve reaches from -1 to 1.25 upwards
    return (u**2 + v**2 - 1) ** 3 - u**2 * v**3 <= _EDGE
