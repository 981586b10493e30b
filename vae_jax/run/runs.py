"""Open and check run directories. Only one process at a time can train in a run directory.

code/            copies of the files of code from outside that the config names
run.json         config, data (shapes, sizes, fingerprint), versions, and a digest of all this
metrics.jsonl    one evaluation per line; a resumed run restores it from its checkpoint
checkpoints/     see checkpoints.py
"""

import json
import operator
import os
import shlex
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from math import isfinite, prod
from pathlib import Path
from typing import IO, Any

from vae_jax import names, progress
from vae_jax.config import MAX_WHOLE, Config, differences, from_json, to_json
from vae_jax.data.files import leads_outside, write_whole
from vae_jax.data.inputs import DataInfo
from vae_jax.data.scaling import Scaling
from vae_jax.errors import UserError
from vae_jax.run import digests

FORMAT = 4
MAX_RUN_BYTES = 4 << 20  # of run.json, which has a few thousand bytes, or more if there are many classes
MAX_LISTED = 8  # names in an error
MAX_VALUES = 2**28  # in one example: enough for a picture of 9,000 x 9,000 pixels in colour


@contextmanager
def open_run(
    run_dir: Path, config: Config, data: DataInfo, *, restart: bool = False, is_member: bool = False
) -> Iterator[None]:
    """Begin a run directory, or open an existing run to continue it. Other processes are kept out within the block.

    An existing run continues only with the same config and data. More epochs count as the same config unless the
    schedule of the learning rate depends on their number. A run that holds only run.json and metrics.jsonl begins anew
    with any config. restart: move an existing run aside first. is_member: the run is one of a sweep. Raises UserError,
    which names the fields that differ, or says that another process trains there.
    """
    path, sources, portable = run_dir / "run.json", names.sources(config), names.portable(config)
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"{run_dir} cannot be written (it is a file). Choose another directory.")
    if not _is_new(run_dir):
        _check_run(run_dir)
        if restart:
            if config.init_from and run_dir.resolve() == Path(config.init_from).resolve():
                raise UserError(f"init_from is {run_dir} itself, which --restart would move aside. Choose another one.")
            with _locked(path):
                moved = move_aside(run_dir)
            print(f"moved the earlier run to {moved}", file=sys.stderr)
    _check_inside(run_dir)
    try:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{run_dir} cannot be written ({error.strerror}). Choose another directory.") from None
    with ExitStack() as stack:
        stack.enter_context(_locked(path))
        code = {name: digests.of_bytes(content) for name, content in sources.items()}
        if _is_new(run_dir) or not _is_same(run_dir, portable, data, code, is_member):
            stack.enter_context(_write_run(path, portable, data, code))
        _write_code(run_dir / "code", sources)
        for litter in (*run_dir.glob(".*.tmp"), *run_dir.glob("checkpoints/.*")):  # left by a crash
            shutil.rmtree(litter) if litter.is_dir() else litter.unlink()
        yield


def read_run(run_dir: Path) -> tuple[Config, DataInfo]:
    """Read the config and data of a run directory. Raises UserError, which says why, if it is not a run directory.

    Files of code from outside stand in the config without their folders. `trusted` puts the copies in their place.
    """
    return _read(run_dir)[:2]


def read_code(run_dir: Path) -> dict[str, str]:
    """The SHA-256 of the files and modules of code from outside that a run uses, by their names."""
    return _read(run_dir)[2]


def trusted(run_dir: Path, config: Config, trust: bool) -> Config:
    """The config with the copies of its code from outside in RUN_DIR/code, so that a model can be built from it.

    Nothing of the code has run yet. Raises UserError if the model has such code and neither `trust` nor VAE_JAX_TRUST=1
    is given, or if a copy is not the one that the run was trained with. Only training needs the code of an optimiser.
    """
    trust = trust or os.environ.get("VAE_JAX_TRUST") == "1"
    code = {n.rpartition(":")[0] for field, n in names.outside(config).items() if trust or field != "optimizer"}
    if not code:
        return config
    shown = ", ".join(sorted(f"code/{name}" if name.endswith(".py") else f"the module {name}" for name in code))
    if not trust:
        raise UserError(f"{run_dir} uses {shown}. Read it, then add --trust to run it; from Python, trust=True.")
    expected, config = read_code(run_dir), names.inside(config, run_dir / "code")
    for name in sorted(code):
        copy = run_dir / "code" / name
        if name.endswith(".py") and not (copy.is_file() and digests.of_bytes(copy.read_bytes()) == expected.get(name)):
            what = "differs from its digest in run.json" if copy.is_file() else "is missing"
            raise UserError(f"{copy} {what}: it is not run. Put the file there that the run was trained with.")
    for name, digest in names.digests(replace(config, optimizer="adam")).items():
        if digest != expected.get(name):
            progress.say(f"{run_dir}: the module {name} is not the one that the run was trained with")
    return config


def _read(run_dir: Path) -> tuple[Config, DataInfo, dict[str, str]]:
    path = run_dir / "run.json"
    _check_run(run_dir)
    _check_inside(run_dir)
    try:
        if path.stat().st_size > MAX_RUN_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes, and the limit is {MAX_RUN_BYTES}")
        run = json.loads(path.read_text("utf-8"))
        if run["format"] > FORMAT:
            raise UserError(f"{path} has format {run['format']}; this version reads {FORMAT}. Update vae_jax.")
        if run["format"] < FORMAT - 1:
            raise UserError(
                f"{path} has format {run['format']}; this version reads {FORMAT}. Train again, with --restart, or use "
                "the version that wrote it."
            )
        if run.pop("sha256") != digests.of_json(run):
            raise ValueError("it differs from its digest")
        if run["format"] < FORMAT:
            _upgrade(run)
        code = {str(name): str(digest) for name, digest in run.get("code", {}).items()}
        return from_json(run["config"]), _checked(DataInfo(**run["data"])), code
    except UserError as error:
        raise UserError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise UserError(f"{path} is damaged ({reason}). Train again, with --restart or in another directory.") from None


def _upgrade(run: dict[str, Any]) -> None:
    """Convert the contents of a run.json of format 3 to the current format, in place."""
    number = run["data"].pop("num_classes")
    run["data"]["classes"] = list(range(number)) if run["config"]["conditional"] else []
    if run["config"]["kl"] == "analytic":  # in format 3: analytic where possible
        run["config"]["kl"] = "auto"


def move_aside(run_dir: Path) -> Path:
    """Rename a run directory to the first free name of NAME.1, NAME.2, ..., and return the new path."""
    number, run_dir = 1, run_dir.resolve()
    if Path.cwd().is_relative_to(run_dir):
        raise UserError(f"{run_dir} cannot be moved aside: it is the current directory. Leave it first.")
    while (target := run_dir.with_name(f"{run_dir.name}.{number}")).exists():
        number += 1
    try:
        run_dir.rename(target)
    except OSError as error:
        raise UserError(f"{run_dir} cannot be moved aside ({error.strerror}). Choose another directory.") from None
    return target


def _is_new(run_dir: Path) -> bool:
    """Whether there is nothing, or only what is left of a run that was killed at its very beginning."""
    if not run_dir.is_dir():
        return not run_dir.exists()
    run = run_dir / "run.json"
    return not _holds_other_than(run_dir, "run.json") and not (run.exists() and run.stat().st_size)


def _holds_other_than(run_dir: Path, *ignored: str) -> bool:
    """Whether a run directory holds anything besides code, what is `ignored` and half-written files of a crash."""
    left = {path.name for path in run_dir.iterdir() if not (path.name[0] == "." and path.suffix == ".tmp")}
    return bool(left - {"checkpoints", "code", *ignored}) or any(
        p.name[0] != "." for p in (run_dir / "checkpoints").glob("*")
    )


def _check_run(run_dir: Path) -> None:
    if not (run_dir / "run.json").is_file():
        what = "has no run.json" if run_dir.is_dir() else "is not a directory"
        expected = "expected a run directory that train.py wrote, such as checkpoints/digits"
        if (run_dir / "metadata.json").is_file() and (run_dir / "params").is_dir():
            raise UserError(
                f"{run_dir} {what}, only weights that vae_jax.save wrote; {expected}. From Python, give vae_jax.load "
                "the shapes of these weights too, as like=params."
            )
        runs = sorted(path.parent.name for path in run_dir.glob("*/run.json"))
        if runs:
            more = f" and {len(runs) - MAX_LISTED} more" if len(runs) > MAX_LISTED else ""
            raise UserError(
                f"{run_dir} {what}; {expected}. It is a folder of runs: {', '.join(runs[:MAX_LISTED])}{more}. Give one "
                f"of them, such as {run_dir / runs[0]}."
            )
        raise UserError(f"{run_dir} {what}; {expected}.")


def _check_inside(run_dir: Path) -> None:
    """Raise UserError for a link out of the run directory or a device, so that nothing outside it is changed."""
    for folder, folders, files in os.walk(run_dir):
        for name in (*folders, *files):
            path = Path(folder, name)
            mode = os.lstat(path).st_mode if os.path.lexists(path) else stat.S_IFREG  # it may have just vanished
            if not (
                stat.S_ISREG(mode) or stat.S_ISDIR(mode) or (stat.S_ISLNK(mode) and not leads_outside(path, run_dir))
            ):
                what = "a link out of the run directory" if stat.S_ISLNK(mode) else "not a plain file"
                raise UserError(f"{path} is {what}; expected only files and folders of its own. Put a copy there.")


def _checked(data: DataInfo) -> DataInfo:
    """Convert what run.json says about the data to the right types. Raises TypeError or ValueError if it is wrong."""
    low, high = (float(end) for end in data.range)
    shape = tuple(operator.index(size) for size in data.shape)
    if not (1 <= len(shape) <= 3 and min(shape) > 0 and prod(shape) <= MAX_VALUES):
        raise ValueError(f"examples of shape {shape}; expected at most {MAX_VALUES} values")
    if not (isfinite(low) and isfinite(high)):
        raise ValueError(f"data from {low} to {high}; expected finite numbers")
    classes = tuple(operator.index(label) for label in data.classes)
    if list(classes) != sorted(set(classes)):
        raise ValueError(f"the classes {str(classes)[:200]}; expected different whole numbers in rising order")
    for name in ("num_train", "num_validation", "num_test", "num_covariates"):
        if not 0 <= operator.index(getattr(data, name)) <= MAX_WHOLE:
            raise ValueError(f"{name} is {getattr(data, name)}; expected at least 0")
    if not (isinstance(data.fingerprint, str) and isinstance(data.data_dir, str | None)):
        raise TypeError("fingerprint and data_dir are not text")
    data = data._replace(
        scaling=_scaling(data.scaling, prod(shape)),
        spread=_scaling(data.spread, prod(shape)),
        covariate_scaling=_scaling(data.covariate_scaling, data.num_covariates),
    )
    if not all(isinstance(name, str) for name in data.columns):
        raise TypeError("the names of the columns are not text")
    too_few = data.names and max(classes, default=0) >= len(data.names)
    if too_few or not all(isinstance(name, str) for name in data.names):
        raise ValueError("the names of the labels are not text, or too few")
    return data._replace(
        shape=shape, classes=classes, range=(low, high), names=tuple(data.names), columns=tuple(data.columns)
    )


def _scaling(scaling: Any, size: int) -> Scaling | None:
    if scaling is None:
        return None
    shift, scale = (tuple(float(number) for number in part) for part in scaling)
    if not (len(shift) == len(scale) == size and all(map(isfinite, (*shift, *scale))) and min(scale) > 0):
        raise ValueError(f"the scaling is not of {size} numbers and as many positive ones")
    return shift, scale


def _is_same(run_dir: Path, config: Config, data: DataInfo, code: dict[str, str], is_member: bool) -> bool:
    """Whether run.json has this config, this data and this code from outside. If not, the caller writes it anew.

    Raises UserError if run.json differs but must not be replaced, because the run would be lost.
    """
    old_config, old_data, old_code = _read(run_dir)
    found = differences(old_config, config)
    changed = [f"{name} (was {a!r}, now {b!r})" for name, (a, b) in found.items()]
    if not changed and old_data.fingerprint != data.fingerprint:
        changed = [f"the data (was {old_data.fingerprint}, now {data.fingerprint})"]
    if not found and old_code != code:
        changed += [f"the code of {name}" for name in sorted(code) if code[name] != old_code.get(name)]
    if not changed or not _holds_other_than(run_dir, "run.json", "metrics.jsonl"):
        return not changed
    if found.keys() == {"num_epochs"} and old_data.fingerprint == data.fingerprint and old_code == code:
        trained = max(steps(run_dir), default=0) / (data.num_train // config.batch_size)
        if config.num_epochs < trained:
            raise UserError(
                f"num_epochs is {config.num_epochs}, and {run_dir} is trained for {trained:.4g} epochs already. Set at "
                "least as many, or choose another directory."
            )
        if config.schedule != "cosine":
            return False
        here = shlex.quote(str(run_dir.resolve()))
        other = "another SWEEP_DIR" if is_member else f"--workdir={here}-more"
        raise UserError(
            f"{run_dir} holds a run whose cosine schedule ends with its {old_config.num_epochs} epochs. To train on "
            f"from its weights, give the command with --config.init_from={here} too, and with {other}."
        )
    raise UserError(
        f"{run_dir} holds a run with another config: {', '.join(changed)}. Choose another directory, or begin "
        "anew with --restart."
    )


def steps(run_dir: Path) -> list[int]:
    """The steps that have a checkpoint, damaged or not, in rising order."""
    folder = run_dir / "checkpoints"
    found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in found if name.isdecimal() and name == str(int(name)))


def _write_code(folder: Path, sources: dict[str, bytes]) -> None:
    """Keep a copy of each file of code from outside in `folder`, and nothing else there."""
    copies = {name: content for name, content in sources.items() if name.endswith(".py")}
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name not in copies:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, content in copies.items():
        folder.mkdir(exist_ok=True)
        write_whole(folder / name, partial(Path.write_bytes, data=content))


@contextmanager
def _write_run(path: Path, config: Config, data: DataInfo, code: dict[str, str]) -> Iterator[None]:
    """Write run.json completely or not at all. It is locked within the block, since it replaces the locked file."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {"python": sys.version.split()[0], **{name: version(name) for name in packages}}
    run = {"format": FORMAT, "config": to_json(config), "data": data._asdict(), "versions": versions, "code": code}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        try:
            with suppress(ImportError, OSError):
                _lock(file)
            file.write(json.dumps({**run, "sha256": digests.of_json(run)}, indent=2) + "\n")
            file.flush()
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        yield


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock a file until the block or the process ends. If there is no such file, an empty one is made."""
    while True:
        with open(path, "a", encoding="utf-8") as file:
            try:
                _lock(file)
            except BlockingIOError:
                raise UserError(
                    f"{path.parent} is in use: another process trains there. Wait for its end, or choose another "
                    "directory."
                ) from None
            except (ImportError, OSError) as error:  # Windows, and file systems without locks
                print(f"{path} cannot be locked ({error}): let no other process train there", file=sys.stderr)
            # Before we locked it, another process may have moved the folder aside or replaced the file. Then try again.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield
                return


def _lock(file: IO[str]) -> None:
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
