"""What a run survives: kills, flipped bits, truncated files, a full disk. Nothing may be silently wrong.

`python tests/faults.py --kills=100 --flips=1000` prints a table. tests/test_faults.py runs short versions.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from conftest import ROOT, contents, train_flags
from test_train import assert_bit_equal, assert_same_records, final_state

from vae_jax import build, update
from vae_jax.errors import UserError
from vae_jax.run import arrays, checkpoints, metrics, runs

# kills


FIELDS = {"binarization": "dynamic", "ema_decay": 0.9}


def start(run_dir, num_epochs, *first):
    """train.py in a process of its own. first: of the command line, what comes before."""
    return subprocess.Popen(
        [*first, sys.executable, str(ROOT / "train.py"), *train_flags(run_dir, num_epochs=num_epochs, **FIELDS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(run_dir, num_epochs):
    """Let the command end by itself; the seconds that it took, to its first evaluation and in all."""
    begun, first = time.monotonic(), None
    process = start(run_dir, num_epochs)
    while process.poll() is None and first is None:
        first = time.monotonic() if metrics.text(run_dir) else None
        time.sleep(0.01)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    end = time.monotonic()
    return (first or end) - begun, end - begun


def kill(process):
    """With no chance to clean up."""
    process.kill()
    process.communicate()


def assert_equals_unbroken(run_dir, unbroken, num_epochs):
    assert_bit_equal(final_state(run_dir), final_state(unbroken))
    assert_same_records(run_dir, unbroken)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [e for e in range(1, num_epochs + 1) for _ in range(2)]
    assert {path.name for path in run_dir.glob("*.png")} == {path.name for path in unbroken.glob("*.png")}


def kills(folder, num, chance, a_run=10, num_epochs=60):
    """Kill runs at random moments, up to `a_run` times each; how often within what. AssertionError if one differs."""
    startup, whole = finish(folder / "unbroken", num_epochs)
    moments, number = Counter(), 0
    while moments.total() < num:
        run_dir = folder / f"run-{number}"
        for _ in range(min(a_run, num - moments.total())):
            process = start(run_dir, num_epochs)
            in_training = startup + chance.uniform(0, 2 / a_run) * (whole - startup)
            time.sleep(chance.choice([chance.uniform(0.2, 1) * startup, in_training, in_training, in_training]))
            if process.poll() is not None:
                break
            kill(process)
            moments[moment(run_dir)] += 1
        finish(run_dir, num_epochs)
        assert_equals_unbroken(run_dir, folder / "unbroken", num_epochs)
        shutil.rmtree(run_dir)
        number += 1
    return moments


def moment(run_dir):
    """What a run was at when it was killed, as far as its directory tells."""
    names = {path.name for path in (run_dir / "checkpoints").glob("*")}
    if any(name.startswith(".new") for name in names):
        return "saving a checkpoint"
    if ".old" in names:
        return "deleting a checkpoint"
    steps, records = checkpoints.steps(run_dir), metrics.read(run_dir)
    if records and records[-1]["step"] > max(steps, default=0):
        return "between log and checkpoint"
    return "anything else" if steps else "before the first checkpoint"


# damage


class Judge:
    """Knows what a run directory holds, and tells of a damaged copy whether what is read from it is true.

    A reading is: an error of one line; or what was written last; or what was written earlier, if a line on stderr names
    a damaged checkpoint. Anything else is wrong.
    """

    def __init__(self, run_dir):
        self.reads, self.read_arrays = {}, arrays.read
        self.run = runs.read_run(run_dir)
        config, data = self.run
        self.steps = checkpoints.steps(run_dir)
        self.best = checkpoints.load(run_dir, "best").step
        self.params = {step: checkpoints.load(run_dir, str(step)).params for step in self.steps}
        vae = build.make_vae(config, data)
        optimizer = build.make_optimizer(config, data.num_train // config.batch_size)
        first = partial(update.init_state, vae, optimizer, ema=config.ema_decay > 0)
        self.like = jax.eval_shape(first, jax.random.key(1), np.ones((1, *data.shape), np.float32))
        self.resumed = {}
        for step in self.steps:
            with tempfile.TemporaryDirectory() as copy:
                shutil.copytree(run_dir, copy, dirs_exist_ok=True)
                self.resumed[step] = self.resume(Path(copy), step)

    def __call__(self, run_dir):
        """'detected' or 'harmless'; AssertionError if anything read is wrong. Resumes the run, as train.py would."""
        with mock.patch.object(arrays, "read", self.read_once):
            return self.judge(run_dir)

    def read_once(self, folder, **likes):
        """orbax takes its time; the same bytes are the same arrays."""
        key = (*likes, *contents(folder).items())
        if key not in self.reads:
            self.reads[key] = self.read_arrays(folder, **likes)
        return self.reads[key]

    def judge(self, run_dir):
        found = set()
        for checkpoint in ("latest", "best"):
            expected = self.steps[-1] if checkpoint == "latest" else self.best
            restored, said = reading(checkpoints.load, run_dir, checkpoint)
            if restored:
                assert (restored.config, restored.data) == self.run
                assert_bit_equal(restored.params, self.params[restored.step])
                assert restored.step == expected or self.names(said, run_dir, expected), said
            found.add(bool(said))
        resumed, said = reading(self.resume, run_dir)
        if resumed:
            step = int(resumed[0].step)
            for read, written in zip(resumed, self.resumed[step], strict=True):
                assert_bit_equal(read, written)
            assert step == self.steps[-1] or self.names(said, run_dir, self.steps[-1]), said
        return "detected" if any(found | {bool(said)}) else "harmless"

    def resume(self, run_dir, step=None):
        with runs.open_run(run_dir, *self.run):
            state, totals = checkpoints.resume(run_dir, self.like, step)
        arrays = jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key)))
        return arrays, totals, np.array(metrics.text(run_dir))

    @staticmethod
    def names(said, run_dir, step):
        return any(line.startswith(f"{run_dir / 'checkpoints' / str(step)} is damaged (") for line in said)


def reading(function, *args):
    """What a function gives, None for a UserError, and the lines that a person is told."""
    stderr, result, error = io.StringIO(), None, []
    with contextlib.redirect_stderr(stderr):
        try:
            result = function(*args)
        except UserError as caught:
            error = [str(caught)]
            assert "\n" not in error[0]
    return result, stderr.getvalue().splitlines() + error


def record_of(run_dir):
    """The files that a run is read from: all but its pictures."""
    return sorted(path.relative_to(run_dir) for path in run_dir.rglob("*") if path.is_file() and path.suffix != ".png")


def flip(whole, chance):
    """One bit of some bytes."""
    flipped = bytearray(whole)
    flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def cuts(whole):
    """Some bytes truncated: to nothing, in the middle and by one."""
    return [whole[:size] for size in sorted({0, len(whole) // 2, len(whole) - 1})]


def damages(run_dir, judge, changes):
    """The judgements of a run with one file changed at a time. changes: of a path below it, what it becomes."""
    found = Counter()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        for path, content in changes:
            shutil.copytree(run_dir, copy)
            (copy / path).write_bytes(content)
            try:
                found[judge(copy)] += 1
            except Exception as error:
                raise AssertionError(f"{path} as {content[:2000]!r} is read as if it were true") from error
            shutil.rmtree(copy)
    return found


def flips(run_dir, judge, num, chance):
    """A bit each, the files in turn: the small ones are hit as often as those that hold the weights."""
    wholes = [(path, (run_dir / path).read_bytes()) for path in record_of(run_dir)]
    wholes = [(path, whole) for path, whole in wholes if whole]
    chance.shuffle(wholes)
    turns = [wholes[i % len(wholes)] for i in range(num)]
    return damages(run_dir, judge, [(path, flip(whole, chance)) for path, whole in turns])


def truncations(run_dir, judge, only=""):
    """Every file, or every file of which the path begins with `only`."""
    paths = [path for path in record_of(run_dir) if path.as_posix().startswith(only)]
    wholes = [(path, (run_dir / path).read_bytes()) for path in paths]
    return damages(run_dir, judge, [(path, cut) for path, whole in wholes if whole for cut in cuts(whole)])


# a full disk


@contextlib.contextmanager
def disk(folder, kilobytes):
    """remount(options) of a small disk, mounted at a folder; None where mounting is not allowed."""

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return sys.platform == "linux" and subprocess.run(command, capture_output=True).returncode == 0

    folder.mkdir()
    if not mount(f"size={kilobytes}k"):
        yield None
        return
    try:
        yield lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def assert_clean_failure(process):
    """The one line of an error below those of the epochs, and the exit status 2."""
    out, err = process.communicate(timeout=300)
    *lines, last = err.splitlines()
    assert process.returncode == 2 and out == "", err
    assert last.startswith("error: ") and all(line.startswith("epoch ") or "resumed at" in line for line in lines), err
    return last


def full_disk(folder, unbroken, num_epochs, kilobytes):
    """Train onto a disk that is too small, then make room and finish; what it held until then."""
    with disk(folder, kilobytes) as remount:
        if remount is None:
            return "skipped: mounting needs root"
        run_dir = folder / "run"
        assert "No space left on device" in assert_clean_failure(start(run_dir, num_epochs))
        steps = checkpoints.sound_steps(run_dir)
        assert steps == checkpoints.steps(run_dir)
        if steps:
            assert checkpoints.load(run_dir).step == steps[-1]
        assert remount("size=64m")
        finish(run_dir, num_epochs)
        assert_equals_unbroken(run_dir, unbroken, num_epochs)
        return f"with {len(steps)} checkpoint{'s' * (len(steps) != 1)}"


def footprint(run_dir):
    """The kilobytes that a checkpoint takes on a disk."""
    folder = run_dir / "checkpoints" / str(checkpoints.steps(run_dir)[-1])
    return sum(4 * -(-path.stat().st_size // 4096) for path in folder.rglob("*") if path.is_file())


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


def file_size_limit(folder, unbroken, num_epochs, limit):
    """The same without mounting: the last epoch done again while no file may be larger than `limit` bytes."""
    run_dir = shutil.copytree(unbroken, folder / "run")
    *earlier, last = checkpoints.steps(run_dir)
    shutil.rmtree(run_dir / "checkpoints" / str(last))
    process = start(run_dir, num_epochs, sys.executable, "-c", LIMITED, str(limit))
    assert "File too large" in assert_clean_failure(process)
    assert checkpoints.sound_steps(run_dir) == earlier and checkpoints.load(run_dir).step == earlier[-1]
    finish(run_dir, num_epochs)
    assert_equals_unbroken(run_dir, unbroken, num_epochs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="(%(default)s)")
    parser.add_argument("--flips", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    print(f"seed {options.seed}\n\n| fault | number | outcome | seconds |\n| --- | --- | --- | --- |", flush=True)

    def row(fault, run):
        begun = time.monotonic()
        outcomes = run()
        shown = ", ".join(f"{count} {name}" for name, count in outcomes.most_common())
        print(f"| {fault} | {outcomes.total()} | {shown} | {time.monotonic() - begun:.0f} |", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
        unbroken = folder / "unbroken"
        finish(unbroken, 6)
        judge = Judge(unbroken)
        row("bit flipped", lambda: flips(unbroken, judge, options.flips, chance))
        row("file truncated", lambda: truncations(unbroken, judge))

        sizes = [int(part * footprint(unbroken)) for part in (0.3, 0.6, 0.9, 1.3, 1.6, 1.9, 2.3, 2.6, 2.9)]
        held = (full_disk(folder / f"{size}-kB", unbroken, 6, size) for size in sizes)
        row("disk full, then resumed", lambda: Counter(held))
        row("kill, then resumed bit for bit", lambda: kills(folder / "kills", options.kills, chance))


if __name__ == "__main__":
    main()
