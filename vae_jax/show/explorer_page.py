"""The page of the explorer, and the server that gives it to the browsers of this machine alone."""

import secrets
from collections.abc import Callable
from html import escape
from pathlib import Path
from socket import socket
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from nicegui import ui
from starlette.middleware.trustedhost import TrustedHostMiddleware

from vae_jax.config import MAX_WHOLE
from vae_jax.show import drawn
from vae_jax.show.explorer import Explorer
from vae_jax.show.explorer_tab import CAPTIONS, Read, Tab, number

MOST_OPEN = 8  # sliders of a level that are not folded away
MAX_DROPPED = 64 << 20  # bytes
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"  # the browser asks nobody else for anything
_PRESSED = '(e) => { if (e.mouse_event_type != "pointermove" || e.buttons) emit(e) }'
_DROP = """document.addEventListener("dragover", e => e.preventDefault());
document.addEventListener("drop", e => {
  e.preventDefault();
  if (e.dataTransfer.files.length) getElement(ID).$refs.qRef.addFiles(e.dataTransfer.files); });"""


def serve(explorer: Explorer, read: Read, sock: socket, title: str, ready: Callable[[str], None]) -> None:
    """Serve the page until the program is stopped. ready(URL) is called first; the URL has a random token."""
    app, token = FastAPI(openapi_url=None), secrets.token_hex(16)

    @app.middleware("http")
    async def policy(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    for part in (ui.button, ui.toggle):
        part.default_props("no-caps unelevated dense padding='xs md'")
    for field in (ui.number, ui.select):
        field.default_props("dense")
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    ui.run_with(
        app,
        root=lambda: build(Tab(explorer, read), title),
        mount_path=f"/{token}",
        title=title,
        dark=None,
        tailwind=False,
        show_welcome_message=False,
    )
    ready(f"http://127.0.0.1:{sock.getsockname()[1]}/{token}/")
    uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)).run(sockets=[sock])


def build(tab: Tab, title: str) -> None:
    """Make the elements of the page and put them into `tab.parts`."""
    restored = tab.explorer.restored
    ui.on_exception(lambda error: tab.say(f"This failed: {type(error).__name__}: {error}"))
    ui.add_css(Path(__file__).with_name("explorer.css").read_text("utf-8"))
    ui.colors(primary="#3674b5")  # white text on it can be read
    ui.html(escape(title), tag="h1", sanitize=False)
    ui.label(f"A VAE of {restored.config.dataset}, step {restored.step:,}").classes("soft")
    with ui.element("div").classes("parts"):
        for name, fill in (("picture", _picture), ("sliders", _sliders), ("map", _map), ("start", _start)):
            with ui.element("div").classes(f"part {name}"):
                fill(tab)
    tab.draw_map()
    tab.mark()
    tab.show(*tab.explorer.look(tab.u, tab.context, tab.key))


def _picture(tab: Tab) -> None:
    data = tab.explorer.restored.data
    tab.parts.origin = ui.label("A draw from the prior, key 0").classes("soft")
    if drawn.has_bars(data):
        tab.parts.bars = ui.html("", sanitize=False)
    else:
        with ui.element("div").classes("pictures" if len(data.shape) > 1 else "strips"):
            for name, text in CAPTIONS.items():
                with ui.element("figure") as tab.parts.figures[name]:
                    tab.parts.images[name] = ui.element("img").classes(name).props(f'alt="{text}"')
                    ui.html(text, tag="figcaption", sanitize=False)


def _start(tab: Tab) -> None:
    data = tab.explorer.restored.data
    tab.parts.facts = ui.html("", sanitize=False).classes("facts soft")
    with ui.element("div").classes("line"):
        tab.parts.key_field = ui.number("key", value=0, min=0, max=MAX_WHOLE, precision=0, on_change=tab.sample)
        again = lambda: tab.parts.key_field.set_value((tab.key + 1) % MAX_WHOLE)  # noqa: E731
        ui.button("Sample again", on_click=again)
    with ui.element("div").classes("line"):
        last = len(tab.explorer.examples.x) - 1
        tab.parts.index_field = ui.number(f"example, 0 to {last}", value=0, min=0, max=last, precision=0)
        ui.button("Show", on_click=tab.take_example)
    if tab.classes:
        value = int(np.argmax(tab.context))
        tab.parts.choice = ui.select(dict(enumerate(tab.classes)), label="class", value=value, on_change=tab.choose)
    tab.parts.upload = ui.upload(
        label="Drop a picture here" if len(data.shape) > 1 else "Drop a table here; its first row is taken",
        auto_upload=True,
        max_file_size=MAX_DROPPED,
        on_upload=tab.take_file,
        on_rejected=lambda: tab.say(f"The file has more than {MAX_DROPPED >> 20} MB. Drop a smaller one."),
    )
    ui.run_javascript(_DROP.replace("ID", str(tab.parts.upload.id)))
    with ui.element("div").classes("line"):
        ui.button("Reset", on_click=lambda: tab.begin(tab.start))
        ui.button("Picture" if len(data.shape) > 1 else "Row", icon="download", on_click=tab.save_picture)
        ui.button("z", icon="download", on_click=tab.save_z)


def _sliders(tab: Tab) -> None:
    controls, config = tab.explorer.controls, tab.explorer.restored.config
    if tab.explorer.follow:
        by_z1_alone = config.hierarchy != "hvae" and not config.hierarchy_options.get("skip")  # x then depends on z1
        tab.parts.follows = ui.switch("The levels below a slider follow it, as E[z1 | z2]", value=by_z1_alone)
    for group in dict.fromkeys(control.group for control in controls):
        own = [i for i, control in enumerate(controls) if control.group == group]
        own.sort(key=lambda i: -controls[i].activity)
        ui.html(f"{escape(group)}, the most active first", tag="h2", sanitize=False)
        for i in own[:MOST_OPEN]:
            _add_slider(tab, i)
        if len(own) > MOST_OPEN:
            _fold(tab, group, own[MOST_OPEN:])


def _add_slider(tab: Tab, i: int) -> None:
    control = tab.explorer.controls[i]
    with ui.element("div").classes("control"):
        ui.label(control.name)
        slider = _slider(control.name, control.low, control.high, control.step, float(tab.u[i]))
        slider.on("update:model-value", lambda event: tab.slide(i, float(event.args)), throttle=0.02)
        tab.parts.sliders[i] = slider, ui.label(number(tab.u[i]))


def _fold(tab: Tab, group: str, rest: list[int]) -> None:
    """Fold sliders away, and make them when they are first asked for, since there may be thousands."""

    def opened() -> None:
        if rest[0] not in tab.parts.sliders:
            with panel:
                for i in rest:
                    _add_slider(tab, i)

    panel = ui.expansion(f"The other {len(rest)} of {group}", on_value_change=opened)


def _map(tab: Tab) -> None:
    explorer = tab.explorer
    if len(explorer.planes) > 1:
        ui.toggle(list(explorer.planes), value=tab.plane_name, on_change=tab.turn)
    tab.parts.map = ui.interactive_image(events=["pointerdown", "pointermove", "pointerup"], sanitize=False)
    tab.parts.map.classes("points").on("mouse", tab.touch, js_handler=_PRESSED)
    tab.parts.walk = _slider("walk", 0, 1, 0.01, 0)
    tab.parts.walk.on("update:model-value", tab.walk_by_hand, throttle=0.02)
    tab.parts.walk.set_visibility(False)
    tab.parts.axes = ui.label().classes("soft")
    label = None if explorer.label is None else explorer.label[explorer.shown]
    tab.parts.colours, meanings = drawn.colours(label, explorer.names)
    dots = (f'<span><i style="background:{dot}"></i>{escape(text)}</span>' for dot, text in meanings)
    ui.html("".join(dots), sanitize=False).classes("chips")


def _slider(name: str, low: float, high: float, step: float, value: float) -> Any:
    """A slider that moves at once, and not when the server has answered, which would throw quick moves back."""
    slider = ui.slider(min=low, max=high, step=step, value=value)
    slider.LOOPBACK = slider.props["loopback"] = False
    slider.props["aria-label"] = name
    return slider
