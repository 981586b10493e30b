"""Files from strangers run nothing, take no memory and write nowhere else: one line on stderr, exit status 2."""

import json
import os
import shutil
import subprocess
import sys

import malformed
import numpy as np
import pytest
from conftest import ROOT, contents, mostly_slow, train_flags

from vae_jax.__main__ import main as vae_main
from vae_jax.data import datasets
from vae_jax.errors import UserError
from vae_jax.run import checkpoints, digests, runs

pytestmark = pytest.mark.robust


def check(line, parts):
    for part in parts:
        assert part in line


@pytest.mark.parametrize("case", malformed.FLAGS)
def test_flags_of_train(case, refused, train_py, tmp_path):
    fields, parts = malformed.FLAGS[case]
    check(refused(train_py.main, [*train_flags(tmp_path / "run"), *(f"--config.{field}" for field in fields)]), parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("case", malformed.OTHER_FLAGS)
def test_other_flags_of_train(case, refused, train_py, tmp_path):
    flags, parts = malformed.OTHER_FLAGS[case]
    check(refused(train_py.main, [*train_flags(tmp_path / "run"), *flags]), parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("case", malformed.RECIPES)
def test_recipes(case, refused, train_py, tmp_path):
    text, parts = malformed.RECIPES[case]
    path = tmp_path / "recipe.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    check(refused(train_py.main, [f"--config={path}", f"--workdir={tmp_path / 'run'}"]), [str(path), *parts])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("case", malformed.DATA)
def test_data(case, refused, train_py, tmp_path):
    write, parts = malformed.DATA[case]
    check(refused(train_py.main, train_flags(tmp_path / "run", dataset=write(tmp_path), batch_size=1)), parts)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def run_dir(digits_run, tmp_path):
    """A run of its own, with one checkpoint."""
    copy = shutil.copytree(digits_run, tmp_path / "run", ignore=shutil.ignore_patterns("75"))
    (tmp_path / "precious").write_text("dear")
    return copy


def outside(run_dir):
    """What is beside the run, with its bytes."""
    beside = [path for path in run_dir.parent.iterdir() if path != run_dir]
    return [(path, contents(path) if path.is_dir() else path.read_bytes()) for path in sorted(beside)]


@pytest.mark.parametrize("case", malformed.RUNS)
def test_run_directories(case, refused, run_dir):
    change, parts = malformed.RUNS[case]
    change(run_dir)
    before = outside(run_dir)
    check(refused(vae_main, ["sample", run_dir]), [str(run_dir), *parts])
    assert outside(run_dir) == before and not (run_dir / "sample.png").exists()


@pytest.mark.parametrize("case", malformed.PROGRESS)
def test_progress_of_a_run(case, refused, run_dir, train_py):
    malformed.text("progress.json", malformed.PROGRESS[case])(run_dir)
    parts = ["progress.json is not a valid progress.json", "Choose another checkpoint"]
    check(refused(vae_main, ["sample", run_dir, "--checkpoint=best"]), parts)
    check(refused(train_py.main, train_flags(run_dir, num_epochs=6)), parts)


@pytest.mark.parametrize("name", ["run.json", "checkpoints", "epoch-9", "metrics.jsonl", ".curves.png.1.tmp"])
def test_training_writes_and_removes_nothing_through_a_link(name, refused, run_dir, train_py):
    """What a crash left is removed: not in the folder that a stranger's `checkpoints` points to."""
    home = run_dir.parent / "home"
    home.mkdir()
    (home / ".profile").write_text("dear")
    malformed.linked(name, home if name in ("checkpoints", "epoch-9") else home / ".profile")(run_dir)
    before = outside(run_dir)
    check(refused(train_py.main, train_flags(run_dir, num_epochs=6)), ["is a link out of the run directory"])
    assert outside(run_dir) == before


def test_training_begins_nothing_through_a_link(refused, train_py, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "run").mkdir()
    os.symlink("../home", tmp_path / "run" / "checkpoints")
    check(refused(train_py.main, train_flags(tmp_path / "run")), ["is a link out of the run directory"])
    assert not any((tmp_path / "home").iterdir())


def test_a_pipe_is_no_run_to_begin(refused, train_py, tmp_path):
    os.mkfifo(tmp_path / "run.json")
    check(refused(train_py.main, train_flags(tmp_path)), ["run.json is not a plain file"])


def test_a_log_of_anything_is_left_out_of_the_curves(run_dir, train):
    """A line of 10 MB, brackets, a list, fields of other types."""
    (run_dir / "curves.png").unlink()
    lines = [
        '{"split": 3}',
        '{"split": "a", "epoch": "b", "elbo": []}',
        json.dumps({"a": "x" * 10_000_000}),
        "[" * 9999,
    ]
    malformed.text("metrics.jsonl", "\n".join(lines))(run_dir)
    train(run_dir, num_epochs=6)
    assert (run_dir / "curves.png").is_file()


def test_a_link_within_a_run_is_followed(run_dir, vae):
    os.symlink("samples.png", run_dir / "newest.png")
    vae("sample", run_dir)


def test_a_run_directory_does_not_say_where_data_is_downloaded_to(run_dir, tmp_path, refused, monkeypatch):
    from vae_jax.data import tfds_builders

    asked = []

    def prepare(name, data_dir):
        asked.append(data_dir)
        raise UserError("no network. Give --data_dir.")

    monkeypatch.setattr(tfds_builders, "prepare", prepare)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "own"))
    malformed.run_json(config={"dataset": "mnist"}, data={"data_dir": str(tmp_path / "startup")})(run_dir)
    refused(vae_main, ["reconstruct", run_dir])
    assert asked == [tmp_path / "own"]


# A prepared TFDS directory names classes: TFDS imports their modules.

FEATURE = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
FEATURES = {
    "class": {"pythonClassName": "evil.Feature"},
    "class by its other name": {"python_class_name": "evil.Feature"},
    "class of old": {"type": "evil.Feature", "content": {}},
    "class within": {"pythonClassName": FEATURE, "featuresDict": {"features": {"a": {"pythonClassName": "evil.A"}}}},
    "class in the JSON of a feature": {
        "pythonClassName": FEATURE,
        "jsonFeature": {"json": '{"a": {"type": "evil.Feature", "content": {}}}'},
    },
    "class in a text": {"type": FEATURE, "content": '{"pythonClassName": "evil.Feature"}'},
    "class that runs programs": {"pythonClassName": "tensorflow_datasets.core.features.video_feature.Video"},
    "class that is a list": {"pythonClassName": ["evil.Feature"]},
}


@pytest.mark.parametrize("case", FEATURES)
def test_prepared_data_imports_nothing(case, refused, train_py, tmp_path, monkeypatch):
    prepared = tmp_path / "mnist" / "3.0.1"
    prepared.mkdir(parents=True)
    info = {"name": "mnist", "version": "3.0.1", "fileFormat": "array_record", "moduleName": "evil"}
    (prepared / "dataset_info.json").write_text(json.dumps(info))
    (prepared / "features.json").write_text(json.dumps(FEATURES[case]))
    (tmp_path / "evil.py").write_text("raise SystemExit('a module was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    flags = train_flags(tmp_path / "run", f"--data_dir={tmp_path}", dataset="mnist")
    check(refused(train_py.main, flags), ["which is not a feature that is read here", "--data_dir"])
    assert "evil" not in sys.modules


# In processes whose memory ends at 4 GiB, what they import included.

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from vae_jax.data import datasets
from vae_jax.run import checkpoints
from vae_jax.errors import UserError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    (datasets.load if sys.argv[1] == "data" else checkpoints.load)(sys.argv[2])
except UserError as error:
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < {grown} << 10, grown
    print(error)
"""
LARGE_DATA = ("10^12 values", "header of 2 GB that is there", "larger than memory", "archive with a header of 64 MB")
LARGE_IMAGES = ("image of 10^18 pixels", "bomb in the profile")
LARGE_RUNS = ("example of 10^18 values", "two layers of 10^7", "array in chunks of 10^12", "run.json of a terabyte")


def limited(kind, path, grown):
    argv = [sys.executable, "-c", LIMITED.format(grown=grown), kind, str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "case",
    mostly_slow(LARGE_DATA + LARGE_IMAGES, lambda case: case in ("larger than memory", "bomb in the profile")),
)
def test_memory_of_hostile_data(case, tmp_path):
    write, parts = malformed.DATA[case]
    check(limited("data", write(tmp_path), 100), parts)


@pytest.mark.parametrize("case", mostly_slow(LARGE_RUNS, lambda case: case == "array in chunks of 10^12"))
def test_memory_of_hostile_runs(case, run_dir):
    change, parts = malformed.RUNS[case]
    change(run_dir)
    check(limited("run", run_dir, 400), parts)


def test_there_are_enough_cases():
    """Each of these is one error line and the exit status 2; those of the other test files are not counted."""
    import test_bad_input as plain

    hostile = (malformed.FLAGS, malformed.OTHER_FLAGS, malformed.RECIPES, malformed.DATA, malformed.RUNS)
    others = (malformed.PROGRESS, FEATURES, plain.FLAGS, plain.DATA, plain.COMMAND_LINES)
    assert sum(map(len, hostile + others)) > 350


def test_what_the_tables_change_is_sound_before(run_dir, vae):
    """Each case is refused for what it changes."""
    malformed.run_json()(run_dir)
    malformed.text("progress.json", (malformed.latest(run_dir) / "progress.json").read_bytes())(run_dir)
    assert digests.damage(malformed.latest(run_dir)) is None
    vae("sample", run_dir)
    assert runs.read_run(run_dir)[1].shape == (8, 8, 1) and checkpoints.steps(run_dir) == [90]
    for folder, write in (
        ("a", malformed.file("x.npy", malformed.ROWS)),
        ("b", malformed.archive(("x.npy", malformed.ROWS))),
        ("c", malformed.images(malformed.png(), malformed.saved("PNG"), links=["0.png"])),
    ):
        (run_dir / folder).mkdir()
        assert np.prod(datasets.load(write(run_dir / folder)).train.x.shape[1:]) in (4, 64)
