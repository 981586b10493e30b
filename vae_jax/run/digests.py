"""SHA-256 digests, which show whether files are still as they were written, and which file is not."""

import hashlib
import json
from pathlib import Path
from typing import Any

NAME = "SHA256SUMS"
MAX_BYTES = 16 << 20  # of SHA256SUMS: enough for more files than any checkpoint has


def write(folder: Path) -> None:
    """Write the digest of every file below a folder to its SHA256SUMS, which `sha256sum -c` can check."""
    (folder / NAME).write_text("".join(f"{_of_file(folder / name)}  {name}\n" for name in _files(folder)), "utf-8")


def damage(folder: Path, *parts: str) -> str | None:
    """Describe the first file below a folder that does not match its SHA256SUMS; None if all files match.

    parts: check only these files and subfolders; by default all.
    """
    try:
        if (folder / NAME).stat().st_size > MAX_BYTES:
            return f"{NAME} has more than {MAX_BYTES} bytes"
        *lines, end = (folder / NAME).read_text("utf-8").split("\n")
        expected = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except FileNotFoundError:
        return f"{NAME} is missing"
    except (OSError, ValueError) as error:
        return f"{NAME} cannot be read ({type(error).__name__})"
    if end or not expected:
        return f"{NAME} is truncated"
    present = set(_files(folder))
    for name in sorted(present | expected.keys()):
        if parts and name.split("/")[0] not in parts:
            continue
        if name not in expected:
            return f"{name} is not in {NAME}"
        if name not in present:
            return f"{name} is missing"
        try:
            if _of_file(folder / name) != expected[name]:
                return f"{name} differs from its digest"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def of_json(value: Any) -> str:
    """The digest of a JSON value. It does not depend on the layout of the file."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def of_bytes(content: bytes) -> str:
    """The SHA-256 of the contents of a file, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _files(folder: Path) -> list[str]:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in names if name != NAME)


def _of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
