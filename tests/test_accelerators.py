"""The programs that XLA makes for a GPU and for TPUs, compiled ahead of time: neither needs to be here.

`python -m pip install -e '.[aot]'` installs the compilers. Each case is a process of its own, since only one platform
can be set up in a process.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow

PACKAGES = {"cuda": ("jax_cuda13_plugin", "nvidia.cu13"), "tpu": ("libtpu",)}
NETWORKS, DTYPES = ("mlp", "convolutional", "temporal"), ("float32", "bfloat16")
# The most that a program may start one after the other; of training, in one step. Two or three kernels more than XLA
# makes now do not fail, but ten do.
KERNELS = {
    ("cuda", "training"): {"mlp": 52, "convolutional": 82, "temporal": 78},
    ("cuda", "evaluation"): {"mlp": 120, "convolutional": 160, "temporal": 160},
    ("cuda", "sampling"): {"mlp": 10, "convolutional": 18, "temporal": 18},
    ("tpu", "training"): {"mlp": 78, "convolutional": 200, "temporal": 90},
    ("tpu", "evaluation"): {"mlp": 100, "convolutional": 165, "temporal": 110},
    ("tpu", "sampling"): {"mlp": 25, "convolutional": 30, "temporal": 32},
}
TURNS_KNOWN = {"training": [None, None, 32, None], "evaluation": [5], "sampling": [], "exported": []}


def has(package):
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture(scope="module", params=[(p, n, d) for p in PACKAGES for n in NETWORKS for d in DTYPES], ids="-".join)
def programs(request):
    """What the programs of a network for a platform hold."""
    platform, network, dtype = request.param
    if missing := [package for package in PACKAGES[platform] if not has(package)]:
        pytest.skip(f"{', '.join(missing)} is missing: python -m pip install -e '.[aot]'")
    # The tests' own flags make XLA optimise less.
    env = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    command = [sys.executable, "tests/benchmarks/accelerators.py", "--json", platform, network, dtype]
    done = subprocess.run(command, cwd=ROOT, env=env | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_all_programs_compile(programs):
    several = programs[0]["platform"] == "tpu"
    expected = [(name, 1) for name in TURNS_KNOWN] + [(name, 4) for name in ("training", "evaluation")] * several
    assert [(program["program"], program["devices"]) for program in programs] == expected


def test_no_loop_copies_or_computes_what_is_as_large_as_the_data(programs):
    assert [program["large"] for program in programs] == [[]] * len(programs)


def test_nothing_moves_to_the_host_or_waits_for_it(programs):
    for program in programs:
        assert program["host"] == []
        if program["platform"] == "cuda":  # a TPU runs branches and loops of any length by itself
            assert program["waits"] == []
            assert program["loops"] == TURNS_KNOWN[program["program"]]


def test_training_on_four_devices_adds_up_once_a_step(programs):
    """In bfloat16 twice: XLA joins only sums of one type."""
    for program in programs:
        training = program["program"] == "training" and program["devices"] > 1
        most = 1 + (program["dtype"] == "bfloat16")
        assert program["all_reduces"] in (range(1, most + 1) if training else (0,))
        assert program["other_collectives"] == []


def test_a_step_starts_few_kernels(programs):
    for program in programs:
        name = "sampling" if program["program"] == "exported" else program["program"]
        assert program["kernels"] <= KERNELS[program["platform"], name][program["network"]]
