"""Draw grids of images with Pillow, as PNG, and curves and other charts with matplotlib, as PNG or SVG."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vae_jax.data.files import write_whole
from vae_jax.data.inputs import DataInfo
from vae_jax.run.metrics import NATS, names_in

MAX_PIXELS = 2**27  # in one picture: few programs can open a larger one
LINE = round(0.35 * 255)  # the grey between images
STRIPS = 120  # pixels, about, of the strips of vectors in a row of a picture, which is then large enough to see
DEVIATIONS = 2  # from the mean of a column, black to white

Range = tuple[float, float] | tuple[np.ndarray, np.ndarray]  # what is drawn black and white, for each column if [D]


def range_of(data: DataInfo) -> Range:
    """What is drawn black and white: the range of the data.

    Vectors whose columns have a known mean and standard deviation have a range for each column, within
    DEVIATIONS standard deviations of its mean: else a column of large numbers would leave nothing to see of the others.
    """
    spread = data.spread or data.scaling  # `scaling` leaves out the columns that `standardize` does not change
    if len(data.shape) > 1 or spread is None:
        return data.range
    mean, std = (np.array(part, np.float32) for part in spread)
    return mean - DEVIATIONS * std, mean + DEVIATIONS * std


def save_grid(path: Path, images: Any, columns: int, value_range: Range = (0.0, 1.0)) -> None:
    """Write images [N, *shape] as one PNG, `columns` images per row. `value_range` becomes black to white.

    shape: [H, W, C], where the channels are averaged if there are not 1 or 3. Feature vectors [D] are drawn as strips.
    """
    from PIL import Image

    pixels = grid(_as_images(np.asarray(images, np.float32)), columns, value_range)
    scale = max(1, 480 // max(pixels.shape[:2]))  # without this, small images would be as small as a stamp
    image = Image.fromarray(pixels.repeat(scale, 0).repeat(scale, 1))
    write_whole(path, lambda temporary: image.save(temporary, format="PNG"))


def area(shape: tuple[int, ...]) -> int:
    """How many pixels an example of this shape takes in a grid, with the line around it."""
    height, width = shape[:2] if len(shape) > 1 else (1, *shape)
    return (height + 1) * (width + 1)


def grid(images: np.ndarray, columns: int, value_range: Range = (0.0, 1.0)) -> np.ndarray:
    """Arrange images [N, H, W, C] as one uint8 picture, [H', W'] or [H', W', 3], with a grey pixel between them.

    NaN, a value that is missing, has the same grey.
    """
    low, high = (np.asarray(end, np.float32).reshape(-1, 1) for end in value_range)  # of each column of an image
    num, height, width, channels = images.shape
    rows = -(-num // columns)
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), LINE, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        scaled = np.clip((image - low) / np.maximum(high - low, 1e-12), 0, 1) * 255
        canvas[top : top + height, left : left + width] = np.rint(np.where(np.isnan(scaled), LINE, scaled))
    return canvas[..., 0] if channels == 1 else canvas


def columns_for(shape: tuple[int, ...], most: int) -> int:
    """How many examples of a shape fit side by side, at most `most`: fewer of long vectors."""
    return most if len(shape) > 1 else max(1, min(most, STRIPS // (shape[0] + 1)))


def save_curves(path: Path, records: list[dict[str, Any]], names: Sequence[str] = ()) -> None:
    """Draw the metrics `names` of metrics.jsonl by epoch, one curve per split; by default all, or else the loss."""
    names = names or names_in(records[-1] if records else {}) or ("loss",)
    figure, axes = _figure(len(names), (4 * len(names), 3.6))
    records = [r for r in records if all(isinstance(r.get(name), int | float) for name in ("epoch", *names))]
    records = [r for r in records if isinstance(r.get("split"), str)]
    for axis, name in zip(axes, names, strict=True):
        for split in sorted({record["split"] for record in records}):
            points = [(record["epoch"], record[name]) for record in records if record["split"] == split]
            axis.plot(*zip(*points, strict=True), label=split, marker="." if len(points) < 40 else None)
        axis.set_title(f"{name} (nats)" if name in ("loss", *NATS) else name)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
    if records:
        axes[0].legend()
    _save_figure(path, figure)


def save_scatter(
    path: Path,
    mean: np.ndarray,
    label: np.ndarray | None,
    names: tuple[str, ...] = ("z_1", "z_2"),
    classes: tuple[str, ...] = (),
) -> None:
    """Draw the first two dimensions of the posterior means [N, L], coloured by label. classes: names of the labels."""
    figure, (axis,) = _figure(1, (6.4, 5.6))
    few = label is not None and label.max() < 10
    scale = {"cmap": "tab10", "vmin": -0.5, "vmax": 9.5} if few else {"cmap": "viridis"}
    size = min(20, max(4, 6000 / len(mean)))
    color = {} if label is None else {"c": label, **scale}
    points = axis.scatter(mean[:, 0], mean[:, 1], s=size, alpha=0.6, linewidths=0, rasterized=True, **color)
    if label is not None:
        bar = figure.colorbar(points, ax=axis, label="label", ticks=range(10) if few else None)
        bar.solids.set_alpha(1)
        if few and classes:
            bar.set_ticks(range(len(classes[:10])), labels=[name[:20] for name in classes[:10]])
            bar.ax.set_ylim(-0.5, len(classes[:10]) - 0.5)
    axis.set_xlabel(names[0])
    axis.set_ylabel(names[1])
    axis.set_aspect("equal")
    _save_figure(path, figure)


def save_bars(path: Path, values: np.ndarray) -> None:
    """Draw one bar for each latent dimension, the largest first. values: KL in nats, [L]."""
    order = np.argsort(-values, kind="stable")
    figure, (axis,) = _figure(1, (min(6.4, 2.4 + 0.25 * len(values)), 2.8))
    axis.bar(range(len(values)), values[order], color="C0")
    step = -(-len(values) // 25)
    axis.set_xticks(range(0, len(values), step), [f"z_{i + 1}" for i in order[::step]], rotation=90)
    axis.set_ylabel("KL (nats)")
    _save_figure(path, figure)


def save_matrix(path: Path, values: np.ndarray, rows: Sequence[str], label: str) -> None:
    """Draw numbers [R, L] as cells from 0 (white) to 1, one column per latent. Numbers below 0 count as 0."""
    num_rows, num_columns = values.shape
    figure, (axis,) = _figure(1, (min(24, 4 + 0.45 * num_columns), min(24, 1.6 + 0.4 * num_rows)))
    cells = axis.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    step = -(-num_columns // 50)
    axis.set_xticks(range(0, num_columns, step), [f"z_{i + 1}" for i in range(0, num_columns, step)], rotation=90)
    axis.set_yticks(range(num_rows), [row[:40] for row in rows])
    if num_columns <= 20 and num_rows <= 20:
        for (i, j), value in np.ndenumerate(values):
            color = "white" if value > 0.6 else "black"
            axis.text(j, i, f"{max(0.0, value):.2f}", ha="center", va="center", size=8, color=color)
    figure.colorbar(cells, ax=axis, label=label)
    _save_figure(path, figure)


@contextmanager
def transparent(color: str) -> Iterator[None]:
    """Within the block, charts have no background, text and axes have this colour, and SVG files are reproducible."""
    import matplotlib

    names = ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = {"savefig.transparent": True, "legend.framealpha": 0.0, "svg.hashsalt": "vae_jax"}
    settings |= dict.fromkeys(names, color)
    with matplotlib.rc_context(settings):
        yield


def _as_images(x: np.ndarray) -> np.ndarray:
    if x.ndim == 2:
        x = x[:, None, :, None]
    return x if x.shape[-1] in (1, 3) else x.mean(-1, keepdims=True)


def _figure(columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _save_figure(path: Path, figure: Any) -> None:
    """Write an SVG if the suffix is .svg, else a PNG. In an SVG, `dpi` concerns only the points of a scatter plot."""
    if path.suffix == ".svg":
        write_whole(path, lambda temporary: figure.savefig(temporary, format="svg", dpi=130, metadata={"Date": None}))
    else:
        write_whole(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
