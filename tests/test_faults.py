"""Short versions of faults.py, and what else may happen to a run directory while it is in use."""

import random
import shutil
import subprocess
import time

import faults
import pytest
from conftest import contents, mostly_slow, one_line, train_flags

from vae_jax.__main__ import main as vae_main
from vae_jax.cli import console
from vae_jax.run import checkpoints

pytestmark = pytest.mark.robust

EPOCHS = 3


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    faults.finish(run_dir, EPOCHS)
    return run_dir


@pytest.fixture(scope="module")
def judge(unbroken):
    return faults.Judge(unbroken)


@pytest.mark.parametrize("num", mostly_slow((20, 60), lambda num: num == 20))
def test_a_flipped_bit_is_found_or_of_no_account(unbroken, judge, num):
    found = faults.flips(unbroken, judge, num, random.Random(0))
    assert found.total() == num and found["detected"] > 0.8 * num


@pytest.mark.slow
def test_a_truncated_file_is_found_or_of_no_account(unbroken, judge):
    """Those of the latest checkpoint, and those beside the checkpoints."""
    latest = f"checkpoints/{judge.steps[-1]}/"
    found = sum(
        (faults.truncations(unbroken, judge, only) for only in (latest, "run.json", "metrics")), start=faults.Counter()
    )
    assert found["detected"] + found["harmless"] == found.total() > 70
    assert found["harmless"] == 4  # the log, which is taken from the checkpoint, and the last line end of run.json


def test_the_judge_is_not_easily_satisfied(unbroken, judge, tmp_path):
    """Weights whose digests were made to fit are taken for true: by the commands, not by the judge."""
    run_dir = shutil.copytree(unbroken, tmp_path / "run")
    early, late = (run_dir / "checkpoints" / str(step) for step in (judge.steps[0], judge.steps[-1]))
    shutil.rmtree(late / "params")
    shutil.copytree(early / "params", late / "params")
    checkpoints.digests.write(late)
    with pytest.raises(AssertionError):
        judge(run_dir)


def test_a_full_disk_is_one_line_and_harms_no_checkpoint(unbroken, tmp_path):
    outcome = faults.full_disk(tmp_path / "disk", unbroken, EPOCHS, int(1.5 * faults.footprint(unbroken)))
    assert outcome == "with 1 checkpoint" or outcome.startswith("skipped")
    if outcome.startswith("skipped"):
        faults.file_size_limit(tmp_path, unbroken, EPOCHS, 8192)


@pytest.mark.slow
def test_a_limit_of_file_sizes_is_one_line_and_harms_no_checkpoint(unbroken, tmp_path):
    faults.file_size_limit(tmp_path, unbroken, EPOCHS, 8192)


@pytest.mark.parametrize("seed", mostly_slow(range(2), lambda seed: seed == 0))
def test_a_directory_that_vanishes_is_one_line(tmp_path, seed):
    run_dir = tmp_path / "run"
    process = faults.start(run_dir, 1000)
    while not checkpoints.steps(run_dir):
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(random.Random(seed).uniform(0, 0.3))
    run_dir.rename(tmp_path / "elsewhere")
    assert "run" in faults.assert_clean_failure(process)
    assert checkpoints.steps(run_dir) == []
    assert checkpoints.sound_steps(tmp_path / "elsewhere") == checkpoints.steps(tmp_path / "elsewhere") != []


@pytest.mark.slow
def test_a_second_process_is_refused_while_the_first_trains(tmp_path):
    run_dir = tmp_path / "run"
    process = faults.start(run_dir, 1000)
    try:
        while not checkpoints.steps(run_dir):
            assert process.poll() is None
            time.sleep(0.005)
        for flags in ([], ["--restart"]):
            second = subprocess.run([*process.args, *flags], capture_output=True, text=True, timeout=120)
            assert second.returncode == 2 and "is in use: another process trains there" in one_line(second.stderr)
        assert checkpoints.load(run_dir).step  # reading does not train
    finally:
        faults.kill(process)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_directory_that_may_only_be_read(unbroken, tmp_path, train_py, capsys):
    with faults.disk(tmp_path / "disk", 4096) as remount:
        if remount is None:
            pytest.skip("mounting needs root")
        run_dir = shutil.copytree(unbroken, tmp_path / "disk" / "run")
        before = contents(run_dir)
        assert remount("ro")
        argv = train_flags(run_dir, num_epochs=EPOCHS, **faults.FIELDS)
        with faults.jax.numpy_dtype_promotion("standard"):
            assert console.run(train_py.main, argv) == 2
        assert "Read-only file system" in one_line(capsys.readouterr().err)
        out = str(tmp_path / "x.png")
        assert console.run(vae_main, ["sample", str(run_dir), "--num=2", "--out", out]) == 0
        assert contents(run_dir) == before
