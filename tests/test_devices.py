"""One device, many devices or many processes: the same losses, and checkpoints that all of them read."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, train_flags

from vae_jax.errors import UserError
from vae_jax.run import checkpoints, metrics
from vae_jax.xla import devices

pytestmark = pytest.mark.robust

EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"}
RUN = {"batch_size": 96, "num_epochs": 7, "eval_epochs": 1, "binarization": "dynamic", "ema_decay": 0.9}  # 105 steps

LOSSES = """
import jax, numpy as np, json, sys
from jax.sharding import Mesh
from vae_jax import evaluate, build, objectives, update
from vae_jax.data import inputs
from vae_jax.xla import devices
from vae_jax.config import Config

config = Config(batch_size=16, num_epochs=50, binarization="dynamic", **json.loads(sys.argv[1]))
_, data, examples, *_ = inputs.load(config, None)
examples = jax.tree.map(lambda a: a[:160], examples)
vae, objective = build.make_vae(config, data), build.make_objective(config)
optimizer = build.make_optimizer(config, 10)
one = update.make_update(vae, objective, optimizer, prepare=inputs.make_prepare(config))
losses = {}
for count in json.loads(sys.argv[2]):
    mesh = Mesh(np.array(jax.devices()[:count]), ("data",))
    where = devices.replicated(mesh)
    own = devices.place(examples, where)
    train = jax.jit(update.make_train(one, 16, mesh), donate_argnums=0, out_shardings=where)
    start = jax.jit(lambda key, x: update.init_state(vae, optimizer, key, x, ema=False), out_shardings=where)
    state, losses[count] = start(jax.random.key(0), own.x), []
    for _ in range(10):
        state, sums = train(state, own, np.int32(10))
        losses[count].append(float(sums["loss"]) / 10)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state)) and int(state.step) == 100
    bound = evaluate.make_evaluate(vae, num_samples=5, batch_size=30)(state.params, jax.random.key(1), own)
    losses[count].append(float(bound.log_px.mean()))
print(json.dumps(losses))
"""


STOP_AFTER_THREE = """
import sys, train
from vae_jax.run import checkpoints

save = checkpoints.save
def stopping(run_dir, state, *rest):
    save(run_dir, state, *rest)
    if int(state.step) == 45:
        sys.exit(7)
checkpoints.save = stopping
train.main(sys.argv[1:])
"""


def python(*argv, env=EIGHT):
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **env}
    return subprocess.run([sys.executable, *argv], env=env, capture_output=True, text=True, timeout=300)


def records_of(run_dir):
    return [{name: v for name, v in r.items() if name != "examples_per_second"} for r in metrics.read(run_dir)]


def assert_same_records(run_dir, other):
    ours, theirs = records_of(run_dir), records_of(other)
    assert len(ours) == len(theirs) == 2 * RUN["num_epochs"]
    for a, b in zip(ours, theirs, strict=True):
        assert a == {name: pytest.approx(v, rel=1e-5, abs=1e-5) if isinstance(v, float) else v for name, v in b.items()}


@pytest.fixture(scope="module")
def alone(train, tmp_path_factory):
    """The run on one device that the others are compared with."""
    run_dir = tmp_path_factory.mktemp("devices") / "alone"
    train(run_dir, **RUN)
    return run_dir


@pytest.mark.parametrize(
    ("counts", "fields"),
    (
        ((1, 2, 8), {"hidden_sizes": (32,)}),
        ((1, 8), {"network": f"{ROOT}/configs/own_model.py:network"}),
        pytest.param(
            (1, 8),
            {"network": "convolutional", "hidden_sizes": (16,), "objective": "iwae", "num_samples": 2},
            marks=pytest.mark.slow,
        ),
    ),
    ids=("mlp", "own", "conv"),
)
def test_losses_are_those_of_one_device(counts, fields):
    result = python("-c", LOSSES, json.dumps({**fields, "latent_dim": 4}), json.dumps(counts))
    assert result.returncode == 0, result.stderr[-2000:]
    losses = json.loads(result.stdout)
    assert len(losses["1"]) == 11 and losses["1"][9] < losses["1"][0]
    for count in counts:
        np.testing.assert_allclose(losses[str(count)], losses["1"], rtol=1e-5)


@pytest.mark.slow
def test_checkpoints_of_eight_devices_and_of_one_interchange(train, vae, alone, tmp_path):
    run_dir = tmp_path / "run"
    flags = train_flags(run_dir, **RUN)
    result = python("-c", STOP_AFTER_THREE, *flags)
    assert result.returncode == 7, result.stderr[-2000:]
    assert checkpoints.steps(run_dir)[-1] == 45
    train(run_dir, **RUN)
    assert_same_records(run_dir, alone)
    printed = python("-m", "vae_jax", "evaluate", str(run_dir), "--num_samples=3", "--limit=50")
    assert printed.returncode == 0, printed.stderr[-2000:]
    here = json.loads(vae("evaluate", run_dir, "--num_samples=3", "--limit=50"))
    for name, value in json.loads(printed.stdout).items():
        assert here[name] == (pytest.approx(value, rel=1e-5, abs=1e-5) if isinstance(value, float | list) else value)


@pytest.mark.slow
def test_a_stream_trains_on_eight_devices(train, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).random((300, 6), np.float32))
    fields = {"dataset": path, "stream": "true", "batch_size": 24, "num_epochs": 3}
    train(tmp_path / "one", **fields)
    result = python("train.py", *train_flags(tmp_path / "eight", **fields))
    assert result.returncode == 0, result.stderr[-2000:]
    one, eight = records_of(tmp_path / "one"), records_of(tmp_path / "eight")
    assert [r["loss"] for r in one] == pytest.approx([r["loss"] for r in eight], rel=1e-5)


def processes(run_dir, *flags, num=2, **fields):
    """`num` processes of one run, each with a device of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{free.getsockname()[1]}"
    env = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    argv = [sys.executable, ROOT / "train.py", *train_flags(run_dir, *flags, **fields)]
    argv += [f"--coordinator={at}", f"--num_processes={num}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen([*argv, f"--process_id={i}"], env=env, **pipes) for i in range(num)]


def ends(both):
    """The exit codes and what was printed, of processes that end within two minutes."""
    try:
        printed = [process.communicate(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
    return [process.returncode for process in both], printed


def test_two_processes_killed_and_resumed(alone, tmp_path):
    run_dir = tmp_path / "run"
    both = processes(run_dir, **RUN)
    deadline = time.monotonic() + 120
    while not checkpoints.steps(run_dir) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in reversed(both):
        process.send_signal(signal.SIGKILL)
    ends(both)
    assert checkpoints.steps(run_dir)[-1] > 0

    codes, printed = ends(processes(run_dir, **RUN))
    assert codes == [0, 0], printed
    assert_same_records(run_dir, alone)
    assert (run_dir / "samples.png").exists()


@pytest.mark.slow
def test_what_one_process_is_told_or_finds_both_heed(alone, tmp_path):
    run_dir = tmp_path / "run"
    long = {**RUN, "num_epochs": 100_000}
    both = processes(run_dir, **long)
    deadline = time.monotonic() + 120
    while not checkpoints.steps(run_dir) and time.monotonic() < deadline:
        time.sleep(0.05)
    both[1].send_signal(signal.SIGTERM)
    codes, printed = ends(both)
    assert codes == [143, 143] and "the same command resumes it" in printed[0][1]

    codes, printed = ends(processes(run_dir, **long | {"seed": 1}))
    assert codes == [2, 2]
    errors = [[line for line in err.splitlines() if line.startswith("error: ")] for _, err in printed]
    assert "holds a run with another config: seed" in errors[0][0]
    assert errors[1] == ["error: The first process has ended with an error, which it prints."]


@pytest.mark.parametrize(
    ("batch_size", "count", "nearest"), ((100, 8, "96 or 104"), (7, 8, "8"), (17, 8, "16 or 24"), (1, 2, "2"))
)
def test_a_batch_that_does_not_divide_names_the_nearest_that_do(batch_size, count, nearest):
    mesh = SimpleNamespace(size=count)
    with pytest.raises(UserError, match=f"batch_size is {batch_size}; .* multiple of the {count} devices: {nearest}."):
        devices.check_batch_size(batch_size, mesh)


def test_a_batch_that_divides_passes():
    devices.check_batch_size(96, SimpleNamespace(size=8))
    devices.check_batch_size(7, devices.make_mesh())


def test_arrays_go_out_and_come_back():
    mesh = devices.make_mesh()
    tree = {"a": jnp.arange(6.0), "key": jax.random.key(3)}
    there = devices.place(tree, devices.replicated(mesh))
    assert devices.mesh_of(there) is None, "one device"
    assert devices.agree(3, False) == (3, False)
    np.testing.assert_array_equal(devices.to_host(there["a"]), tree["a"])
    np.testing.assert_array_equal(
        jax.random.key_data(devices.local_copy(there)["key"]), jax.random.key_data(tree["key"])
    )
