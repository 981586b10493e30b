"""Copy metrics.jsonl for TensorBoard: RUN_DIR/tensorboard/SPLIT has one point for each metric of each record.

A resumed run writes these event files anew, because its metrics.jsonl goes back to its checkpoint.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vae_jax.run import metrics


@contextmanager
def mirror(run_dir: Path, wanted: bool) -> Iterator[Callable[[], None]]:
    """Yield a function that copies the new records of metrics.jsonl. The end of the block copies them too.

    The first call replaces the event files of an earlier process. Nothing is copied unless `wanted` is true.
    """
    folder, writers, written = run_dir / "tensorboard", dict[str, Any](), 0

    def copy() -> None:
        nonlocal written
        records = metrics.read(run_dir)
        if not written:
            for old in folder.glob("*/events.out.tfevents.*"):
                old.unlink()
        for record in records[written:]:
            split = record["split"]
            if split not in writers:
                writers[split] = _open(folder / split)
            writers[split].write_event(_event(record))
        for writer in writers.values():
            writer.flush()
        written = len(records)

    if not wanted:
        yield lambda: None
        return
    try:
        yield copy
        copy()
    finally:
        for writer in writers.values():
            writer.close()


def _open(folder: Path) -> Any:
    # Not SummaryWriter: it writes from a thread, which dies silently on an error, and then every call blocks.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    folder.mkdir(parents=True, exist_ok=True)
    writer = EventsWriter(str(folder / "events"))
    # START makes a TensorBoard that has read earlier files forget their points.
    writer.write_event(Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)))
    return writer


def _event(record: dict[str, Any]) -> Any:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    numbers = {k: v for k, v in record.items() if k not in ("step", "split") and v is not None}
    values = [Summary.Value(tag=k, simple_value=v) for k, v in numbers.items()]
    return Event(wall_time=time.time(), step=record["step"], summary=Summary(value=values))
