"""Speed of vae_jax in ratios: against PyTorch, pythae, its own matrix products and XLA's default settings.

    python -m pip install -e '.[benchmark]'
    python tests/benchmarks/speed.py [--repeats=5] [--only=PATTERN] [--cores=N] [--full]

Random grey images of MNIST's size; training without evaluation. The two of a row have a process each and take turns,
so that other work on the machine slows both, and changes the ratio of their fastest runs least. But the threads of
PyTorch wait in busy loops, and beside other work lose many times more than ours: there, compare on --cores=1. A ratio
above 1 means that ours is faster; against matrix products alone it is the share of the time that they take. Memory is
the peak of the whole process. Without the extra, the rows that need it say so.
"""

from measure import check_some, compare, load_average, parse, print_header, print_machine

MLP = {"recipe": "pytorch_example", "batch_size": 128}
SWEEP = {**MLP, "num_models": 8, "steps": 50}


def groups(full: bool):
    """Title -> contenders, ours first."""
    yield (
        "train 784-400-20, batch 128, images/s",
        {
            "ours": ("ours.training", {**MLP, "steps": 400}),
            "PyTorch's example": ("pytorch.example", {"steps": 80, "num_workers": 0}),
            "PyTorch's example, 1 worker": ("pytorch.example", {"steps": 80, "num_workers": 1}),
            "PyTorch, data in memory": ("pytorch.in_memory", {"network": "MLP", "batch_size": 128, "steps": 200}),
            "pythae": ("pytorch.pythae", {"steps": 100}),
            "its matrix products alone": ("ours.training_products", {"steps": 400}),
            "ours in bfloat16": ("ours.training", {**MLP, "steps": 400, "compute_dtype": "bfloat16"}),
        },
    )
    for batch_size, steps in ((16, 200), (128, 25)):
        yield (
            f"train convolutional, batch {batch_size}, images/s",
            {
                "ours": ("ours.training", {"recipe": "conv", "batch_size": batch_size, "steps": steps}),
                "PyTorch, data in memory": (
                    "pytorch.in_memory",
                    {"network": "Convolutional", "batch_size": batch_size, "steps": steps},
                ),
                "ours in bfloat16": (
                    "ours.training",
                    {"recipe": "conv", "batch_size": batch_size, "steps": steps, "compute_dtype": "bfloat16"},
                ),
            },
        )
    size = {"num": 10_000, "num_samples": 5000} if full else {"num": 400, "num_samples": 500}
    yield (
        f"evaluate 784-200-200-50, {size['num']} x {size['num_samples']}, samples/s",
        {
            **_with_default("evaluation", **size),
            "its matrix products alone": ("ours.evaluation_products", size),
            "ours in bfloat16": ("ours.evaluation", {**size, "compute_dtype": "bfloat16"}),
        },
    )
    yield (
        "evaluate 784-512-512-50, 400 x 200, samples/s",
        _with_default("evaluation", recipe="mnist", num=400, num_samples=200),
    )
    yield (
        "train 8 models 784-400-20 together, images/s",
        {
            "ours": ("ours.several", {**SWEEP, "together": True}),
            "one after the other": ("ours.several", {**SWEEP, "together": False}),
        },
    )


def _with_default(function, **arguments):
    return {
        "ours": (f"ours.{function}", arguments),
        "XLA's default": (f"ours.{function}", {**arguments, "xla_default": True}),
    }


if __name__ == "__main__":
    options = parse(__doc__, full="evaluate 10,000 images with 5,000 samples: minutes a repeat")
    table = dict(groups(options.full))
    check_some((f"{title}: {name}" for title, contenders in table.items() for name in [*contenders][1:]), options)
    print_machine(options)
    print_header("row", "ours", "the other", "ours / the other", "at their best", "peak memory of each, MB")
    for title, contenders in table.items():
        compare(title, contenders, options)
    print(f"\nload average at the end {load_average()}")
