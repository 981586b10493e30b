"""Make an HTML page that contains its pictures, runs no script and loads no other file.

Only this module writes markup; its functions escape the text that they are given, so any text is safe.
"""

import base64
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

COLOURS = {"light": "#1c1e21", "dark": "#e4e6ea"}  # of the text in a chart, as in the text around it

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5d636b; --line: #d9dce0; --page: #fff; --card: #f4f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --soft: #9aa1ab; --line: #3a3f46; --page: #16181b; --card: #212429; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.8rem; line-height: 1.2; }
h2 { margin: 2.2rem 0 .7rem; font-size: 1.2rem; border-bottom: 1px solid var(--line); }
p, figure { margin: .3rem 0; }
p, figcaption, dt, small { color: var(--soft); font-size: .875rem; max-width: 46rem; }
figcaption { margin-top: .4rem; }
img { display: block; max-width: 100%; height: auto; }
.pixels { image-rendering: pixelated; }
.row { display: grid; gap: .6rem 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
dl { display: grid; gap: .6rem; margin: 1rem 0; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); }
dl div { padding: .5rem .8rem; background: var(--card); border-radius: .5rem; }
dd { margin: 0; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; margin: .7rem 0 .3rem; font-size: .875rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td { min-width: 4.5rem; }
.marked td:not(:last-child) { font-weight: 700; }
"""


def page(title: str, lines: Iterable[str], sections: Mapping[str, Sequence[str]]) -> str:
    """Make the page, in ASCII. lines: text below the title. sections: markup by title; empty sections are left out."""
    blocks = {escape(name): "\n".join(parts) for name, parts in sections.items() if any(parts)}
    body = "\n".join(f"<section>\n<h2>{name}</h2>\n{markup}\n</section>" for name, markup in blocks.items())
    html = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{"".join(text(line) for line in lines)}
</header>
<main>
{body}
</main>
</body>
</html>
"""
    return html.encode("ascii", "xmlcharrefreplace").decode()


def text(line: str) -> str:
    return f"<p>{escape(line)}</p>\n"


def row(parts: Iterable[str]) -> str:
    """Put parts side by side where there is room."""
    return f'<div class="row">\n{"".join(parts)}</div>'


def cards(values: Mapping[str, tuple[str, str]]) -> str:
    """Make boxes for the main figures. values: by name, a figure and the small text beside it."""
    boxes = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)} <small>{escape(small)}</small></dd></div>\n"
        for name, (value, small) in values.items()
    )
    return f"<dl>\n{''.join(boxes)}</dl>"


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = (), marked: Collection[int] = ()) -> str:
    """Make a table of text. In each row whose index is in `marked`, all cells except the last are bold."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = []
    for i, cells in enumerate(rows):
        kind = ' class="marked"' if i in marked else ""
        lines.append(f"<tr{kind}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>\n")
    return f"<table>\n{f'<thead><tr>{top}</tr></thead>' if head else ''}<tbody>\n{''.join(lines)}</tbody></table>"


def folded(name: str, markup: str) -> str:
    return f"<details>\n<summary>{escape(name)}</summary>\n{markup}\n</details>"


def pixels(path: Path, caption: str) -> str:
    """Show a PNG. A small picture is enlarged without blur."""
    from PIL import Image

    with Image.open(path) as image:
        width = image.width * max(1, 720 // image.width)  # each pixel is enlarged to a whole number of pixels
    return _figure(f'<img class="pixels" width="{width}" src="{_data(path)}" alt="{escape(caption)}">', caption)


def chart(paths: Mapping[str, Path], caption: str) -> str:
    """Show a chart that was drawn as an SVG in each of `COLOURS`. The reader's browser picks one SVG."""
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{_data(paths["dark"])}">'
    light = f'<img src="{_data(paths["light"])}" alt="{escape(caption)}">'
    return _figure(f"<picture>{source}{light}</picture>", caption)


def _figure(markup: str, caption: str) -> str:
    return f"<figure>\n{markup}\n<figcaption>{escape(caption)}</figcaption>\n</figure>\n"


def _data(path: Path) -> str:
    kind = {".png": "image/png", ".svg": "image/svg+xml"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
