"""Train a VAE, from the flags to the result: `python train.py`, `python -m vae_jax train`."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import jax

from vae_jax import build, evaluate, progress
from vae_jax.cli import console
from vae_jax.data import inputs
from vae_jax.run import checkpoints, diagnosis, loop, metrics, runs, tensorboard
from vae_jax.show import views
from vae_jax.xla import devices


def train(options: Namespace) -> tuple[dict[str, Any] | None, int]:
    """Train, and return the last record of metrics and the exit status, which is not 0 if a signal ended the training.

    Only the first process returns a record.
    """
    # The data.
    config, data, examples, split, held_out, label = inputs.load(
        inputs.absolute(options.config), options.data_dir, build.make_likelihood
    )
    run_dir = options.workdir

    # The devices of all processes, over which a batch is split. The first process writes the run directory.
    mesh, is_first = devices.make_mesh(), jax.process_index() == 0
    devices.check_batch_size(config.batch_size, mesh)
    held_out = devices.place(held_out, devices.replicated(mesh))

    # The model and what improves it. A run that goes on does not need the run that it began from.
    vae = build.make_vae(config, data)
    if options.restart or not checkpoints.steps(run_dir):
        vae = checkpoints.begin_from(vae, config, data)
    build.check_objective(config, vae, data)
    if unused := build.without_effect(config, options.defaults):
        progress.say(f"{', '.join(unused)}: without effect on {config.vae or config.network}")
    steps_per_epoch = data.num_train // config.batch_size
    num_steps = config.num_epochs * steps_per_epoch
    state, advance = loop.begin(config, vae, examples, steps_per_epoch, mesh)
    evaluate_held_out = evaluate.make_evaluate_objective(vae, build.make_evaluation_objective(config))
    evaluate_held_out(state.averaged, jax.random.key(0), held_out, lambda batches: iter(batches[:1]))  # compiles

    def draw(_: int, params: Any, step: int, mean: Any, folder: Path) -> None:
        views.draw_run(folder, checkpoints.Restored(config, data, vae, params, step), held_out, label, mean)

    with (
        devices.in_first_process(runs.open_run(run_dir, config, data, restart=options.restart)),
        tensorboard.mirror(run_dir, options.tensorboard and is_first) as copy_metrics,
        console.stop_signals() as stopped,
    ):
        state, totals = checkpoints.resume_everywhere(run_dir, state)
        if state.step and is_first:
            progress.say(f"{run_dir}: resumed at step {state.step} of {num_steps}")
        state, step, (mean,), (is_lost,), stop = loop.train(
            [loop.Member(run_dir, config)],
            state,
            [totals],
            split=split,
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch,
            advance=advance,
            evaluate=lambda _, params: evaluate_held_out(params, jax.random.key(0), held_out),
            draw=draw,
            stopped=stopped,
            logged=copy_metrics,
        )
        if is_lost:
            raise diagnosis.lost_error(state.guard, config, data, num_steps, bool(checkpoints.steps(run_dir)))
        if not is_first:
            return None, stop
        state, held_out = devices.local_copy((state, held_out))
        if mean is None and not (run_dir / "curves.png").exists():
            _, mean = evaluate_held_out(state.averaged, jax.random.key(0), held_out)
        if mean is not None:
            draw(0, state.averaged, step, mean, run_dir)
        record = (metrics.read(run_dir) or [{}])[-1]
        if step < num_steps:
            progress.say(f"{run_dir}: stopped at step {step} of {num_steps}; the same command resumes it")
        else:
            for note in diagnosis.notes(config, data, record, held_out.x, skipped=int(state.guard.skipped)).values():
                progress.say(note)
        return {"run_dir": str(run_dir), **record}, stop
