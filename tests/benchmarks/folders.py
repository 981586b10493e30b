"""How fast a folder of photographs is decoded, and found again, as JSON.

    python tests/benchmarks/folders.py [--num=20000]

The photographs are crops of the two of scikit-learn, JPEGs of 240 x 160 pixels, scaled and cut to 64 x 64.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READ = """
import json, resource, sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from vae_jax.data.files import Reading
from vae_jax.data.images import decoded_file
start = time.perf_counter()
decoded_file(Path(sys.argv[1]), Reading(image_size=(64,)))
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": round(seconds, 2), "peak_mb": peak // 1024}))
"""


def make(folder: Path, num: int) -> None:
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng, photographs = np.random.default_rng(0), load_sample_images().images
    for i in range(num):
        photograph = photographs[i % 2]
        top, left = (int(rng.integers(size - cut)) for size, cut in zip(photograph.shape, (160, 240), strict=False))
        crop = photograph[top : top + 160, left : left + 240]
        (folder / str(i % 10)).mkdir(exist_ok=True)
        Image.fromarray(crop).save(folder / str(i % 10) / f"{i}.jpg", quality=90)


def read(folder: Path, cache: Path, cores: set[int]) -> dict[str, float]:
    """What one process takes to read the folder on some cores."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(folder), str(ROOT)],
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--num", type=int, default=20_000)
options = parser.parse_args()
everywhere = os.sched_getaffinity(0)
with tempfile.TemporaryDirectory() as name:
    folder = Path(name, "photographs")
    folder.mkdir()
    make(folder, options.num)
    result = {"num": options.num, "cores": len(everywhere)}
    result["one core"] = read(folder, Path(name, "one"), {min(everywhere)})
    result["all cores"] = read(folder, Path(name, "all"), everywhere)
    result["again"] = read(folder, Path(name, "all"), everywhere)
print(json.dumps(result))
