"""How the cost of training grows: with the number of examples, the size of an image and the posterior samples.

    python tests/benchmarks/growth.py [--repeats=5] [--only=PATTERN] [--full]

The sizes of a row take turns. The exponent p is that of cost = c * size^p, fitted to the logarithms by least squares: 1
is in proportion, less than 1 that larger sizes use the machine better.
"""

from contextlib import ExitStack

from measure import (
    alternate,
    check_some,
    exponent,
    load_average,
    open_contender,
    parse,
    print_header,
    print_machine,
    print_row,
    spread,
)

MLP = {"recipe": "pytorch_example", "batch_size": 128}
CONV = {"recipe": "conv", "batch_size": 16}
NUMS = (10**4, 10**5)
SIDES = (14, 28, 56)
SAMPLES = (1, 5, 25, 125)


def rows(full):
    """Name -> size -> (how many examples the cost is of, arguments of ours.training)."""
    nums = (*NUMS, 10**6) if full else NUMS
    epochs = {num: (num, {**MLP, "num_examples": num, "steps": num // 128}) for num in nums}
    result = {"an epoch of 784-400-20, seconds, by the number of examples": epochs}
    for name, recipe in (("784-400-20", MLP), ("a convolutional VAE", CONV)):
        steps = {side**2: _step(100, **recipe, side=side) for side in SIDES}
        result[f"a step of {name}, seconds, by the pixels of an image"] = steps
    for objective in ("elbo", "iwae"):
        steps = {k: _step(1 + 100 // k, **MLP, objective=objective, num_samples=k) for k in SAMPLES}
        result[f"a step of 784-400-20 with {objective}, seconds, by the posterior samples"] = steps
    return result


def _step(steps, **arguments):
    return arguments["batch_size"], {**arguments, "num_examples": 20_000, "steps": steps}


def print_growth(name, sizes, repeats):
    with ExitStack() as stack:
        runs = {
            size: stack.enter_context(open_contender("ours.training", arguments))
            for size, (_, arguments) in sizes.items()
        }
        rates = alternate(runs, repeats)
    costs = {size: [num / rate for rate in rates[size]] for size, (num, _) in sizes.items()}
    exponents = [exponent(list(sizes), each) for each in zip(*costs.values(), strict=True)]
    print_row(name, "; ".join(f"{size:,}: {spread(each)}" for size, each in costs.items()), spread(exponents))


if __name__ == "__main__":
    options = parse(__doc__, full="also a million examples")
    table = rows(options.full)
    check_some(table, options)
    print_machine(options)
    print_header("row", "size: cost", "exponent")
    for name, sizes in table.items():
        if options.only in name:
            print_growth(name, sizes, options.repeats)
    print(f"\nload average at the end {load_average()}")
