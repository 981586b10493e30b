"""Draw what the page of the explorer shows: pictures and the map as PNG, the rows of a table as bars."""

import csv
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from vae_jax.config import Config
from vae_jax.data import inputs
from vae_jax.data.inputs import DataInfo
from vae_jax.data.splits import text_of
from vae_jax.show import pictures

MAX_BARS = 200  # columns whose values are drawn as bars; more are drawn as a strip


def has_bars(data: DataInfo) -> bool:
    return len(data.shape) == 1 and data.shape[0] <= MAX_BARS


def png(x: np.ndarray, data: DataInfo) -> bytes:
    """One example [*shape] as a PNG of its own size, in the colours of the other pictures."""
    from PIL import Image

    image = x.reshape(1, 1, -1, 1) if x.ndim == 1 else x[None]
    image = image if image.shape[-1] in (1, 3) else image.mean(-1, keepdims=True)
    file = io.BytesIO()
    Image.fromarray(pictures.grid(image, 1, pictures.range_of(data))[1:-1, 1:-1]).save(file, "PNG")
    return file.getvalue()


def row(x: np.ndarray, config: Config, data: DataInfo, digits: int = 6) -> dict[str, str]:
    """The values of one row [D] by the names of its columns, as a person writes them. A missing value is ''."""
    missing = np.isnan(x)
    whole = np.where(missing, 0, x)[None]
    columns = inputs.columns_of(whole, config, data) if data.columns else {f"x_{i}": a for i, a in enumerate(whole.T)}
    values = ((name, value[0]) for name, value in columns.items())
    texts = {name: f"{v:.{digits}g}" if isinstance(v, np.floating) else str(v) for name, v in values}
    return {name: "" if gone else text for (name, text), gone in zip(texts.items(), missing, strict=True)}


def to_csv(values: Mapping[str, str]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([values.keys(), values.values()])
    return file.getvalue()


def bars(rows: Mapping[str, np.ndarray | None], config: Config, data: DataInfo) -> str:
    """Markup of a bar and a value for each column and each row [D] by its name, within the range of the column."""
    present = {name: (x, row(x, config, data, 4)) for name, x in rows.items() if x is not None}
    low, high = (np.broadcast_to(end, data.shape) for end in pictures.range_of(data))
    lines = [f"<b></b>{''.join(f'<b>{escape(name)}</b>' for name in present)}"]
    for i, column in enumerate(next(iter(present.values()))[1]):
        cells = ""
        for x, values in present.values():
            share = 0 if np.isnan(x[i]) else np.clip((x[i] - low[i]) / max(high[i] - low[i], 1e-12), 0, 1)
            cells += f'<span class="bar" style="--share:{share:.4f}">{escape(values[column]) or "missing"}</span>'
        lines.append(f'<span class="name">{escape(column)}</span>{cells}')
    return f'<div class="bars" style="--rows:{len(present)}">{"".join(lines)}</div>'


def colours(label: np.ndarray | None, names: Sequence[str]) -> tuple[Any, list[tuple[str, str]]]:
    """The colours of the labels, [N, 4], and (colour, text) for each label, or for the ends of a scale of many."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    if label is None:
        return "#4c78a8", []
    different = np.unique(label).tolist()
    if label.max() < 10 and label.min() >= 0:
        return colormaps["tab10"](label), [
            (to_hex(colormaps["tab10"](value)), str(text_of(tuple(names), value))) for value in different
        ]
    scale = (label - label.min()) / max(np.ptp(label), 1)
    ends = [(to_hex(colormaps["viridis"](end)), value) for end, value in ((0.0, different[0]), (1.0, different[-1]))]
    return colormaps["viridis"](scale), [(colour, str(text_of(tuple(names), value))) for colour, value in ends]


def scatter(points: np.ndarray, low: np.ndarray, high: np.ndarray, colour: Any, size: int) -> bytes:
    """Points [N, 2] as a PNG of size x size without a background, which covers [low, high]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size / 100, size / 100))
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0, 1, 1))
    x, y = points.T
    axis.scatter(x, y, s=min(30, max(8, 6000 / len(points))), c=colour, alpha=0.8, linewidths=0)
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    axis.axis("off")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100, transparent=True)
    return file.getvalue()
