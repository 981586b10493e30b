"""What the benchmarks share: contenders in turn, each in its own process; medians, ranges and ratios in a table."""

import argparse
import importlib
import importlib.metadata
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

import numpy as np

from vae_jax.cli.console import num_cores, positive

Run = Callable[[], float]  # runs once and gives what was measured: a rate, or seconds
INSTALL = "python -m pip install -e '.[benchmark]'"
VERSIONS = ("jax", "jaxlib", "torch", "pythae")


class Prepared(NamedTuple):
    """What a contender is before it is measured."""

    run: Run
    num_params: int | None = None  # of its network, where that is to equal ours
    choice: str = ""  # which of its variants was the fastest


class Unavailable(Exception):
    """A contender that cannot run here, and why."""


class Contender:
    """`Prepared.run` of the function `path`, called again and again in a process of its own.

    So neither the threads nor the memory of one contender disturb another. path: a module beside this file and a
    function of it, such as "ours.training", that gives a `Prepared`. Its first run, which compiles, is not counted.
    """

    def __init__(self, path: str, **arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, path, arguments))
        self._process.start()
        theirs.close()
        self.num_params, self.choice = self._receive()
        self.peak_memory = 0  # bytes

    def __call__(self) -> float:
        self._pipe.send(None)
        value, self.peak_memory = self._receive()
        return value

    def close(self) -> None:
        self._pipe.close()
        self._process.join()

    def _receive(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            answer = "its process died"
        if isinstance(answer, str):
            self.close()
            raise Unavailable(answer)
        return answer


def _serve(pipe: Any, path: str, arguments: dict[str, Any]) -> None:
    module, name = path.split(".")
    try:
        prepared = getattr(importlib.import_module(module), name)(**arguments)
        prepared.run()
        pipe.send((prepared.num_params, prepared.choice))
    except ModuleNotFoundError as error:
        pipe.send(f"{error}; {INSTALL}")
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}".splitlines()[0])
    else:
        while _asked(pipe):
            pipe.send((prepared.run(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def _asked(pipe: Any) -> bool:
    try:
        return pipe.recv() is None
    except EOFError:  # the benchmark is over
        return False


def alone(path: str, *arguments: Any) -> Any:
    """What the function `path`, such as "ours.training", gives in a process of its own, which then ends.

    Raises Unavailable where a package that it needs is not installed.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_called, path, arguments).result()
        except ModuleNotFoundError as error:
            raise Unavailable(f"{error}; {INSTALL}") from None


def _called(path: str, arguments: tuple[Any, ...]) -> Any:
    module, name = path.split(".")
    return getattr(importlib.import_module(module), name)(*arguments)


def alternate(runs: Mapping[str, Run], repeats: int) -> dict[str, list[float]]:
    """The values of each run, called in turn, `repeats` times."""
    rounds = [[run() for run in runs.values()] for _ in range(repeats)]
    return {name: list(values) for name, values in zip(runs, zip(*rounds, strict=True), strict=True)}


def fastest(variants: Mapping[str, Run]) -> tuple[str, Run]:
    """The name and the run of the variant with the highest rate in two runs after the first."""
    for run in variants.values():
        run()
    values = alternate(variants, 2)
    name = max(values, key=lambda name: max(values[name]))
    return name, variants[name]


def compare(title: str, entrants: Mapping[str, tuple[str, dict[str, Any]]], options: argparse.Namespace) -> None:
    """Print a row for each entrant but the first, which is ours and takes turns with each of the others.

    entrants: name -> (path, arguments) of its `Contender`; the row's name is "title: name".
    """
    (_, first), *others = entrants.items()
    rows = {f"{title}: {name}": entrant for name, entrant in others if options.only in f"{title}: {name}"}
    with ExitStack() as stack:
        ours = None
        for row, entrant in rows.items():
            try:
                ours = ours or stack.enter_context(open_contender(*first))
                with open_contender(*entrant) as other:
                    values = alternate({"ours": ours, "other": other}, options.repeats)
                    print_row(row, *_against(ours, other, values["ours"], values["other"]))
            except Unavailable as reason:
                print_row(row, f"skipped: {reason}", *[""] * 4)


def open_contender(path: str, arguments: dict[str, Any]) -> closing[Contender]:
    return closing(Contender(path, **arguments))


def _against(ours: Contender, other: Contender, rates: list[float], other_rates: list[float]) -> list[str]:
    if None not in (ours.num_params, other.num_params) and ours.num_params != other.num_params:
        raise Unavailable(f"it has {other.num_params:,} parameters, ours {ours.num_params:,}")
    chosen = f", {other.choice}" if other.choice else ""
    peaks = [f"{contender.peak_memory / 1e6:,.0f}" for contender in (ours, other)]
    return [
        spread(rates),
        spread(other_rates) + chosen,
        spread([a / b for a, b in zip(rates, other_rates, strict=True)]),
        number(max(rates) / max(other_rates)),
        " / ".join(peaks),
    ]


def spread(values: Sequence[float]) -> str:
    """The median and the range."""
    return f"{number(statistics.median(values))} ({number(min(values))} to {number(max(values))})"


def number(value: float) -> str:
    """Three digits, or all digits of a whole number."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The p of the power law cost = c * size^p that fits best: least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def check_some(names: Iterable[str], options: argparse.Namespace) -> None:
    """Exit if --only names none of the rows."""
    names = list(names)
    if not any(options.only in name for name in names):
        raise SystemExit(f"error: No row contains {options.only!r}. The rows:\n  " + "\n  ".join(names))


def print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def print_header(*cells: str) -> None:
    print_row(*cells)
    print_row(*("---" for _ in cells))


def print_machine(options: argparse.Namespace) -> None:
    device = "import jax; print(jax.devices()[0].device_kind)"
    device = subprocess.run([sys.executable, "-c", device], capture_output=True, text=True, check=True).stdout.strip()
    versions = [f"{name} {version(name)}" for name in VERSIONS]
    cores = f"{num_cores()} of {os.cpu_count()} cores"
    print(f"{device}, {cpu()}, {cores}; Python {platform.python_version()}, {', '.join(versions)}")
    print(f"Medians of {options.repeats} (range), in turn; load average {load_average()}\n", flush=True)


def cpu() -> str:
    """The name of the CPU, on Linux; elsewhere its architecture."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def load_average() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def images(num: int, side: int = 28) -> np.ndarray:
    """Random grey images, a fifth of whose pixels are not black: [num, side, side, 1], uint8."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (num, side, side, 1), np.uint8)
    x *= rng.integers(0, 5, x.shape, np.uint8) == 0
    return x


def parse(text: str | None, *, full: str = "") -> argparse.Namespace:
    """The flags of a benchmark. full: what --full adds."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=positive, default=5, help="(%(default)s)")
    parser.add_argument("--cores", type=positive, help="use so many of the CPU's cores (Linux); by default all")
    parser.add_argument("--only", metavar="PATTERN", default="", help="only the rows whose name contains this")
    if full:
        parser.add_argument("--full", action="store_true", help=full)
    options = parser.parse_args()
    if options.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])  # and so of every process begun here
    return options
