"""What differs from what was written is named by its file, whatever was done to it."""

import shutil
import subprocess

import pytest

from vae_jax.run import digests

FILES = {"a": b"first", "part/b": b"second", "part/deep/c": b"", "other/d": b"\x00\xff"}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    digests.write(tmp_path)
    return tmp_path


def test_what_was_written_is_undamaged(folder):
    assert digests.damage(folder) is None
    digests.write(folder)
    assert digests.damage(folder) is None


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs sha256sum")
def test_sha256sum_checks_it_too(folder):
    command = ["sha256sum", "--check", "--strict", digests.NAME]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (folder / "a").write_bytes(b"First")
    assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 1


@pytest.mark.parametrize("name", [*FILES, digests.NAME])
def test_every_bit_counts(folder, name):
    whole = (folder / name).read_bytes()
    for bit in range(0, 8 * len(whole), 5 if name == digests.NAME else 1):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(flipped)
        reason = digests.damage(folder)
        assert reason and (name == digests.NAME or reason == f"{name} differs from its digest")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_or_new(folder, name):
    (folder / name).rename(folder / f"{name}2")
    assert digests.damage(folder) in (f"{name} is missing", f"{name}2 is not in {digests.NAME}")
    shutil.copy(folder / f"{name}2", folder / name)
    assert digests.damage(folder) == f"{name}2 is not in {digests.NAME}"


def test_truncated_anywhere(folder):
    whole = (folder / digests.NAME).read_bytes()
    for size in range(len(whole)):
        (folder / digests.NAME).write_bytes(whole[:size])
        assert digests.damage(folder)
    (folder / digests.NAME).unlink()
    assert digests.damage(folder) == f"{digests.NAME} is missing"


def test_parts_are_looked_at_alone(folder):
    (folder / "other" / "d").unlink()
    (folder / "a").write_bytes(b"")
    assert digests.damage(folder, "part") is None
    assert digests.damage(folder, "part", "a") == "a differs from its digest"


def test_json_is_what_it_says_and_not_its_layout():
    assert digests.of_json({"a": 1.5, "b": [1, 2]}) == digests.of_json({"b": [1, 2], "a": 1.5})
    others = [{"a": 1.5}, {"a": 1.5, "b": [2, 1]}, {"a": 1.25, "b": [1, 2]}, {"a": 1.5, "b": "[1, 2]"}]
    assert len({digests.of_json(other) for other in [{"a": 1.5, "b": [1, 2]}, *others]}) == 5
