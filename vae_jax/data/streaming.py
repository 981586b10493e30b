"""Train on a .npy file that is larger than memory: it is read once to check it, then in another order in every epoch.

The file is read in blocks of consecutive rows, of 128 KiB or a thousandth of the file if that is less, because any disk
is slow at reading single rows from all over a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from vae_jax import progress
from vae_jax.data.files import (
    Rows,
    check_counts,
    check_finite,
    check_integers,
    convert,
    extremes,
    log_counts,
    log_integers,
    not_counts,
    not_finite,
    permutation,
)

BLOCK_BYTES = 128 << 10
READ_BYTES = 4 << 20  # read at a time while the file is checked
WINDOW_BYTES = 64 << 20  # of blocks whose rows are shuffled together
CHUNK_BYTES = 16 << 20  # of batches that are sent to the device at once
KEPT_BYTES = 256 << 20  # as float32: limit for the test split, and for the training examples in memory
MAX_KEPT = 10_000  # examples: the second limit for each of these two


@dataclass(frozen=True, eq=False)
class Stream:
    """The training examples in a file that is read during training."""

    rows: Rows
    blocks: np.ndarray  # [M, 2], the first row of each block and the row after its last, in a fixed random order
    x: np.ndarray  # some of the examples, [at most 10,000, *shape], uint8 or float32, for `vae.init`
    range: tuple[float, float]  # smallest and largest value of the file, as stored: bytes 0 to 255, or floats
    fingerprint: str  # 16 hex digits of the SHA-256 of the file's shape, type and values

    @property
    def num_examples(self) -> int:
        return _num_rows(self.blocks)


def open_stream(rows: Rows, validation_size: int) -> tuple[Stream, np.ndarray, np.ndarray]:
    """Open the training examples of a file, and load x of its validation and test splits into memory.

    The blocks of the file are taken in a fixed random order. The last rows in this order are the test split: a tenth of
    the file, but at most 10,000 rows and 256 MiB of float32. The `validation_size` rows before them are the validation
    split. The test split thus depends only on the number of rows and the size of a row. For fewer than 2,000 rows it is
    the same as the test split of `datasets.load`.

    The file is read once, for its fingerprint and its range. Raises UserError if its values cannot be trained on.
    """
    num, source = rows.shape[0], _source(rows)
    size = max(1, min(BLOCK_BYTES // rows.row_bytes, num // 1000))
    starts = np.arange(0, num, size)
    blocks = np.stack([starts, np.minimum(starts + size, num)], 1)[permutation(len(starts))]
    rest, test = _split_blocks(blocks, num - num_test(rows))
    train, validation = _split_blocks(rest, num - num_test(rows) - validation_size)
    value_range, fingerprint = _read_through(rows, source)
    few, _ = _split_blocks(train, min(_num_rows(train), _max_kept(rows)))
    # Shuffle the rows, because the rows of a block may be alike and pictures show the first examples of a split.
    x, held_out, tested = (_read(rows, part)[permutation(_num_rows(part))] for part in (few, validation, test))
    return Stream(rows, train, x, value_range, fingerprint), held_out, tested


def num_test(rows: Rows) -> int:
    """The size of the test split."""
    return min(max(1, rows.shape[0] // 10), _max_kept(rows))


def make_batches(stream: Stream, batch_size: int, key: Sequence[int]) -> Callable[[int, int], np.ndarray]:
    """Make batches(first, count) -> [count, batch_size, *shape], as stored: the batches of `count` steps from `first`.

    The order depends only on the key (whole numbers below 2^32) and the epoch. An epoch takes the blocks in a random
    order, cuts this order into windows of 64 MiB, and shuffles the rows of each window. (A smaller file is one window.)
    It uses every example once, except the last few if they do not fill a batch. Rows that are neighbours in the file
    are thus in one window in every epoch, but seldom in one batch. Only the last window is kept in memory.
    """
    blocks, num = stream.blocks, stream.num_examples
    shape, dtype = stream.x.shape[1:], stream.x.dtype
    per_window = max(1, int(WINDOW_BYTES / (num / len(blocks)) / stream.rows.row_bytes))
    per_epoch = num // batch_size * batch_size

    def random(epoch: int, draw: int) -> np.random.RandomState:
        return np.random.RandomState([*key, epoch, draw])

    @lru_cache(maxsize=1)
    def windows(epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the blocks of each window, and how many examples of the epoch come before each window."""
        order = blocks[random(epoch, 0).permutation(len(blocks))]
        split = [order[start : start + per_window] for start in range(0, len(order), per_window)]
        return split, np.cumsum([0, *map(_num_rows, split[:-1])])

    window: dict[tuple[int, int], np.ndarray] = {}

    def examples(epoch: int, start: int, count: int) -> np.ndarray:
        """Return the examples of an epoch from `start` on: at most `count`, and all from one window."""
        split, before = windows(epoch)
        number = int(np.searchsorted(before, start, "right")) - 1
        if (epoch, number) not in window:
            window.clear()  # frees the old window before the new one is read
            window[epoch, number] = _read(stream.rows, split[number][np.argsort(split[number][:, 0])])
        x = window[epoch, number]
        order = random(epoch, number + 1).permutation(len(x))
        return x[order[start - before[number] :][:count]]

    def batches(first: int, count: int) -> np.ndarray:
        out = np.empty((count * batch_size, *shape), dtype)
        filled = 0
        while filled < len(out):
            epoch, start = divmod(first * batch_size + filled, per_epoch)
            part = examples(epoch, start, min(len(out) - filled, per_epoch - start))
            out[filled : filled + len(part)] = part
            filled += len(part)
        return out.reshape(count, batch_size, *shape)

    return batches


def steps_per_chunk(stream: Stream, batch_size: int) -> int:
    """How many batches to send to the device in one call: 16 MiB, but at least one batch and at most one epoch."""
    return max(1, min(CHUNK_BYTES // (batch_size * stream.x[0].nbytes), stream.num_examples // batch_size))


def read_ahead(read: Callable[[int], Any], depth: int = 2) -> Callable[[int], Any]:
    """Wrap `read`, a pure function of 0, 1, 2, ..., so that a thread computes the next `depth` results in advance.

    If `read` raises an exception for a number, the exception is raised when that number is asked for.
    """
    pool, futures = ThreadPoolExecutor(1), dict[int, Future[Any]]()

    def get(number: int) -> Any:
        wanted = range(number, number + depth + 1)
        for other in futures.keys() - set(wanted):
            futures.pop(other).cancel()
        for each in wanted:
            if each not in futures:
                futures[each] = pool.submit(read, each)
        return futures[number].result()

    return get


def _read_through(rows: Rows, source: str) -> tuple[tuple[float, float], str]:
    """Read and check a whole file. Returns its range and its fingerprint."""
    digest = hashlib.sha256(f"{rows.shape}{rows.dtype.str}".encode())
    low, high = float("inf"), -float("inf")
    missing, first = 0, list[int]()
    wrong, where, value = 0, list[int](), 0.0
    size = max(1, READ_BYTES // rows.row_bytes)
    # The bar appears after two seconds.
    for start in progress.bar(range(0, rows.shape[0], size), delay=2, desc=f"reading {rows.path.name}"):
        block = np.array([[start, min(start + size, rows.shape[0])]])
        stored = rows.read(block)
        digest.update(stored.data)
        x = convert(stored, rows.how)
        count, index = _not_finite(x, block, rows)
        missing, first = missing + count, first or index
        if rows.how.counts:
            count, index, number = not_counts(stored)
            if count and not wrong:
                where, value = _in_file(index, block), number
            wrong += count
        seen = stored if stored.dtype.kind in "ui" else x
        least, most = extremes(seen)
        low, high = min(low, least), max(high, most)
    check_finite(missing, first, len(rows.shape), source, not rows.how.missing)
    check_counts(wrong, where, value, len(rows.shape), source)
    if rows.how.counts and rows.dtype.kind != "b":
        log_counts(float(high), rows.dtype, source)
    elif rows.dtype.kind in "ui":
        check_integers(int(low), int(high), rows.shape, rows.dtype, source)
        log_integers(int(low), int(high), rows.shape, rows.dtype, source)
    return (low, high), digest.hexdigest()[:16]


def _read(rows: Rows, blocks: np.ndarray) -> np.ndarray:
    x = convert(rows.read(blocks), rows.how)
    check_finite(*_not_finite(x, blocks, rows), len(rows.shape), _source(rows), not rows.how.missing)
    return x


def _not_finite(x: np.ndarray, blocks: np.ndarray, rows: Rows) -> tuple[int, list[int]]:
    """Count the values that are not finite. Returns the count and the index in the file of the first such value."""
    count, first = not_finite(x, rows.how.missing)
    return count, _in_file(first, blocks) if count else []


def _in_file(index: list[int], blocks: np.ndarray) -> list[int]:
    """The index in the file of a value of the rows of `blocks`."""
    return [int(np.concatenate([np.arange(*b) for b in blocks])[index[0]]), *index[1:]]


def _source(rows: Rows) -> str:
    return f"x of {str(rows.path)!r}"


def _max_kept(rows: Rows) -> int:
    return max(1, min(MAX_KEPT, KEPT_BYTES // (4 * prod(rows.shape[1:]))))


def _num_rows(blocks: np.ndarray) -> int:
    """How many rows the blocks hold."""
    return int(np.sum(blocks[:, 1] - blocks[:, 0]))


def _split_blocks(blocks: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Split blocks into blocks of the first `num` rows (at least one) and blocks of the other rows."""
    ends = np.cumsum(blocks[:, 1] - blocks[:, 0])
    last = int(np.searchsorted(ends, num))  # the block that is cut
    at = blocks[last, 1] - (ends[last] - num)
    before, after = blocks[: last + 1].copy(), blocks[last:].copy()
    before[-1, 1] = after[0, 0] = at
    return before, after[after[:, 0] < after[:, 1]]
