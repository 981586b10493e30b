"""What happens in one tab of the browser: the latent moves, and its picture follows."""

import asyncio
import base64
import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from nicegui import run, ui

from vae_jax.config import MAX_WHOLE
from vae_jax.core import Examples
from vae_jax.data.splits import text_of
from vae_jax.errors import UserError
from vae_jax.show import drawn
from vae_jax.show.explorer import MAP, Explorer, Plane, from_pixel, snapped, to_pixel

Read = Callable[[Path, str | None], tuple[Examples, str]]  # a dropped file, the class chosen -> one example, a remark

STEPS = 25  # pictures on the way between two points of the map
CLICK = 6  # pixels that the pointer may move in a click
CAPTIONS = {"example": "example", "mean": "E[x | z]", "draw": "x ~ p(x | z)"}


class Tab:
    """What one tab of a browser shows: its latent, its class and its start."""

    def __init__(self, explorer: Explorer, read: Read):
        data = explorer.restored.data
        self.explorer, self.read = explorer, read
        self.classes = [str(text_of(data.names, label)) for label in data.classes]
        context = explorer.examples.context
        self.context: Any = None if context is None else context[:1]  # of the class that is chosen
        self.one: Examples | None = None  # the example that the latent started from, if it did
        self.key = 0
        self.u = self.start = np.asarray(explorer.draw(0), np.float64)
        self.plane_name = next(iter(explorer.planes))
        self.pressed: tuple[Any, np.ndarray] | None = None  # where a drag on the map began: pixel and u
        self.ends: tuple[np.ndarray, np.ndarray] | None = None  # of the line on the map
        self.walks = 0  # a walk goes on as long as no other one, nor anything else, has begun
        self.is_decoding = self.is_stale = False
        self.parts = SimpleNamespace(sliders={}, images={}, figures={})  # of the page, from `explorer_page.build`

    @property
    def plane(self) -> Plane:
        return self.explorer.planes[self.plane_name]

    # The latent and its picture

    async def refresh(self) -> None:
        """Decode the latent. While that takes place, moves of sliders wait, and only the last one is decoded."""
        self.is_stale = True
        if self.is_decoding:
            return
        self.is_decoding = True
        try:
            while self.is_stale:
                self.is_stale = False
                looked = await run.io_bound(self.explorer.look, self.u, self.context, self.key)
                if looked is not None:  # else the server is stopping
                    self.mark()
                    self.show(*looked)
                    for i, (_, text) in self.parts.sliders.items():
                        text.set_text(number(self.u[i]))
        finally:
            self.is_decoding = False

    def show(self, mean: np.ndarray, x: np.ndarray) -> None:
        config, data, *_ = self.explorer.restored
        self.mean = mean
        shown = {"example": None if self.one is None else np.asarray(self.one.x[0]), "mean": mean, "draw": x}
        if drawn.has_bars(data):
            self.parts.bars.set_content(
                drawn.bars({CAPTIONS[name]: image for name, image in shown.items()}, config, data)
            )
            return
        for name, image in shown.items():
            self.parts.figures[name].set_visibility(image is not None)
            if image is not None:
                self.parts.images[name].props["src"] = _url(drawn.png(image, data))
                self.parts.images[name].update()

    async def place(self, u: np.ndarray, held: int | None = None) -> None:
        """Make u the latent, and move the sliders there, but for the one that a person holds."""
        self.u = np.asarray(u, np.float64)
        for i, (slider, _) in self.parts.sliders.items():
            value, control = float(self.u[i]), self.explorer.controls[i]
            if i != held:
                for name, end in (("min", min(value, control.low)), ("max", max(value, control.high))):
                    if slider.props[name] != end:
                        slider.props[name] = end
                slider.set_value(value)
        await self.refresh()

    async def begin(self, u: np.ndarray) -> None:
        self.start, self.ends = u, None
        self.walks += 1
        self.parts.walk.set_visibility(False)
        await self.place(u)

    async def slide(self, i: int, value: float) -> None:
        self.walks += 1
        self.u = self.u.copy()
        self.u[i] = value
        controls, follow = self.explorer.controls, self.explorer.follow
        if follow and self.parts.follows.value and controls[i].group != controls[0].group:
            await self.place(follow(self.u, controls[i].group), held=i)
        else:
            await self.refresh()

    # Where the latent starts

    async def sample(self) -> None:
        self.key = int(np.clip(self.parts.key_field.value or 0, 0, MAX_WHOLE))
        self.parts.key_field.set_value(self.key)
        self.one = None
        self.parts.facts.set_content("")
        self.parts.origin.set_text(f"A draw from the prior, key {self.key}")
        await self.begin(self.explorer.draw(self.key))

    async def take(self, one: Examples, text: str) -> None:
        self.one = one
        self.parts.origin.set_text(text)
        self.parts.facts.set_content("The figures of the example are being computed.")
        if one.context is not None:
            self.context = one.context
            if self.classes:
                self.parts.choice.set_value(int(np.argmax(one.context[0])))
        await self.begin(self.explorer.encode(one)[0])
        found = await run.io_bound(self.explorer.figures, one)
        if found is not None and self.one is one:
            lines = (f"<dt>{escape(name)}</dt><dd>{value:.2f}</dd>" for name, value in found.items())
            self.parts.facts.set_content(f"<dl>{''.join(lines)}</dl><p>in nats, of the example</p>")

    async def take_example(self) -> None:
        explorer = self.explorer
        i = int(np.clip(self.parts.index_field.value or 0, 0, len(explorer.examples.x) - 1))
        self.parts.index_field.set_value(i)
        label = None if explorer.label is None else text_of(explorer.names, explorer.label[i].item())
        text = f"Example {i}" + ("" if label is None else f", label {label}")
        await self.take(jax.tree.map(lambda a: a[i : i + 1], explorer.examples), text)

    async def take_file(self, event: Any) -> None:
        self.parts.upload.reset()
        name = Path(event.file.name).name
        label = self.classes[self.parts.choice.value] if self.classes else None
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"dropped{''.join(Path(name).suffixes[-2:])}"
            path.write_bytes(await event.file.read())
            try:
                read = await run.io_bound(self.read, path, label)
            except UserError as error:
                self.say(f"{error.message.replace(str(path), name)} Drop another file.")
                return
        if read is not None:
            one, remark = read
            await self.take(one, name + remark)

    async def choose(self, event: Any) -> None:
        self.context = np.eye(len(self.classes), dtype=np.float32)[[event.value]]
        await self.refresh()

    # The map

    def draw_map(self) -> None:
        plane = self.plane
        self.parts.map.set_source(_url(drawn.scatter(plane.points, plane.low, plane.high, self.parts.colours, MAP)))
        axes = ", ".join(
            f"{axis} {way}" for axis, way in zip(plane.axes, ("rightwards", "upwards"), strict=True) if axis
        )
        self.parts.axes.set_text(f"{axes}. A click decodes a point; a drag walks along a line.")

    def mark(self) -> None:
        shapes = []
        if self.ends is not None:
            (x1, y1), (x2, y2) = (to_pixel(self.plane, end) for end in self.ends)
            shapes.append(f'<path d="M{x1:.1f},{y1:.1f} L{x2:.1f},{y2:.1f}" ')
        x, y = to_pixel(self.plane, self.u)
        shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" ')
        self.parts.map.set_content("".join(f'{shape} class="halo"/>{shape} class="mark"/>' for shape in shapes))

    async def turn(self, event: Any) -> None:
        self.plane_name, self.ends = event.value, None
        self.draw_map()
        self.mark()

    async def touch(self, event: Any) -> None:
        kind, pixel = event.args["mouse_event_type"], (event.args["image_x"], event.args["image_y"])
        here = from_pixel(self.plane, self.u, pixel, self.explorer.controls)
        if kind == "pointerdown":
            self.walks += 1
            self.pressed, self.ends = (pixel, here), None
            self.parts.walk.set_visibility(False)
            await self.place(here)
        elif self.pressed is not None:
            if np.hypot(*np.subtract(pixel, self.pressed[0])) > CLICK:
                self.ends = self.pressed[1], here
                self.mark()
            if kind == "pointerup":
                self.pressed = None
                await self.walk_along()

    async def walk_along(self) -> None:
        if self.ends is None:
            return
        self.parts.walk.set_visibility(True)
        self.walks += 1
        mine = self.walks
        for t in np.linspace(0, 1, STEPS):
            if self.walks == mine:
                self.parts.walk.set_value(float(t))
                await self.step_to(float(t))
                await asyncio.sleep(0.03)

    async def walk_by_hand(self, event: Any) -> None:
        self.walks += 1
        await self.step_to(float(event.args))

    async def step_to(self, t: float) -> None:
        if self.ends is not None:
            start, end = self.ends
            await self.place(snapped((1 - t) * start + t * end, self.explorer.controls))

    # Downloads and messages

    def save_picture(self) -> None:
        config, data, *_ = self.explorer.restored
        if len(data.shape) > 1:
            ui.download.content(drawn.png(self.mean, data), "x.png")
        else:
            ui.download.content(drawn.to_csv(drawn.row(self.mean, config, data)), "x.csv")

    def save_z(self) -> None:
        context = {} if self.context is None else {"context": np.asarray(self.context)[0].tolist()}
        ui.download.content(json.dumps({"z": self.explorer.latent(self.u), "key": self.key, **context}), "z.json")

    def say(self, message: str) -> None:
        ui.notify(message[:500], type="negative", timeout=10_000, actions=[{"label": "OK", "color": "white"}])


def number(value: float) -> str:
    return f"{value:z.2f}"  # z: not -0.00


def _url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
