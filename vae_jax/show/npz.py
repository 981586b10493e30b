"""Write arrays of any length to one .npz file, with only a few rows at a time in memory."""

import io
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from zipfile import ZipFile, ZipInfo
from zlib import crc32

import numpy as np

from vae_jax.data.files import write_whole
from vae_jax.errors import UserError


def save(path: Path, num: int, chunks: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Write arrays [num, ...] to a .npz file. Raises UserError if the disk has too little space.

    Each chunk holds the next rows of every array, by the name of the array. A zip, however, holds one array after the
    other. So each array first gets its place, as np.savez would lay out the file, and its rows are then written there.
    """
    chunks = iter(chunks)
    first = next(chunks)
    members, ends, size = {name: ZipInfo(f"{name}.npy") for name in first}, {}, 0
    for name, rows in first.items():
        members[name].header_offset, members[name].CRC = size, 0
        members[name].file_size = members[name].compress_size = len(_head(rows, num)) + num * rows[:1].nbytes
        ends[name] = size + len(members[name].FileHeader(zip64=True))  # where its next bytes go
        size = ends[name] + members[name].file_size
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise UserError(
            f"{path} would have {size / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free there; expected to fit. Ask for "
            "fewer, or for a file on another disk."
        )

    def write(temporary: Path) -> None:
        def append(name: str, data: bytes) -> None:
            file.seek(ends[name])
            ends[name] += file.write(data)
            members[name].CRC = crc32(data, members[name].CRC)

        with open(temporary, "wb") as file, ZipFile(file, "w") as archive:
            for name, rows in first.items():
                append(name, _head(rows, num))
                append(name, rows.tobytes())
            for chunk in chunks:
                for name, rows in chunk.items():
                    append(name, rows.tobytes())
            for member in members.values():
                file.seek(member.header_offset)
                file.write(member.FileHeader(zip64=True))
            archive.filelist.extend(members.values())
            archive.start_dir = size

    write_whole(path, write)


def _head(rows: np.ndarray, num: int) -> bytes:
    """The header of a .npy file for an array of `num` rows like `rows`."""
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(rows.dtype)
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": (num, *rows.shape[1:])}
    )
    return file.getvalue()
