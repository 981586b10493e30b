"""A run directory: what it was trained with, its checkpoints and its metrics. The one file that knows orbax.

run.json         config, data (shapes, sizes, fingerprint), versions
metrics.jsonl    one evaluation a line
checkpoints/N/   after step N: `params` (the weights to evaluate), `state` (the rest), `totals`
"""

import json
import logging
import operator
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax

from vae_jax import metrics, models
from vae_jax.config import Config, from_json, to_json
from vae_jax.core import VAE, Params
from vae_jax.errors import UserError
from vae_jax.inputs import DataInfo
from vae_jax.update import TrainState

FORMAT = 1


class Restored(NamedTuple):
    """A trained VAE."""

    config: Config
    data: DataInfo
    vae: VAE
    params: Params
    step: int


def begin(run_dir: Path, config: Config, data: DataInfo, *, restart: bool = False) -> None:
    """Begin a run directory, or make sure that the one there is of the same config and data.

    restart: move an existing one aside first. UserError names the fields that differ.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"{run_dir} cannot be written (it is a file). Choose another --workdir.")
    if not _is_new(run_dir):
        if not restart:
            _check_same(run_dir, config, data)
            return
        read_run(run_dir)
        print(f"moved the earlier run to {move_aside(run_dir)}", file=sys.stderr)
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {"python": sys.version.split()[0], **{name: version(name) for name in packages}}
    run = {"format": FORMAT, "config": to_json(config), "data": data._asdict(), "versions": versions}
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        metrics.write_text(run_dir / "run.json", json.dumps(run, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{run_dir} cannot be written ({error.strerror}). Choose another --workdir.") from None


def read_run(run_dir: Path) -> tuple[Config, DataInfo]:
    """The config and data of a run directory, or a UserError that says why it is none."""
    path = run_dir / "run.json"
    if not path.is_file():
        what = "has no run.json" if run_dir.is_dir() else "is no directory"
        raise UserError(f"{run_dir} {what}; expected a run directory that train.py wrote, such as checkpoints/digits.")
    try:
        run = json.loads(path.read_text())
        if run["format"] > FORMAT:
            raise UserError(f"{path} has format {run['format']}; this version reads up to {FORMAT}. Update vae_jax.")
        data = DataInfo(**run["data"])
        low, high = (float(end) for end in data.range)
        shape = tuple(operator.index(size) for size in data.shape)
        return from_json(run["config"]), data._replace(shape=shape, range=(low, high))
    except UserError as error:
        raise UserError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}). Train in another --workdir.") from None


@contextmanager
def open_checkpoints(run_dir: Path, *, read_only: bool = False) -> Iterator[Any]:
    """The orbax manager of a run: the two latest checkpoints are kept, and the one of the lowest evaluation loss."""
    folder = run_dir.absolute() / "checkpoints"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is no directory; expected the checkpoints of a run. Choose another directory.")
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.ERROR)  # orbax logs a hundred lines a run
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

    # `max_to_keep` with `best_fn` would delete the latest one, and a resumed run would go back in time.
    policy = policies.AnyPreservationPolicy(
        [
            policies.LatestN(2),
            policies.BestN(get_metric_fn=_loss, reverse=True, n=1, keep_checkpoints_without_metrics=False),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=_loss,
        best_mode="min",
        enable_async_checkpointing=False,
        create=not read_only,
        cleanup_tmp_directories=not read_only,  # a reader must not take away what a training run is writing
        read_only=read_only,
    )
    manager = ocp.CheckpointManager(folder, options=options)
    try:
        yield manager
    finally:
        manager.close()


def save(manager: Any, state: TrainState, totals: metrics.Totals, loss: float | None = None) -> None:
    """Write the checkpoint of `state`, with the sums since its last evaluation and the loss if it was evaluated."""
    import orbax.checkpoint as ocp

    step = int(state.step)
    if step in manager.all_steps():
        return
    params, rest = _split(state)
    manager.save(
        step,
        args=ocp.args.Composite(
            params=ocp.args.StandardSave(params), state=ocp.args.StandardSave(rest), totals=ocp.args.JsonSave(totals)
        ),
        metrics=None if loss is None else {"loss": loss},
    )


def resume(manager: Any, run_dir: Path, like: TrainState) -> tuple[TrainState, metrics.Totals]:
    """The latest state, on the devices of `like`, and its totals; `like` itself without a checkpoint.

    Records of steps after it are dropped from metrics.jsonl: the resumed run writes them again.
    """
    import orbax.checkpoint as ocp

    step = manager.latest_step()
    if step is None:
        metrics.truncate(run_dir, 0)
        return like, {}
    params, rest = _split(like)
    with _readable(manager, step):
        restored = manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(_abstract(params)),
                state=ocp.args.StandardRestore(_abstract(rest)),
                totals=ocp.args.JsonRestore(),
            ),
        )
    metrics.truncate(run_dir, step)
    return _join(restored.params, restored.state), restored.totals


def load(run_dir: str | Path, checkpoint: str = "latest") -> Restored:
    """The trained VAE of a run directory: its config, its pure functions and its parameters.

    checkpoint: 'latest', 'best' (lowest evaluation loss) or a step. UserError if the directory is no run.
    """
    import orbax.checkpoint as ocp

    run_dir = Path(run_dir)
    config, data = read_run(run_dir)
    if not (run_dir / "checkpoints").is_dir():
        raise UserError(f"{run_dir} has no checkpoint yet. Train it: the command that began it resumes it.")
    try:
        vae = models.build(config, data)
    except UserError as error:
        raise UserError(f"{run_dir / 'run.json'}: {error}") from None
    with open_checkpoints(run_dir, read_only=True) as manager:
        step = _choose(manager, checkpoint, run_dir)
        like = jax.eval_shape(vae.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *data.shape), "float32"))
        with _readable(manager, step):
            params = manager.restore(
                step, args=ocp.args.Composite(params=ocp.args.StandardRestore(_abstract(like)))
            ).params
    return Restored(config, data, vae, params, step)


def move_aside(run_dir: Path) -> Path:
    """Rename a run directory to the first free NAME.1, NAME.2, ..."""
    number, run_dir = 1, run_dir.resolve()
    if Path.cwd().is_relative_to(run_dir):
        raise UserError(f"{run_dir} cannot be moved aside: it is the current directory. Leave it first.")
    while (target := run_dir.with_name(f"{run_dir.name}.{number}")).exists():
        number += 1
    try:
        run_dir.rename(target)
    except OSError as error:
        raise UserError(f"{run_dir} cannot be moved aside ({error.strerror}). Choose another --workdir.") from None
    return target


def _is_new(run_dir: Path) -> bool:
    """Whether nothing is there, or only what a run killed at its very beginning left."""
    if not run_dir.exists():
        return True
    return run_dir.is_dir() and all(path.name.startswith(".run.json.") for path in run_dir.iterdir())


def _check_same(run_dir: Path, config: Config, data: DataInfo) -> None:
    """UserError unless the run in `run_dir` has this config and this data."""
    old_config, old_data = read_run(run_dir)
    old, new = to_json(old_config), to_json(config)
    changed = [f"{name} (was {old[name]!r}, now {new[name]!r})" for name in new if old[name] != new[name]]
    if not changed and old_data.fingerprint != data.fingerprint:
        changed = [f"the data (was {old_data.fingerprint}, now {data.fingerprint})"]
    if changed:
        raise UserError(
            f"{run_dir} holds a run with another config: {', '.join(changed)}. Choose another --workdir, or begin "
            "anew with --restart."
        )


def _loss(values: dict[str, float]) -> float:
    return values["loss"]


def _split(state: TrainState) -> tuple[Params, dict[str, Any]]:
    """What sampling needs, and the rest: so that a checkpoint is read without building the optimiser."""
    rest = {"step": state.step, "opt_state": state.opt_state, "key": state.key}
    return state.averaged, rest if state.ema is None else {**rest, "params": state.params}


def _join(params: Params, rest: dict[str, Any]) -> TrainState:
    raw = rest.get("params")
    if raw is None:
        return TrainState(rest["step"], params, rest["opt_state"], None, rest["key"])
    return TrainState(rest["step"], raw, rest["opt_state"], params, rest["key"])


def _abstract(tree: Any) -> Any:
    """Shapes, types and the devices to restore to: without the last, another number of devices cannot restore."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=getattr(a, "sharding", None) or device), tree
    )


def _choose(manager: Any, checkpoint: str, run_dir: Path) -> int:
    steps = sorted(manager.all_steps())
    if not steps:
        raise UserError(f"{run_dir} has no checkpoint yet. Train it: the command that began it resumes it.")
    if checkpoint == "latest":
        return steps[-1]
    if checkpoint == "best":
        return manager.best_step() or steps[-1]
    if checkpoint.isdecimal() and int(checkpoint) in steps:
        return int(checkpoint)
    raise UserError(f"{run_dir} has no checkpoint {checkpoint!r}. Choose one of: latest, best, {str(steps)[1:-1]}.")


@contextmanager
def _readable(manager: Any, step: int) -> Iterator[None]:
    """Turn orbax's pages about a damaged checkpoint into one line."""
    # Its other reads go on after the first has failed, and complain from their threads until the process ends.
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        yield
        sys.unraisablehook = before
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(
            f"Checkpoint {step} in {manager.directory} cannot be read ({reason}). "
            f"Remove {manager.directory / str(step)} to use the one before it."
        ) from None
