"""The explorer shows what `generate` and `evaluate` give, also in the browser, which asks no other machine."""

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import jax
import numpy as np
import pytest
from conftest import one_line
from helpers import pca_data, pca_log_px, pca_params, pca_vae
from PIL import Image
from sklearn.decomposition import PCA

from vae_jax import generate
from vae_jax.__main__ import main
from vae_jax.cli import console, examples, explore
from vae_jax.config import Config
from vae_jax.core import Examples, condition
from vae_jax.data.inputs import DataInfo
from vae_jax.errors import UserError
from vae_jax.run import checkpoints
from vae_jax.run.checkpoints import Restored
from vae_jax.show import drawn, explorer

pytestmark = [pytest.mark.robust, pytest.mark.usefixtures("no_pictures")]


def make(run_dir, **options):
    restored = checkpoints.load(run_dir, "latest")
    chosen = examples.load(console_options(), restored)
    return explorer.make(restored, *chosen[:3], **{"num_samples": 2, **options})


def console_options():
    return explore.Namespace(data=None, data_dir=None, split=None)


@pytest.fixture(scope="module")
def digits(digits_run):
    return make(digits_run)


def first(found):
    return jax.tree.map(lambda a: a[:1], found.examples)


def test_a_draw_is_that_of_generate(digits, conditional_run):
    for found in (digits, make(conditional_run)):
        vae, params = found.restored.vae, found.restored.params
        context = first(found).context
        own = condition(vae, context)
        draw = jax.jit(lambda params, key, own=own: generate.sample(params, key, own, 1))
        expected = draw(params, jax.random.key(5))
        u = found.draw(5)
        mean, x = found.look(u, context, 5)
        np.testing.assert_allclose(u, expected.z[0], rtol=1e-6)
        np.testing.assert_allclose(mean, expected.mean[0], rtol=1e-5, atol=1e-6)
        assert np.mean(x != expected.x[0]) < 0.02  # a uniform number may fall between two roundings of the mean


def test_moved_sliders_trace_nothing(digits):
    calls = []

    def decode(*args):
        calls.append(1)
        return digits.restored.vae.decode(*args)

    restored = digits.restored._replace(vae=digits.restored.vae._replace(decode=decode))
    found = explorer.make(restored, digits.examples, digits.label, num_samples=2)
    found.look(found.draw(0), None, 0)
    once = len(calls)
    for key in range(20):
        found.look(np.full(len(found.controls), 0.1 * key), None, key)
    assert len(calls) == once


def test_the_figures_are_exact_where_the_posterior_is():
    """Of probabilistic PCA with the exact posterior, every importance weight is p(x)."""
    x = pca_data(3)
    data = DataInfo((5,), (), (-3.0, 3.0), 3, 0, 3, "", None)
    restored = Restored(Config(vae="own.py:vae"), data, pca_vae(exact=True), pca_params(), 0)
    found = explorer.make(restored, Examples(x, None), None, num_samples=7)
    figures = found.figures(Examples(x[1:2], None))
    assert figures["bound of log p(x), K = 7"] == pytest.approx(pca_log_px(pca_params(), x)[1], rel=1e-5)
    assert figures["ELBO"] == pytest.approx(figures["log p(x | z)"] - figures["KL"], rel=1e-5)


def random_plane(num):
    rng = np.random.default_rng(0)
    u = rng.normal(size=(50, num)) * np.arange(1, num + 1)
    controls = tuple(explorer.Control(f"z_{i + 1}", "z", -9, 9, 0.1, float(a)) for i, a in enumerate(u.var(0)))
    return u, controls, explorer.planes(controls, u, u)


@pytest.mark.parametrize("name", ("most active", "principal components"))
def test_the_map_shows_a_point_where_it_was_clicked(name):
    u, controls, planes = random_plane(5)
    plane, pixel = planes[name], (123.0, 45.0)
    moved = explorer.from_pixel(plane, u[3], pixel, controls)
    np.testing.assert_allclose(explorer.to_pixel(plane, moved), pixel, atol=1e-9)
    other = np.eye(5) - plane.directions @ plane.directions.T  # the rest of u stays as it is
    np.testing.assert_allclose(other @ moved, other @ u[3], atol=1e-9)


def test_the_planes_are_those_of_scikit_learn_and_of_the_largest_variances():
    u, _, planes = random_plane(5)
    np.testing.assert_allclose(planes["most active"].points, u[:, [4, 3]])
    expected = PCA(2).fit_transform(u)
    points = planes["principal components"].points
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-9)


@pytest.mark.parametrize("num", (1, 2))
def test_few_latents_have_a_map_too(num):
    u, controls, planes = random_plane(num)
    moved = explorer.from_pixel(planes["most active"], u[0], (240.0, 100.0), controls)
    assert moved.shape == (num,) and np.isfinite(moved).all() and list(planes) == ["most active"]


@pytest.fixture(scope="module")
def coded(train, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "coded"
    train(run_dir, posterior="fsq", prior="uniform_codes", latent_dim=3, posterior_options='{"levels": [5, 4, 3]}')
    return make(run_dir)


def test_sliders_of_codes_snap_to_them(coded):
    assert [(c.low, c.high, c.step) for c in coded.controls] == [(0, 4, 1), (0, 3, 1), (0, 2, 1)]
    for pixel in ((0, 0), (200, 311), (480, 480)):
        u = explorer.from_pixel(coded.planes["most active"], coded.draw(0), pixel, coded.controls)
        assert all(value in range(int(c.high) + 1) for value, c in zip(u, coded.controls, strict=True))
    np.testing.assert_allclose(coded.latent(np.array([0, 3, 1])), [-1, 0.5, 0])


@pytest.mark.parametrize("code_dim", (1, 2))
def test_sliders_of_vectors_choose_rows_of_the_codebook(train, tmp_path, code_dim):
    options = json.dumps({"num_codes": 8, "code_dim": code_dim})
    train(
        tmp_path / "run", posterior="vq", objective="vq", prior="uniform_codes", latent_dim=4, posterior_options=options
    )
    found = make(tmp_path / "run")
    assert [(c.low, c.high) for c in found.controls] == [(0, 7)] * (4 // code_dim)
    q = found.restored.vae.encode(found.restored.params, found.examples.x[:5])
    u = found.encode(jax.tree.map(lambda a: a[:5], found.examples))
    np.testing.assert_array_equal(u, q.digits)
    np.testing.assert_allclose([found.latent(row) for row in u], q.mean, atol=1e-6)


def test_a_posterior_mean_is_where_reconstruct_decodes(digits, coded):
    for found in (digits, coded):
        one, vae = first(found), found.restored.vae
        expected = jax.jit(lambda params, x, vae=vae: generate.reconstruct(params, x, vae))(
            found.restored.params, one.x
        )
        mean, _ = found.look(found.encode(one)[0], None, 0)
        np.testing.assert_allclose(mean, expected[0], rtol=1e-5, atol=1e-6)


def test_z1_follows_z2(hierarchy_run):
    found = make(hierarchy_run)
    assert [control.name for control in found.controls] == ["z1_1", "z1_2", "z2_1", "z2_2", "z2_3"]
    params, u = found.restored.params, found.draw(1)
    (of_z1,) = found.restored.vae.prior(params).then
    p = of_z1({"z2": u[None, 2:]})
    np.testing.assert_allclose(found.follow(u, "z2"), [*np.asarray(p.mean[0]), *u[2:]], rtol=1e-5, atol=1e-6)


def test_a_picture_is_read_as_it_was_drawn(digits, tmp_path):
    x, data = np.asarray(digits.examples.x[4]), digits.restored.data
    (tmp_path / "x.png").write_bytes(drawn.png(x, data))
    again, remark = examples.of_picture(tmp_path / "x.png", None, digits.restored)
    np.testing.assert_allclose(again.x[0], x, atol=0.5 / 255 + 1e-6)
    assert remark == ""
    Image.new("RGB", (90, 30), "white").save(tmp_path / "wide.png")
    wide, remark = examples.of_picture(tmp_path / "wide.png", None, digits.restored)
    np.testing.assert_array_equal(wide.x, 1)
    assert remark == ", scaled and cut from 30 x 90 (height x width)"


def test_a_picture_of_a_conditional_vae_has_the_class_that_was_chosen(conditional_run, tmp_path):
    restored = checkpoints.load(conditional_run, "latest")
    Image.new("L", (8, 8), 255).save(tmp_path / "x.png")
    found, _ = examples.of_picture(tmp_path / "x.png", "7", restored)
    np.testing.assert_array_equal(found.context, [np.eye(10)[7]])


def test_wrong_files_are_refused(digits, vectors_run, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match="not of pictures"):
        examples.of_picture(tmp_path / "x.png", None, checkpoints.load(vectors_run, "latest"))
    (tmp_path / "bad.png").write_bytes(b"GIF?")
    with pytest.raises(UserError, match="no image of a known format"):
        examples.of_picture(tmp_path / "bad.png", None, digits.restored)


def test_bars_are_escaped_and_say_what_is_missing():
    data = DataInfo((2,), (), (0.0, 4.0), 9, 0, 9, "", None, columns=("<a>", "b"))
    markup = drawn.bars({"E[x | z]": np.array([1.0, np.nan], np.float32), "none": None}, Config(), data)
    assert "&lt;a&gt;" in markup and "<a>" not in markup and "missing" in markup and "--share:0.2500" in markup
    assert drawn.to_csv(drawn.row(np.array([1.5, np.nan], np.float32), Config(), data)) == "<a>,b\n1.5,\n"


def test_a_missing_category_is_empty():
    columns = {"size": "real", "kind": {"category": ["a", "b"]}}
    config = Config(likelihood="mixed", likelihood_options={"columns": columns})
    data = DataInfo((2,), (), (0.0, 4.0), 9, 0, 9, "", None, columns=("size", "kind"))
    assert drawn.row(np.array([1.5, np.nan], np.float32), config, data) == {"size": "1.5", "kind": ""}
    assert drawn.row(np.array([np.nan, 1], np.float32), config, data) == {"size": "", "kind": "b"}


def test_colours_are_those_of_the_other_pictures():
    rgba, meanings = drawn.colours(np.array([0, 2, 2]), ("a", "b", "c"))
    assert [text for _, text in meanings] == ["a", "c"] and (rgba[1] == rgba[2]).all()
    assert [text for _, text in drawn.colours(np.arange(30), ())[1]] == ["0", "29"]


def test_without_the_package_the_command_says_how_to_install_it(digits_run, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "nicegui", None)
    assert "pip install 'vae_jax[explore]'" in refused(main, ["explore", digits_run])


def test_a_port_in_use_and_a_damaged_run_are_one_line(digits_run, refused, monkeypatch, tmp_path):
    monkeypatch.setattr(explore, "find_spec", lambda _: True)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        line = refused(main, ["explore", digits_run, f"--port={busy.getsockname()[1]}"])
    assert "cannot be used" in line and "Give another one" in line
    assert "0 to 65535" in refused(main, ["explore", digits_run, "--port=65536"])
    (tmp_path / "run.json").write_text("{")
    assert "damaged" in refused(main, ["explore", tmp_path])


@pytest.fixture(scope="session")
def hierarchy_run(train, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "hierarchy"
    train(run_dir, hierarchy="hvae", hierarchy_options='{"latent_dim": 3, "hidden_sizes": [4]}', num_epochs=1)
    return run_dir


@pytest.fixture(scope="session")
def table_run(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    rows = "".join(f"{a:.3f},{b:.3f},{c:.3f},{'xy'[int(a > 5)]}\n" for a, b, c in rng.normal(5, 2, (200, 3)))
    (folder / "rows.csv").write_text(f"long,wide,high,kind\n{rows}")
    fields = {"dataset": folder / "rows.csv", "label_column": "kind", "standardize": "true"}
    train(folder / "table", **fields, likelihood="gaussian_pixel", batch_size=20)
    return folder / "table"


# In the browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [name for name in ("nicegui", "playwright") if find_spec(name) is None] + ["chromium"] * (not CHROMIUM)
in_a_browser = [pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")]


@pytest.fixture
def serve(tmp_path):
    """serve(run_dir): the address of its explorer, whose processes end with the test."""
    started = []

    def call(run_dir):
        argv = [sys.executable, "-m", "vae_jax", "explore", str(run_dir), "--num_samples=5"]
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=dict(os.environ)
        )
        started.append(process)
        return process.stdout.readline().strip()

    yield call
    for process in started:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert "Traceback" not in err, err
    assert not list(tmp_path.glob(".*"))


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Seen:
    """A page, and what went wrong on it."""

    def __init__(self, browser, url):
        self.page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.requests, self.errors = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector(".q-slider")
        self.host = url.split("/")[2]

    def settle(self):
        self.page.wait_for_timeout(400)

    def latent(self):
        self.settle()
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name="z", exact=True).click()
        return json.loads(download.value.path().read_text())

    def pixels(self, name="mean"):
        url = self.page.locator(f"img.{name}").get_attribute("src")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))

    def origin(self):
        return self.page.locator(".picture .soft").first.inner_text()

    def drop(self, path):
        """As from the file manager, somewhere on the page."""
        data = self.page.evaluate_handle(
            """([text, name]) => {
            const data = new DataTransfer(), bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
            data.items.add(new File([bytes], name)); return data; }""",
            [base64.b64encode(path.read_bytes()).decode(), path.name],
        )
        self.page.dispatch_event("h1", "drop", {"dataTransfer": data})
        self.page.wait_for_timeout(1500)

    def click_map(self, x, y):
        box = self.page.locator(".points img").bounding_box()
        self.page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])

    def assert_clean(self):
        assert self.errors == []
        outside = [url for url in self.requests if not url.startswith(("data:", "blob:")) and self.host not in url]
        assert outside == []


def flat(latent):
    return np.concatenate([latent[name] for name in sorted(latent)]) if isinstance(latent, dict) else np.array(latent)


def decoded(found, latent):
    """E[x | z] by the VAE itself at what the page says that it shows."""
    restored = found.restored
    z = jax.tree.map(lambda a: np.asarray(a, np.float32)[None], latent["z"], is_leaf=lambda a: isinstance(a, list))
    context = np.array([latent["context"]], np.float32) if "context" in latent else None
    own = condition(restored.vae, context)
    return np.asarray(jax.jit(lambda params, z: own.decode(params, z).mean)(restored.params, z))[0]


def assert_shown(seen, found):
    latent = seen.latent()
    mean = decoded(found, latent)
    if drawn.has_bars(found.restored.data):
        values = seen.page.locator(".bars .bar").all_inner_texts()
        each = values[:: len(values) // len(mean)] if seen.origin().startswith("A draw") else values[1::3]
        np.testing.assert_allclose([float(value) for value in each], mean, rtol=1e-3)
    else:
        np.testing.assert_allclose(seen.pixels(), np.rint(np.clip(mean[..., 0], 0, 1) * 255), atol=1)
    return flat(latent["z"])


@pytest.mark.parametrize(
    "run", [pytest.param(run, marks=in_a_browser) for run in ("digits", "conditional", "hierarchy", "table")]
)
def test_in_the_browser(run, request, serve, chromium, tmp_path):
    run_dir = request.getfixturevalue(f"{run}_run")
    found = make(run_dir)
    seen = Seen(chromium, serve(run_dir))
    start = assert_shown(seen, found)
    np.testing.assert_allclose(start, found.draw(0), rtol=1e-5)

    names = seen.page.locator(".sliders .q-slider").evaluate_all("all => all.map(e => e.getAttribute('aria-label'))")
    for i in (0, len(names) - 1):
        at = [control.name for control in found.controls].index(names[i])
        before = flat(seen.latent()["z"])
        seen.page.locator(".sliders .q-slider__track-container").nth(i).focus()
        for _ in range(7):
            seen.page.keyboard.press("ArrowRight")
        moved = assert_shown(seen, found)
        assert moved[at] - before[at] > 5 * found.controls[at].step
        np.testing.assert_allclose(np.delete(moved, at), np.delete(before, at), rtol=1e-5)

    plane = found.planes["most active"]
    seen.click_map(0.25, 0.75)
    clicked = assert_shown(seen, found)
    wanted = plane.low + np.array([0.25, 0.25]) * (plane.high - plane.low)
    np.testing.assert_allclose(clicked @ plane.directions, wanted, atol=0.02 * np.max(plane.high - plane.low))

    box = seen.page.locator(".points img").bounding_box()
    seen.page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"])
    seen.page.mouse.down()
    for share in (0.4, 0.6, 0.7):
        seen.page.mouse.move(box["x"] + share * box["width"], box["y"] + 0.3 * box["height"])
    seen.page.mouse.up()
    seen.page.wait_for_timeout(2500)
    walked = assert_shown(seen, found)
    wanted = plane.low + np.array([0.7, 0.7]) * (plane.high - plane.low)
    np.testing.assert_allclose(walked @ plane.directions, wanted, atol=0.02 * np.max(plane.high - plane.low))

    seen.page.get_by_role("button", name="Reset").click()
    np.testing.assert_allclose(assert_shown(seen, found), start, rtol=1e-5)
    seen.page.get_by_role("button", name="Sample again").click()
    np.testing.assert_allclose(assert_shown(seen, found), found.draw(1), rtol=1e-5)
    seen.page.get_by_label("key").fill("41")
    np.testing.assert_allclose(assert_shown(seen, found), found.draw(41), rtol=1e-5)

    if run == "conditional":
        seen.page.get_by_label("class").click()
        seen.page.get_by_role("option", name="3").click()
        seen.settle()
        assert seen.latent()["context"] == np.eye(10)[3].tolist()
        assert_shown(seen, found)

    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    seen.drop(bad)
    assert "Drop another file" in seen.page.locator(".q-notification").first.inner_text()
    assert seen.origin() == "A draw from the prior, key 41"

    x = np.asarray(found.examples.x[2])
    if run == "table":
        path = tmp_path / "mine.csv"
        path.write_text("long,wide,high\n" + ",".join(map(str, x.tolist())) + "\n")
    else:
        path = tmp_path / "mine.png"
        Image.fromarray(np.rint(x[..., 0] * 255).astype(np.uint8)).save(path)
        x = np.asarray(Image.open(path), np.float32)[..., None] / 255
    seen.drop(path)
    assert seen.origin() == path.name
    context = None if first(found).context is None else np.array([seen.latent()["context"]], np.float32)
    encoded = found.encode(Examples(x[None], context))[0]
    np.testing.assert_allclose(assert_shown(seen, found), encoded, rtol=1e-3, atol=1e-4)
    seen.page.wait_for_selector(".facts dl", timeout=60_000)
    assert "ELBO" in seen.page.locator(".facts").inner_text()

    seen.page.get_by_label("example, 0").fill("4")
    seen.page.get_by_role("button", name="Show").click()
    seen.settle()
    assert seen.origin().startswith("Example 4, label ")
    one = jax.tree.map(lambda a: a[4:5], found.examples)
    np.testing.assert_allclose(assert_shown(seen, found), found.encode(one)[0], rtol=1e-3, atol=1e-4)
    with seen.page.expect_download() as download:
        seen.page.locator(".start button").filter(has_text="Row" if run == "table" else "Picture").click()
    if run == "table":
        assert download.value.path().read_text().startswith("long,wide,high\n")
    else:
        np.testing.assert_array_equal(np.asarray(Image.open(download.value.path())), seen.pixels())
    seen.assert_clean()


@pytest.mark.skipif(find_spec("nicegui") is None, reason="not installed: nicegui")
def test_without_the_token_there_is_nothing(serve, digits_run):
    url = serve(digits_run)
    assert urlopen(url).status == 200
    for path in ("", "wrong/", "_nicegui/"):
        with pytest.raises(HTTPError, match="404"):
            urlopen(f"http://{url.split('/')[2]}/{path}")
    with pytest.raises(HTTPError, match="400"):  # another name for this machine, as an attacker's page would use
        urlopen(Request(url, headers={"Host": "example.org"}))


def test_the_socket_is_of_this_machine_alone():
    with explore.listen(0) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"


def test_an_error_of_the_socket_is_one_line(capsys):
    with explore.listen(0) as sock:
        port = sock.getsockname()[1]

        def listen(argv):
            explore.listen(port)

        assert console.run(listen, []) == 2
    assert "--port" in one_line(capsys.readouterr().err)
