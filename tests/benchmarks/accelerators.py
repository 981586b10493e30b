"""Compile training, evaluation and sampling for a GPU (H100) and for TPUs (v5e), neither of which needs to be here.

    python -m pip install -e '.[aot]'
    python tests/benchmarks/accelerators.py cuda tpu

It prints a table. With --json it prints what the optimised programs hold, one program a line; further arguments choose
the networks and the types.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v5litepod-4")
os.environ.update(TPU_WORKER_HOSTNAMES="localhost", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from vae_jax import build, evaluate, generate, update
from vae_jax.config import Config, load_recipe
from vae_jax.core import Examples
from vae_jax.data.inputs import DataInfo
from vae_jax.run.arrays import named
from vae_jax.run.checkpoints import Restored
from vae_jax.show import export
from vae_jax.xla import devices
from vae_jax.xla.loops import TURNS

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NUM = 60_013  # of training examples: a number that no other array has as its size
RECIPES: dict[str, tuple[Callable[[], Config], tuple[int, ...], Any]] = {
    "mlp": (lambda: load_recipe(CONFIGS / "pytorch_example.py"), (28, 28, 1), jnp.uint8),
    "convolutional": (lambda: load_recipe(CONFIGS / "conv.py"), (28, 28, 1), jnp.uint8),
    "temporal": (
        lambda: Config(network="temporal", likelihood="gaussian_scalar", hidden_sizes=()),
        (64, 8),
        jnp.float32,
    ),
}
DTYPES = ("float32", "bfloat16")
COUNTS = {"cuda": (1,), "tpu": (1, 4)}
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def mesh_of(platform: str, count: int) -> Mesh:
    if platform == "tpu":
        found = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    else:
        found = topologies.get_topology_desc("h100", platform="cuda", target_config=H100, topology="1x1x1").devices
    return Mesh(np.array(found[:count]), ("data",))


def lowered(config: Config, shape: tuple[int, ...], dtype: Any, mesh: Mesh) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The name of each program and a function that lowers it for the devices of `mesh`."""
    everywhere = devices.replicated(mesh)

    def whole(tree: Any) -> Any:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), tree)

    data = DataInfo(shape, (), (0.0, 1.0), NUM, 0, 10_000, "", None)
    vae = build.make_vae(config, data)
    key = whole(jax.eval_shape(lambda: jax.random.key(0)))
    stored, floats = (Examples(whole(jax.ShapeDtypeStruct((NUM, *shape), t)), None) for t in (dtype, jnp.float32))
    init, step = build.make_training(config, vae, NUM // config.batch_size)
    state = whole(jax.eval_shape(init, key, floats.x))

    def training() -> Any:
        train = jax.jit(update.make_train(step, config.batch_size, mesh), donate_argnums=0, out_shardings=everywhere)
        return train.lower(state, stored, whole(jax.ShapeDtypeStruct((), jnp.int32)))

    def evaluation() -> Any:
        calls: list[Any] = []
        evaluate.make_evaluate(vae, num_samples=50, jit=lambda call: calls.append(jax.jit(call)) or calls[0])
        index = jax.ShapeDtypeStruct((400,), jnp.int32, sharding=devices.batch_sharded(mesh))
        return calls[0].lower(state.params, key, index, floats)

    def sampling() -> Any:
        return jax.jit(lambda params, key: generate.sample_flat(params, key, vae, 1000)).lower(state.params, key)

    def exported() -> Any:
        params = vae.init(jax.random.key(0), jnp.zeros((1, *shape)))
        sample = export.functions(Restored(config, data, vae, params, 0))["sample"]
        label = whole(jax.ShapeDtypeStruct((1000,), jnp.int32))
        return jax.jit(sample.call).lower(whole(named(params)), key, label)

    several: list[Any] = [training, evaluation]
    for function in several if mesh.size > 1 else [*several, sampling, exported]:
        yield function.__name__, function


PASSIVE = {"get-tuple-element", "parameter", "tuple", "bitcast", "constant", "after-all", "partition-id", "iota"}
HOST = r"(send|recv|infeed|outfeed)(-start)?$"
Operation = tuple[str, str, str]  # the type of its result, its name and its line


class Program:
    """The operations of the computations in the text of an optimised program."""

    def __init__(self, text: str, platform: str) -> None:
        self.platform = platform
        found = list(re.finditer(r"^(ENTRY )?%?([\w.\-]+) \(.*?\) -> .*? \{\n(.*?)^\}", text, re.S | re.M))
        self.entry = next(m[2] for m in found if m[1])
        line = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][a-z0-9\-]*)\((.*)$", re.M)
        self.computations: dict[str, list[Operation]] = {
            m[2]: [(of[1], of[2], of[0]) for of in line.finditer(m[3])] for m in found
        }

    def called(self, line: str) -> list[str]:
        """The computations that an operation runs, but for those of a reduction or a comparison."""
        kinds = "body|calls|true_computation|false_computation|branch_computations"
        found = re.findall(rf"(?:{kinds})=\{{?([^,}}]+(?:, %[^,}}]+)*)", line)
        names = [name.strip().lstrip("%") for group in found for name in group.split(",")]
        return [name for name in names if name in self.computations]

    def all_of(self, name: str) -> Iterator[Operation]:
        """All operations of a computation and of the computations within it."""
        for operation in self.computations[name]:
            yield operation
            for inner in self.called(operation[2]):
                yield from self.all_of(inner)

    def loops(self, name: str) -> list[tuple[str, int | None]]:
        """The body of each loop within a computation, and its number of turns if that is a constant."""
        return [(self.called(line)[0], turns_of(line)) for _, op, line in self.all_of(name) if op == "while"]

    def kernels(self, name: str) -> int:
        """What is started one after the other: each turn of a loop counts, and so does each branch."""

        def of(operation: Operation) -> int:
            shape, op, line = operation
            if op in PASSIVE or op.endswith(("-done", "-update")):
                return 0
            if op in ("while", "conditional", "call"):
                inner = sum(map(self.kernels, self.called(line)))
                return inner * (turns_of(line) or 1) + (op == "conditional")
            # On a TPU, what is left unfused is a handful of numbers, such as the random keys.
            few = self.platform == "tpu" and re.match(r"\w+\[[0-4]?\]", shape)
            return int(not few or op in ("fusion", "custom-call"))

        return sum(map(of, self.computations[name]))

    def step(self) -> str:
        """The body of the training loop."""
        loops = self.loops(self.entry)
        if self.platform == "cuda":
            return next(body for body, turns in loops if turns == TURNS)
        return max((body for body, _ in loops[1:]), key=lambda body: len(self.computations[body]))


def turns_of(line: str) -> int | None:
    found = re.search(r"known_trip_count\W+n\W+(\d+)", line)
    return int(found[1]) if found else None


def figures(name: str, compiled: Any, platform: str) -> dict[str, Any]:
    """What the optimised program holds; of training, its step."""
    program = Program(compiled.as_text(), platform)
    body = program.step() if name == "training" else program.entry
    inside = list(program.all_of(body))
    ops = [op for _, op, _ in inside]
    bodies = [body] if name == "training" else [loop for loop, _ in program.loops(body)]
    return {
        "kernels": program.kernels(body),
        "all_reduces": sum(op in ("all-reduce", "all-reduce-start") for op in ops),
        "other_collectives": [op for op in ops if re.match("all-gather|all-to-all|collective|reduce-scatter", op)],
        "waits": [op for _, op, line in inside if op == "conditional" or (op == "while" and not turns_of(line))],
        "host": [op for _, op, line in inside if re.match(HOST, op) or "callback" in line.split("metadata=")[0]],
        "large": [
            line.strip()[:200]
            for loop in bodies
            for shape, op, line in program.all_of(loop)
            if op not in PASSIVE and re.search(rf"\b{NUM}\b", shape)
        ],
        "loops": [turns for _, turns in program.loops(program.entry)],
        "temporary_mb": compiled.memory_analysis().temp_size_in_bytes / 1e6,
    }


def measured(platform: str, recipe: str, dtype: str, count: int) -> Iterator[dict[str, Any]]:
    make, shape, stored = RECIPES[recipe]
    config = replace(make(), compute_dtype=dtype)
    for name, lower in lowered(config, shape, stored, mesh_of(platform, count)):
        program = lower()
        start = time.perf_counter()
        compiled = program.compile()
        seconds = time.perf_counter() - start
        yield {
            **{"program": name, "network": recipe, "dtype": dtype, "platform": platform, "devices": count},
            **figures(name, compiled, platform),
            "seconds": seconds,
        }


def row(found: dict[str, Any]) -> str:
    target = {"cuda": "H100", "tpu": f"v5e, {found['devices']}"}[found["platform"]]
    reduces = found["all_reduces"] if found["devices"] > 1 else ""
    return (
        f"| {found['program']} | {found['network']} | {found['dtype']} | {target} | {found['kernels']} | {reduces} | "
        f"{found['temporary_mb']:.1f} | {found['seconds']:.0f} |"
    )


def main(arguments: list[str]) -> None:
    def chosen(of: Any) -> list[Any]:
        return [a for a in of if str(a) in arguments] or list(of)

    as_json = "--json" in arguments
    if not as_json:
        print("| program | network | factors | target | kernels | all-reduces | temporary MB | compiled in s |")
        print("|---|---|---|---|---|---|---|---|")
    for platform, recipe, dtype in product(chosen(COUNTS), chosen(RECIPES), chosen(DTYPES)):
        for count in chosen(COUNTS[platform]):
            for found in measured(platform, recipe, dtype, count):
                print(json.dumps(found) if as_json else row(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
