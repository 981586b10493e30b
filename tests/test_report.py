"""The report is one well-formed page that shows a run whole, loads nothing and takes no text for markup."""

import base64
import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from vae_jax.__main__ import main
from vae_jax.cli import console
from vae_jax.config import Config, to_json
from vae_jax.run import metrics, runs
from vae_jax.show.report import _curves

pytestmark = pytest.mark.robust

VOID = {"meta", "link", "img", "source"}
ALWAYS = ["Evaluation", "Learning curves", "Reconstructions", "Samples"]
CHARTS = {"Learning curves": 3, "Posterior means": 1, "KL by latent dimension": 1}
FEW = ("--num_samples=3", "--limit=40")


class Page(HTMLParser):
    """text: by the h2 that it stands below; images: by the same h2, the (tag, attributes) of each img and source."""

    def __init__(self, html):
        super().__init__()
        self.html, self.open, self.section = html, [], ""
        self.text, self.images, self.marked, self.attributes = {"": ""}, {"": []}, [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        assert len(attributes) == len(attrs)
        self.attributes += [(tag, *each) for each in attrs]
        if tag in ("img", "source"):
            self.images[self.section].append((tag, attributes))
        if tag == "tr":
            self.marked.append(attributes.get("class") == "marked")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.section = data
            self.text[data], self.images[data] = "", []
        elif self.open and self.open[-1] != "style":
            self.text[self.section] += data.strip() and f" {data.strip()}"

    @property
    def sections(self):
        return [name for name in self.text if name]


def report(vae, run_dir, out, *flags):
    """The page, after the checks that every page must pass."""
    assert vae("report", run_dir, "--out", out, *flags) == f"{out}\n"
    page = Page(out.read_text("ascii"))
    assert page.html.startswith("<!doctype html>")
    assert not re.search("https?:|<script|javascript:|@import|url\\(", page.html, re.IGNORECASE)
    assert {tag for tag, *_ in page.attributes if tag in ("base", "iframe", "object", "embed", "form", "svg")} == set()
    assert all(value.startswith("data:") for _, name, value in page.attributes if name in ("src", "srcset", "href"))
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    for tag, attributes in (image for images in page.images.values() for image in images):
        if tag == "img":
            assert len(attributes["alt"]) > 10
        shown(attributes["src" if tag == "img" else "srcset"])
    for name, number in CHARTS.items():
        assert len(page.images.get(name, [])) in (0, 2 * number, 4 * number)  # in light and dark; of one or two latents
    return page


def shown(uri):
    """The size of a PNG or the texts of an SVG, which must be one, and the SVG load nothing either."""
    kind, data = re.fullmatch("data:([a-z/+]+);base64,(.+)", uri).groups()
    data = base64.b64decode(data, validate=True)
    if kind == "image/png":
        with Image.open(io.BytesIO(data)) as image:
            assert np.asarray(image).std() > 0
            return image.size
    assert kind == "image/svg+xml"
    root = ElementTree.fromstring(data)
    assert root.tag.endswith("}svg") and len(list(root.iter())) > 20
    for element in root.iter():
        assert element.tag.split("}")[1] not in ("script", "foreignObject")
        for name, value in element.attrib.items():
            assert not name.endswith("href") or value.startswith(("#", "data:image/png"))
    return data


def figures(vae, run_dir, *flags):
    return json.loads(vae("evaluate", run_dir, *flags))


@pytest.fixture(scope="module")
def hierarchy_run(train, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "hierarchy"
    options = '{"latent_dim": 3, "hidden_sizes": [8]}'
    train(run_dir, hierarchy="markov", hierarchy_options=options, conditional="true", num_epochs=1)
    return run_dir


def test_two_dimensions(vae, digits_run, tmp_path):
    page = report(vae, digits_run, tmp_path / "a.html", "--num_samples=25")
    latent = ["Manifold", "Posterior means", "KL by latent dimension"]
    assert page.sections == ["Notes", *ALWAYS, *latent, "Configuration"]
    assert "digits" in page.text[""] and "step 90, epoch 6 of 6" in page.text[""]
    for name, number in json.loads((digits_run / "run.json").read_text())["versions"].items():
        assert f"{name} {number}" in page.text[""]
    assert "z_1 and z_2 themselves" in page.text["Posterior means"]

    result, text = figures(vae, digits_run, "--num_samples=25"), page.text["Evaluation"]
    for name in ("nll", "elbo"):
        assert f"{name.upper()} {result[name]:.2f} ± {result[f'{name}_se']:.2f}" in text
    assert f"KL {result['kl']:.2f}" in text and f"Active units {result['active_units']} of 2" in text
    for words in ("all 297 examples of the test split of digits (not", "K = 25 ", "seed 0"):
        assert words in text
    assert page.text["Notes"] == f" {' '.join(result['notes'])}" and page.html.count("Bernoulli of grey") == 1
    for name, value in result.items():
        assert not isinstance(value, float) or f" {name} {value:.6g}" in text

    train, test = metrics.read(digits_run)[-2:]
    assert (
        f"loss by epoch, at the end train {train['loss']:.4g}, test {test['loss']:.4g}" in page.text["Learning curves"]
    )
    images = page.images["Learning curves"]
    light, dark = ([shown(a[name]) for _, a in images if name in a] for name in ("src", "srcset"))
    assert len(light) == 3 and all(a != b for a, b in zip(light, dark, strict=True))


def test_configuration_is_whole_and_marked_where_it_differs(vae, digits_run, tmp_path):
    page = report(vae, digits_run, tmp_path / "a.html", *FEW)
    rows = re.findall("<tr(.*?)><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", page.html)
    config, defaults = to_json(runs.read_run(digits_run)[0]), to_json(Config())
    assert [name for _, name, *_ in rows] == list(config)
    differ = {name for name in config if config[name] != defaults[name]}
    assert {name for kind, name, *_ in rows if "marked" in kind} == differ and "latent_dim" in differ
    assert {name for *_, name, _, default in rows if default} == differ
    assert ("latent_dim", "2", "20") in [row[1:] for row in rows]


def test_default_place_and_the_same_bytes_again(vae, vectors_run, tmp_path):
    """A moved run without its pictures is all it takes; nothing else there changes. Feature vectors without labels."""
    run_dir = shutil.copytree(vectors_run, tmp_path / "moved")
    for path in run_dir.glob("*.png"):
        path.unlink()
    before = {path.name for path in run_dir.iterdir()}
    assert vae("report", run_dir, *FEW) == f"{run_dir / 'report.html'}\n"
    assert {path.name for path in run_dir.iterdir()} == before | {"report.html"}
    page = report(vae, run_dir, tmp_path / "b.html", *FEW)
    assert page.html == (run_dir / "report.html").read_text()

    # q with a full covariance has no KL by dimension. After two epochs, q(z) is far from p(z).
    assert page.sections == ["Notes", *ALWAYS, "Traversals", "Posterior means", "Configuration"]
    assert "by variance of the posterior mean: z_" in page.text["Traversals"]
    assert "principal components of the 3 dimensions" in page.text["Posterior means"]
    assert "label" not in page.text["Posterior means"]
    assert "the first 40 examples" in page.text["Evaluation"] and "of grey" not in page.html


@pytest.mark.slow
def test_conditional_vae_on_its_validation_split(vae, conditional_run, tmp_path):
    page = report(vae, conditional_run, tmp_path / "a.html", "--split=validation", "--num_samples=3", "--seed=4")
    assert page.sections == [*ALWAYS, "Manifold", "Posterior means", "KL by latent dimension", "Configuration"]
    assert "all classes in turn" in page.text["Samples"] and "of class 0" in page.text["Manifold"]
    for words in ("all 100 examples of the validation split", "binarised once with seed 0, static", "seed 4", "label)"):
        assert words in page.text["Evaluation"]


@pytest.mark.slow
def test_hierarchy_shows_each_of_its_latents(vae, hierarchy_run, tmp_path):
    page = report(vae, hierarchy_run, tmp_path / "a.html", *FEW)
    assert page.sections == ["Notes", *ALWAYS, "Traversals", "Posterior means", "Configuration"]
    assert "of 5" in page.text["Evaluation"]
    assert set(re.findall(r"z\d_\d", page.text["Traversals"])) == {"z1_1", "z1_2", "z2_1", "z2_2", "z2_3"}
    assert "z1_1 and z1_2 themselves" in page.text["Posterior means"]
    assert "principal components of the 3 dimensions of z2" in page.text["Posterior means"]


@pytest.mark.slow
def test_more_dimensions_than_rows(train, vae, tmp_path):
    train(tmp_path / "run", latent_dim=14, num_epochs=1)
    page = report(vae, tmp_path / "run", tmp_path / "a.html", *FEW)
    kl = figures(vae, tmp_path / "run", *FEW)["kl_by_dimension"]
    names = [f"z_{i + 1}" for i in np.argsort(-np.float64(kl))[:12]]
    assert f"by KL: {', '.join(names)}." in page.text["Traversals"]
    assert "KL by latent dimension" in page.sections


HOSTILE = """"><img src=x onerror='alert(1)'><script>alert(1)&amp;"""


def test_hostile_names_stay_text_streamed_in_one_dimension(train, vae, tmp_path):
    data = tmp_path / f"{HOSTILE}.npy"
    np.save(data, np.random.default_rng(0).random((80, 5, 5, 1)))
    run_dir = tmp_path / f"{HOSTILE} run"
    train(run_dir, dataset=data, stream="true", latent_dim=1, batch_size=10)
    page = report(vae, run_dir, tmp_path / "a.html", "--num_samples=1")
    assert page.text[""].count(f"{HOSTILE} run") == 2  # in the title and the heading
    assert f"A VAE of {data}" in page.text[""] and str(data) in page.text["Configuration"]
    assert "z_1 against the KL" in page.text["Posterior means"]


def test_figures_of_other_data_are_said_to_be(vae, digits_run, tmp_path):
    data = tmp_path / "other.npy"
    np.save(data, np.random.default_rng(0).integers(0, 2, (50, 8, 8, 1)).astype(np.float32))
    page = report(vae, digits_run, tmp_path / "a.html", "--data", data, *FEW)
    assert f"40 examples of {data} (" in page.text["Evaluation"]
    assert "A VAE of digits" in page.text[""] and "of grey" not in page.html


def test_run_that_was_never_evaluated_and_one_example(vae, digits_run, tmp_path):
    run_dir = shutil.copytree(digits_run, tmp_path / "run")
    (run_dir / "metrics.jsonl").unlink()
    page = report(vae, run_dir, tmp_path / "a.html", "--num_samples=1", "--limit=1")
    assert "not evaluated" in page.text["Learning curves"]
    assert "±" not in page.text["Evaluation"].split("Nats")[0]


def test_a_place_that_cannot_be_written_is_one_line(digits_run, tmp_path, capsys):
    out = tmp_path / "nowhere" / "a.html"
    assert console.run(main, ["report", str(digits_run), *FEW, "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {out} cannot be written")


def opened(page, tmp_path):
    """What Chromium says on the console of a page, and the addresses that the page asks it for."""
    log = tmp_path / "log.json"
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --disable-dev-shm-usage --enable-logging=stderr --v=0"
    command = ["chromium", *flags.split(), "--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={log}"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'shot.png'}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "shot.png") as image:
        assert np.asarray(image).std() > 0
    asked = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    # What no page asks for, Chromium asks by itself.
    urls = {a["url"] for a in asked if "url" in a and a.get("initiator", "not an origin") != "not an origin"}
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line], urls


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium on the PATH")
def test_a_browser_has_nothing_to_say_and_nothing_to_load(vae, digits_run, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text("<img src=http://example.invalid/a.png><script>console.error('seen')</script>")
    lines, urls = opened(bad, tmp_path)
    assert len(lines) == 1 and "seen" in lines[0] and urls == {"http://example.invalid/a.png"}

    report(vae, digits_run, tmp_path / "a.html", *FEW)
    assert opened(tmp_path / "a.html", tmp_path) == ([], set())


def test_curves_of_an_epoch_without_a_loss(tmp_path):
    """One whose every update was skipped."""
    fine = {"split": "train", "epoch": 1, "loss": 2.5, "log_likelihood": -2.0, "kl": 0.5}
    drawn = _curves(tmp_path, [fine, fine | {"split": "test", "loss": None}])
    assert "loss by epoch, at the end train 2.5" in drawn
    assert "None" not in drawn
