"""Training on a file read piece by piece against training on it in memory: images a second, and memory.

    python tests/benchmarks/streaming.py [--repeats=5] [--only=PATTERN] [--full]

784-400-20 at batch 128 on a .npy file of random grey images, in train.py's own loop, 250 steps a call, without
evaluation. A ratio above 1 means that streaming is faster. Memory is the peak of the whole process, with
what it took to load the file. The file is written to the folder for temporary files, and is in the system's cache.
"""

import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from measure import Prepared, check_some, compare, images, load_average, parse, print_header, print_machine

STEPS = 1000  # a repeat: more than a window of the stream


def training(*, dataset, stream):
    """Images a second."""
    import jax
    from ours import CONFIGS

    from vae_jax import build, update
    from vae_jax.config import load_recipe
    from vae_jax.data import inputs

    config = replace(load_recipe(CONFIGS / "pytorch_example.py"), dataset=dataset, stream=stream, batch_size=128)
    _, data, examples, *_ = inputs.load(config, None)
    vae, steps_per_epoch = build.make_vae(config, data), data.num_train // config.batch_size
    optimizer = build.make_optimizer(config, steps_per_epoch)
    one_step = update.make_update(vae, build.make_objective(config), optimizer, prepare=inputs.make_prepare(config))
    if stream:
        train = update.make_stream_train(one_step, config.batch_size)
    else:
        train = jax.jit(update.make_train(one_step, config.batch_size), donate_argnums=0)
    state = jax.jit(partial(update.init_state, vae, optimizer, ema=False))(jax.random.key(0), examples.x)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    state, _ = train(state, examples, np.int32(0))
    step = 0

    def run():
        nonlocal state, step
        start, end = time.perf_counter(), step + STEPS
        while step < end:
            count = min(250, end - step, steps_per_epoch - step % steps_per_epoch)
            state, sums = train(state, examples, jax.device_put(np.int32(count)))
            jax.device_get(sums)
            step += count
        return STEPS * config.batch_size / (time.perf_counter() - start)

    return Prepared(run, num_params)


def write(path, num):
    """A file of `num` images, 10,000 of them repeated."""
    some = images(10_000)
    # Not through a memory map: the peak memory of this process is the least that those it starts can show.
    with open(path, "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (num, *some.shape[1:])}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, num, len(some)):
            file.write(some[: num - start].data)


if __name__ == "__main__":
    options = parse(__doc__, full="also a million images: 784 MB, and several times as much memory")
    titles = {
        num: f"train 784-400-20 on {num:,} images, batch 128, images/s"
        for num in ((10**5, 10**6) if options.full else (10**5,))
    }
    check_some((f"{title}: in memory" for title in titles.values()), options)
    print_machine(options)
    print_header("row", "streamed", "in memory", "streamed / in memory", "at their best", "peak memory of each, MB")
    for num, title in titles.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{num}.npy"
            write(path, num)
            ways = {"streamed": True, "in memory": False}
            entrants = {
                name: ("streaming.training", {"dataset": str(path), "stream": stream}) for name, stream in ways.items()
            }
            compare(title, entrants, options)
    print(f"\nload average at the end {load_average()}")
