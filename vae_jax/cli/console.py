"""What all commands share: flags, errors on one line, stop signals and the compilation cache.

Only `setup_jax` imports jax, so that a wrong flag is reported at once.
"""

import argparse
import difflib
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from importlib.util import find_spec
from itertools import product
from math import inf
from pathlib import Path
from typing import Any, NoReturn

from vae_jax import __version__, names
from vae_jax.config import MAX_WHOLE, Config, digits, load_recipe, override
from vae_jax.errors import UserError

MAX_LINE = 2000  # characters in an error: a longer line hides what to do


class Parser(argparse.ArgumentParser):
    """A parser that raises UserError for a wrong flag, which becomes one line that begins with `error:`."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, **kwargs)

    def add_version(self) -> None:
        self.add_argument("--version", action="version", version=f"vae_jax {__version__}")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See {self.prog} --help.")

    def parse_args(self, args=None, namespace=None):
        known, rest = self.parse_known_args(args, namespace)
        if rest:
            flag, parser = rest[0].split("=")[0], self._of_command(known)
            flags = [option for action in parser._actions for option in action.option_strings]
            close = difflib.get_close_matches(flag, flags, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            kind = "flag" if flag.startswith("-") else "argument"
            raise UserError(f"Unknown {kind} {flag}.{hint} See {parser.prog} --help.")
        return known

    def _of_command(self, known: argparse.Namespace) -> argparse.ArgumentParser:
        """The parser of the command that was given; this parser itself if it has no commands."""
        commands = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return commands[0].choices[known.command] if commands else self


TRAIN = "Train a VAE and write a run directory. The same command on an existing run resumes it."


def parse_train(argv: list[str], folder: Path = Path()) -> argparse.Namespace:
    """Parse the flags of train.py, as `finish_train` returns them. folder: where train.py is."""
    parser = Parser(prog="train.py", description=TRAIN)
    parser.add_version()
    add_train_flags(parser)
    parser.set_defaults(command="train")
    return finish_train(parser.parse_args(argv), folder)


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    text = "The run directory. Default: checkpoints/NAME_OF_RECIPE."
    parser.add_argument("--workdir", metavar="DIR", type=run_folder, help=text)
    parser.add_argument("--tensorboard", action="store_true", help="Write the metrics to DIR/tensorboard too.")
    add_config_flags(parser)
    group = parser.add_argument_group("several processes (each gets the same command, but for --process_id)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="Where process 0 listens. auto: ask the cluster.")
    group.add_argument("--num_processes", type=positive, metavar="N", help="The number of processes.")
    group.add_argument("--process_id", type=natural, metavar="I", help="The number of this process, from 0.")


def finish_train(options: argparse.Namespace, folder: Path) -> argparse.Namespace:
    """Check the flags of a training. Then `config` is a Config and `workdir` a Path, by default below `folder`."""
    _check_processes(options)
    if options.tensorboard and find_spec("tensorboardX") is None:
        raise UserError("--tensorboard needs the package tensorboardX. Install it: python -m pip install tensorboardX")
    if options.workdir is None:
        options.workdir = folder / "checkpoints" / (Path(options.config).stem if options.config else "digits")
    options.defaults = Config() if options.config else digits()  # of fields that nobody set
    options.config = config_of(options)
    return options


def _check_processes(options: argparse.Namespace) -> None:
    own = (options.num_processes, options.process_id)
    if options.coordinator in (None, "auto"):
        if own != (None, None):
            raise UserError("--num_processes and --process_id need --coordinator too. Give its HOST:PORT.")
        return
    if None in own:
        raise UserError("--coordinator=HOST:PORT needs --num_processes and --process_id. On a cluster try auto.")
    host, colon, port = options.coordinator.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"--coordinator is {options.coordinator!r}; expected HOST:PORT, as in 10.0.0.1:9999, or auto.")
    if options.process_id >= options.num_processes:
        raise UserError(
            f"--process_id is {options.process_id}; expected less than the {options.num_processes} of --num_processes."
        )


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what to train. `config_of` makes a Config from their values."""
    text = (
        "The recipe: a Python file with get_config(). Its relative paths lead from its own folder first. Default: the "
        "settings for the digits."
    )
    parser.add_argument("--config", metavar="FILE", help=text)
    parser.add_argument(
        "--data_dir", metavar="DIR", help="Where tensorflow-datasets keeps data. Default: TFDS_DATA_DIR."
    )
    parser.add_argument("--restart", action="store_true", help="Move an existing run aside and begin anew.")
    add_cache_flag(parser)
    group = parser.add_argument_group("fields of the config, with the default of a recipe that does not set them")
    for f in fields(Config):
        choices = f" One of: {', '.join(f.metadata['choices'])}." if f.metadata["choices"] else ""
        text = f"{f.metadata['doc']}{choices} Default: {getattr(Config(), f.name)!r}.".replace("%", "%%")
        group.add_argument(f"--config.{f.name}", metavar="VALUE", default=argparse.SUPPRESS, help=text)


def config_of(options: argparse.Namespace) -> Config:
    """Load the recipe that the flags name, and change the fields that the flags set."""
    prefix = "config."
    values = {name.removeprefix(prefix): text for name, text in vars(options).items() if name.startswith(prefix)}
    return names.absolute(override(digits() if options.config is None else load_recipe(options.config), values))


def parse_members(options: argparse.Namespace) -> list[Config]:
    """The configs of a sweep: every combination of --betas, --learning_rates and --seeds."""
    config, axes = config_of(options), []
    swept = {"betas": "beta", "learning_rates": "learning_rate", "seeds": "seed"}
    for flag, name in swept.items():
        values = getattr(options, flag)
        if values and f"config.{name}" in options:
            raise UserError(f"--{flag} and --config.{name} set the same field. Give one of them.")
        axes.append(values or (getattr(config, name),))
    return [replace(config, **dict(zip(swept.values(), values, strict=True))) for values in product(*axes)]


def several(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Type of a flag: different numbers of `kind`, separated by commas."""

    def parse(text: str) -> tuple[Any, ...]:
        with suppress(ValueError):
            values = tuple(kind(part) for part in text.split(","))
            if len(set(values)) == len(values):
                return values
        what = "whole numbers" if kind is int else "numbers"
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different {what} separated by commas")

    return parse


def positive(text: str) -> int:
    """Type of a flag: a whole number of at least 1."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """Type of a flag: a whole number of at least 0."""
    return _whole(text, 0)


def port(text: str) -> int:
    """Type of a flag: the number of a port, or 0."""
    if (number := natural(text)) >= 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**16 - 1}")
    return number


def path(text: str) -> Path:
    """Type of a flag: a file or folder, which need not exist."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a file or folder")
    return Path(text)


def run_folder(text: str) -> Path:
    """Type of a flag: the folder of a run, which need not exist."""
    try:
        str(path(text).absolute()).encode()
    except UnicodeEncodeError:  # the libraries that write checkpoints need UTF-8
        reason = f"{text!r} is not UTF-8 with the folders above it; expected a name that is"
        raise argparse.ArgumentTypeError(reason) from None
    return Path(text)


def output(*endings: str) -> Callable[[str], Path]:
    """Type of a flag: a file to write, whose name has one of these endings."""

    def parse(text: str) -> Path:
        if path(text).suffix.lower() not in endings:
            raise argparse.ArgumentTypeError(f"{text!r} has another ending than expected: {' or '.join(endings)}")
        return Path(text)

    return parse


def extent(text: str) -> float:
    """Type of a flag: a finite number above 0."""
    with suppress(ValueError):
        if 0 < float(text) < inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a finite number above 0")


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or not least <= int(text) <= MAX_WHOLE:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {MAX_WHOLE}")
    return int(text)


def num_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def add_cache_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no_compilation_cache",
        action="store_true",
        help="Do not keep compiled programs for the next start.",
    )


def setup_jax(options: argparse.Namespace) -> None:
    """Import jax and, if there are several processes, connect them.

    Compiled programs are kept for the next start, in the user's cache unless JAX is configured to keep them elsewhere.
    XLA divides a program among the cores that it finds, and JAX's key of a program does not say how many these were.
    So programs for another number of cores are in another folder.
    """
    import jax

    if options.no_compilation_cache:
        jax.config.update("jax_compilation_cache_dir", None)
    elif not jax.config.values.get("jax_compilation_cache_dir"):
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(caches / "vae_jax" / "xla" / f"{num_cores()}-cores"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if getattr(options, "coordinator", None):
        where = None if options.coordinator == "auto" else options.coordinator
        try:
            jax.distributed.initialize(where, options.num_processes, options.process_id)
        except (RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"The processes did not meet at {options.coordinator} ({reason}).") from None


def script(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run `main`, then end the process with its exit status. Any encoding of the terminal works."""
    if sys.getfilesystemencoding() != "utf-8" and "utf8" not in sys._xoptions:  # tensorstore needs UTF-8 names
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Where a file cannot be written or read, threads that still work on others complain by pages, after the one line.
    sys.unraisablehook = lambda _: None
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.exit(run(main))


def run(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> int:
    """Call `main` with the command line and return the exit status. Bad input gives one line on stderr and status 2."""
    try:
        return main(sys.argv[1:] if argv is None else argv) or 0
    except UserError as error:
        return _refuse(str(error))
    except BrokenPipeError:  # the program that reads stdout has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:  # a full disk, or a folder that has vanished or is not writable
        where = f"{error.filename}: " if error.filename else ""
        code = _refuse(f"{where}{error.strerror or error}. Make room or access there, and give the command again.")
        if (jax := sys.modules.get("jax")) and jax.process_count() > 1:
            os._exit(code)  # a normal exit would wait for the other processes, which wait for this one
        return code
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "out of memory" not in str(error).lower():  # the words of XLA
            raise
        return _refuse(f"Out of memory ({str(error)[:200]}). Ask for less at once: smaller layers, batches or numbers.")
    except KeyboardInterrupt:
        return 130


def _refuse(message: str) -> int:
    """Print an error as one line on stderr, with unprintable characters escaped. Returns the exit status 2."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
    if len(line) > MAX_LINE:
        line = f"{line[: MAX_LINE // 2]} ... {line[-MAX_LINE // 2 :]}"
    print(f"error: {line}", file=sys.stderr)
    return 2


def write(path: Path, save: Callable[[Path], Any], flag: str = "--out") -> str:
    """Call `save(path)` and return the path as text. Raises UserError, which names the flag, if it fails."""
    try:
        save(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}). Choose another file with {flag}.") from None
    return str(path)


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Within the block, SIGTERM and the first Ctrl-C do not stop the program. A later Ctrl-C does.

    Yields a function that returns 0, or after a signal the exit status of a process that is ended by that signal: 143
    for SIGTERM, 130 for Ctrl-C.
    """
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: 128 + received[0] if received else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
