"""Train a VAE: `python train.py --config=configs/mnist.py --config.beta=4`. `--help` lists every flag."""

import time
from typing import Any

from vae_jax import progress
from vae_jax.cli import console


def main(argv: list[str]) -> int:
    options = console.parse_train(argv)  # before jax is imported: a typo answers at once
    console.setup_jax(options)

    import jax
    import numpy as np

    from vae_jax import build, evaluate, guard, update
    from vae_jax.data import inputs
    from vae_jax.errors import UserError
    from vae_jax.run import checkpoints, metrics, runs, tensorboard
    from vae_jax.show import pictures, views
    from vae_jax.xla import devices

    # The data.
    config, run_dir = inputs.absolute(options.config), options.workdir
    data, examples, split, held_out, label = inputs.load(config, options.data_dir, build.num_levels(config))

    # The devices of all processes, over which a batch is split. The first process writes the run directory.
    mesh, is_first = devices.make_mesh(), jax.process_index() == 0
    everywhere = devices.everywhere(mesh)
    devices.check_batch_size(config.batch_size, mesh)
    held_out = devices.put(held_out, everywhere)
    if not config.stream:
        examples = devices.put(examples, everywhere)

    # The model and what improves it.
    vae = build.make_vae(config, data)
    if options.restart or not checkpoints.steps(run_dir):  # a run that goes on needs no other one
        vae = checkpoints.begin_from(vae, config, data)
    steps_per_epoch = data.num_train // config.batch_size
    num_steps = config.num_epochs * steps_per_epoch
    init, one_step = build.make_training(config, vae, steps_per_epoch)
    if config.stream:
        train = update.make_stream_train(one_step, config.batch_size, mesh)
    else:
        train = update.make_train(one_step, config.batch_size, mesh)
        train = jax.jit(train, donate_argnums=0, out_shardings=everywhere)
    evaluate_held_out = evaluate.make_evaluate_objective(vae, build.make_evaluation_objective(config))
    state = jax.jit(init, out_shardings=everywhere)(jax.random.key(config.seed), examples.x)

    def lost(seen: guard.Guard) -> UserError:
        return runs.lost(seen, config, data.range, num_steps, bool(checkpoints.steps(run_dir)))

    with (
        devices.of_first(runs.open_run(run_dir, config, data, restart=options.restart)),
        tensorboard.mirror(run_dir, options.tensorboard and is_first) as copy_metrics,
        console.stop_signals() as stopped,
    ):
        state, totals = checkpoints.resume_everywhere(run_dir, state)
        step, mean, stop = int(state.step), None, 0
        if step and is_first:
            progress.say(f"{run_dir}: resumed at step {step} of {num_steps}")
        state, _ = train(state, examples, np.int32(0))  # compiles, so that the rates below are of steps
        bar = progress.bar(total=num_steps, initial=step, unit="step")
        chunk, saved = 1, time.monotonic()  # steps per call: about a second of them

        while step < num_steps:
            start = time.monotonic()
            count, stop = devices.agree(min(chunk, steps_per_epoch - step % steps_per_epoch), stopped())
            if stop:
                break
            state, sums = train(state, examples, np.int32(count))
            sums, seen = jax.device_get((sums, state.guard))
            if seen.in_a_row >= guard.MAX_IN_A_ROW:
                raise lost(seen)
            seconds = time.monotonic() - start
            totals = metrics.add(totals, sums, count, seconds)
            step, chunk = step + count, max(1, int(count / seconds))
            bar.update(count)
            bar.set_postfix(loss=f"{sums['loss'] / count:.3f}")
            if step % (config.eval_epochs * steps_per_epoch) and step < num_steps:
                if is_first and time.monotonic() > saved + checkpoints.MAX_SECONDS:
                    checkpoints.save(run_dir, state, totals)
                    saved = time.monotonic()
                continue

            values, mean = evaluate_held_out(state.averaged, jax.random.key(0), held_out)
            at: dict[str, Any] = {"step": step, "epoch": step / steps_per_epoch}
            trained = {**at, "split": "train", **metrics.averages(totals, config.batch_size)}
            values = build.split_loss(config, values)
            record = {**at, "split": split, **values, "active_units": evaluate.active_units(mean)}
            totals = {}
            if not is_first:
                continue
            rate = trained["examples_per_second"]
            progress.say(metrics.describe(record, rate, (num_steps - step) * config.batch_size / rate))
            if trained["skipped"]:
                progress.say(guard.describe(seen))
            metrics.append(run_dir, trained, record)  # before the checkpoint: after a crash in between, written again
            copy_metrics()
            checkpoints.save(run_dir, state, totals, record["loss"])
            saved = time.monotonic()
            if config.picture_epochs and at["epoch"] % config.picture_epochs == 0:
                trained_vae = checkpoints.Restored(config, data, vae, devices.local(state.averaged), step)
                views.draw_run(run_dir / f"epoch-{at['epoch']:g}", trained_vae, held_out, label, mean)

        bar.close()
        state, held_out = devices.local((state, held_out))
        if is_first:
            checkpoints.save(run_dir, state, totals)  # stopped inside an epoch
        if guard.is_lost(state.guard, num_steps):
            raise lost(state.guard)
        if not is_first:
            return stop
        if mean is None and not (run_dir / "curves.png").exists():
            _, mean = evaluate_held_out(state.averaged, jax.random.key(0), held_out)
        if mean is not None:
            trained_vae = checkpoints.Restored(config, data, vae, state.averaged, step)
            views.draw_run(run_dir, trained_vae, held_out, label, mean)
            pictures.save_curves(run_dir / "curves.png", metrics.read(run_dir))
        if step < num_steps:
            progress.say(f"{run_dir}: stopped at step {step} of {num_steps}; the same command resumes it")
        print(metrics.to_json({"run_dir": str(run_dir), **(metrics.read(run_dir) or [{}])[-1]}))
        return stop


if __name__ == "__main__":
    console.script(main)
