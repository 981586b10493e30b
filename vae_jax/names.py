"""Finds the part that a config names: a function of this package, or code from outside it.

`FILE.py:NAME` is a function in a file, `MODULE:NAME` a function in an importable module. Both are code from outside.
"""

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

from vae_jax.config import PARTS, Config, check_option, unknown
from vae_jax.errors import UserError


def outside(config: Config) -> dict[str, str]:
    """The fields of a config that name code from outside, with their values.

    The optimisers in the modules of optax are not from outside.
    """
    named = {field: name for field in PARTS if ":" in (name := getattr(config, field))}
    return {field: name for field, name in named.items() if not (field == "optimizer" and _is_of_optax(name))}


def absolute(config: Config) -> Config:
    """The config with the absolute paths of the files that it names."""
    return _moved(config, lambda path: os.path.abspath(os.path.expanduser(path)))


def portable(config: Config) -> Config:
    """The config as a run directory keeps it: without the folders of the files that it names."""
    return _moved(config, os.path.basename)


def inside(config: Config, folder: Path) -> Config:
    """The config with the files that it names in `folder`, whatever folder it names."""
    return _moved(config, lambda path: str(folder.absolute() / os.path.basename(path)))


def sources(config: Config) -> dict[str, bytes]:
    """The files and modules of the code from outside: by the name of the file or module, what it contains.

    UserError if two files have one name.
    """
    contents: dict[str, bytes] = {}
    for field, name in outside(config).items():
        where = name.rpartition(":")[0]
        known = os.path.basename(where) if _is_file(where) else where
        content = _read(where) if _is_file(where) else _source_of(_import(where))
        if contents.setdefault(known, content) != content:
            raise UserError(
                f"{field} is {name}, and another file of the config is named {known} too. Rename one of them."
            )
    return contents


def digests(config: Config) -> dict[str, str]:
    """The SHA-256 of each of the `sources`."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in sources(config).items()}


def find(name: str) -> Any:
    """What `FILE.py:NAME` or `MODULE:NAME` is. This runs the file or module. UserError if there is no such name."""
    where, _, attribute = name.rpartition(":")
    module = _execute(os.path.abspath(where), _read(where)) if _is_file(where) else _import(where)
    if hasattr(module, attribute):
        return getattr(module, attribute)
    functions = sorted(n for n, f in vars(module).items() if n[0] != "_" and callable(f))
    raise unknown(f"name in {where}:", attribute, tuple(functions) or ("(it defines no function)",))


@contextmanager
def explained(*names: str) -> Iterator[None]:
    """Within it, an exception becomes a UserError that says in which line of the code of `names` it was raised."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        files = {_file_of(name) for name in names}
        frames = [(frame.f_code.co_filename, n) for frame, n in walk_tb(error.__traceback__)]
        lines = [f"{file}, line {n}" for file, n in frames if file in files]
        if isinstance(error, SyntaxError) and error.filename in files:
            lines.append(f"{error.filename}, line {error.lineno}")
        message = " ".join(str(error).split()).rstrip(".")
        see = f"See {lines[-1]}" if lines else "Change the code or the config"
        raise UserError(f"{', '.join(names)} failed: {type(error).__name__}: {message}. {see}.") from error


def accepted(function: Callable[..., Any], num_args: int) -> dict[str, Any] | None:
    """The options that a function takes after `num_args` arguments, with their annotations. None: any options."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a function of another language tells nothing
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    named = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    return {p.name: p.annotation for p in (*positional[num_args:], *named)}


def make(
    family: ModuleType, kind: type, name: str, /, *args: Any, offered: Mapping[str, Any] | None = None, **options: Any
) -> Any:
    """The part `name`: a function in `NAMES` of `family`, or from outside, called with `args` and `options`.

    kind: the type of what it returns. offered: options that a function from outside need not take. Raises UserError if
    there is no such function or option, if the function fails, or if it returns something else.
    """
    what, offered = kind.__name__.lower(), offered or {}
    if ":" in name:
        function = find(name)
    elif name in family.NAMES:
        function = getattr(family, name)
    else:
        raise unknown(what, name, family.NAMES)
    if not callable(function):
        raise UserError(
            f"{what} is {name}, a {type(function).__name__}; expected a function that returns a {kind.__name__}."
        )
    known = accepted(function, len(args))
    options = {**{n: v for n, v in offered.items() if known is None or n in known or ":" not in name}, **options}
    for option in options:
        if known is not None and option not in known:
            raise UserError(f"{what} {name!r} has no option {option!r}. Its options: {', '.join(known) or 'none'}.")
    if ":" in name:
        with explained(name):
            part = function(*args, **options)
        if not isinstance(part, kind):
            raise UserError(f"{name} returned a {type(part).__name__}; expected a {kind.__module__}.{kind.__name__}.")
        return part
    try:
        options = {option: check_option(option, value, (known or {})[option]) for option, value in options.items()}
        return function(*args, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} {name!r}: {error}") from None


def _moved(config: Config, move: Callable[[str], str]) -> Config:
    parts = {field: name.rpartition(":") for field, name in outside(config).items()}
    moved: dict[str, Any] = {field: f"{move(w)}:{n}" for field, (w, _, n) in parts.items() if _is_file(w)}
    return replace(config, **moved)


def _is_of_optax(name: str) -> bool:
    where = name.rpartition(":")[0]
    return where.split(".")[0] == "optax" and not _is_file(where)


def _is_file(where: str) -> bool:
    return where.endswith(".py")


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Give the path of a Python file.") from None


@lru_cache(maxsize=64)
def _execute(path: str, content: bytes) -> ModuleType:
    """The module that the contents of a file make. They run once per process."""
    module = ModuleType(f"{Path(path).stem}_{hashlib.sha256(path.encode() + content).hexdigest()[:8]}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # where dataclasses look up their annotations
    with explained(path):
        exec(compile(content, path, "exec"), module.__dict__)
    return module


def _import(name: str) -> ModuleType:
    with explained(name):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(f"{error.name}.")):
                raise UserError(
                    f"There is no module {name!r}. Give an importable module, or the path of a file that ends in .py."
                ) from None
            raise


def _source_of(module: ModuleType) -> bytes:
    file = getattr(module, "__file__", None)
    return Path(file).read_bytes() if file else b""


def _file_of(name: str) -> str:
    """The file of code from outside, by the name of the code or of something in it."""
    where = name.rpartition(":")[0] or name
    if _is_file(where):
        return os.path.abspath(where)
    return getattr(sys.modules.get(where), "__file__", None) or where
