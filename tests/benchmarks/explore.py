"""How fast the explorer answers in a browser, and whether its memory grows, as one line of JSON for each run.

    python tests/benchmarks/explore.py RUN_DIR [RUN_DIR ...] [--moves=1000]

A key moves a slider one step at a time. The time is that from the key to the new picture, as the page sees it. The
memory is that of the server after a tenth of the moves and at their end. It needs `.[explore]`, playwright and
Debian's chromium.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

WATCH = """() => {
  window.times = []; window.pressed = 0;
  addEventListener("keydown", () => { window.pressed = performance.now(); }, true);
  new MutationObserver(() => {
    if (window.pressed) { window.times.push(performance.now() - window.pressed); window.pressed = 0; }
  }).observe(document.querySelector("img.mean"), {attributes: true, attributeFilter: ["src"]});
}"""


def memory(pid: int) -> int:
    """The resident memory of a process, in MB."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024


def measure(run_dir: str, moves: int) -> dict[str, float]:
    from playwright.sync_api import sync_playwright

    start = time.perf_counter()
    argv = [sys.executable, "-m", "vae_jax", "explore", run_dir]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout
        url, seconds = server.stdout.readline().strip(), time.perf_counter() - start
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector(".q-slider")
        page.wait_for_timeout(1000)
        page.evaluate(WATCH)
        page.locator(".sliders .q-slider__track-container").first.focus()
        early = 0
        for i in range(moves):
            page.keyboard.press("ArrowRight" if i // 20 % 2 else "ArrowLeft")
            page.wait_for_timeout(100)
            if i == moves // 10:
                early = memory(server.pid)
        times, late = page.evaluate("window.times"), memory(server.pid)
        browser.close()
        server.terminate()
    p50, p95 = np.percentile(times, (50, 95)).round(1).tolist()
    return {"start_s": round(seconds, 1), "answers": len(times), "p50_ms": p50, "p95_ms": p95, "mb": [early, late]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR")
    parser.add_argument("--moves", type=int, default=1000)
    options = parser.parse_args()
    for run_dir in options.run_dirs:
        print(json.dumps({"run": run_dir, **measure(run_dir, options.moves)}))
