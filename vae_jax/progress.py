"""What a person sees on stderr while a program runs: the lines of a log above a progress bar."""

import sys
from collections.abc import Iterable
from typing import Any


def say(line: str) -> None:
    """Print one line of the log on stderr, above the progress bar."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


def plural(number: int, word: str) -> str:
    """The number with its noun: 1 row, 2 rows."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def bar(steps: Iterable[Any] | None = None, **kwargs: Any) -> Any:
    """A progress bar on stderr, which is drawn only in a terminal."""
    from tqdm import tqdm

    return tqdm(steps, disable=None, dynamic_ncols=True, leave=False, **kwargs)
