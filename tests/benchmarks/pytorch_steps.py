"""The training step of PyTorch for rows of network, batch size, type and number of steps: a line of JSON for each.

    python tests/benchmarks/pytorch_steps.py [--repeats=3] MLP,128,float32,2000 Convolutional,1024,bfloat16,500

A line holds the row's index, images a second, and the variant: the first of VARIANTS that works here. The images are
floats in the device's memory, and Adam is fused. float32 products may use TF32, as in JAX's default precision.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator

import pytorch
import torch
from measure import Run, images
from pytorch import DEVICE
from torch import Tensor

Step = Callable[[Tensor], None]  # trains on the images with these indices
# From the fastest: all kernels of a step in one CUDA graph, torch.compile with graphs of its own, without graphs.
VARIANTS = ("one CUDA graph", "reduce-overhead", "compiled", "not compiled")


def make_step(variant: str, x: Tensor, network: str, batch_size: int, dtype: str) -> tuple[Step, Tensor]:
    """A step of a new model, and the sum of its losses so far."""
    channels_last = network == "Convolutional" and x.is_cuda
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = getattr(pytorch, network)().to(x.device, memory_format=memory_format)
    in_graph = variant == "one CUDA graph"
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True, capturable=in_graph)
    total = torch.zeros((), device=x.device)

    def loss(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            return pytorch.loss(model, x) / batch_size

    if variant != "not compiled":
        mode = "reduce-overhead" if variant == "reduce-overhead" else "default"
        loss = torch.compile(loss, dynamic=False, mode=mode)

    def step(rows: Tensor) -> None:
        optimizer.zero_grad()
        value = loss(x[rows])
        value.backward()
        optimizer.step()
        total.add_(value.detach())

    return (captured(step, torch.arange(batch_size, device=x.device)) if in_graph else step), total


def captured(step: Step, rows: Tensor) -> Step:
    """The step as one CUDA graph, which is captured after three steps on a stream of their own."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(rows)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        step(rows)

    def replay(new: Tensor) -> None:
        rows.copy_(new)
        graph.replay()

    return replay


def make_run(step: Step, total: Tensor, num: int, batch_size: int, steps: int) -> Run:
    """Images a second of `steps` whole batches, in a new order for every pass over the `num` images."""

    def batches() -> Iterator[Tensor]:
        while True:
            order = torch.randperm(num, device=DEVICE)
            yield from order[: num // batch_size * batch_size].split(batch_size)

    def run() -> float:
        start = time.perf_counter()
        for _, rows in zip(range(steps), batches(), strict=False):
            step(rows)
        float(total)  # waits for the device
        return steps * batch_size / (time.perf_counter() - start)

    return run


def measured(x: Tensor, network: str, batch_size: int, dtype: str, steps: int, repeats: int) -> dict:
    """The rates of the first variant that works, its name, and why those before it failed."""
    failed: dict[str, str] = {}
    for variant in VARIANTS if x.is_cuda else VARIANTS[2:]:
        torch.compiler.reset()  # else another batch size would be compiled for any size
        try:
            run = make_run(*make_step(variant, x, network, batch_size, dtype), len(x), batch_size, steps)
            run()
            return {"images_per_second": [run() for _ in range(repeats)], "variant": variant, "failed": failed}
        except Exception as error:
            failed[variant] = f"{type(error).__name__}: {error}".splitlines()[0]
    return {"failed": failed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", metavar="NETWORK,BATCH_SIZE,TYPE,STEPS")
    parser.add_argument("--repeats", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--num", type=int, default=60_000, help="how many images there are (%(default)s)")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    x = torch.from_numpy(images(options.num)).permute(0, 3, 1, 2).contiguous().to(DEVICE).float().div(255)
    for index, row in enumerate(options.rows):
        network, batch_size, dtype, steps = row.split(",")
        result = measured(x, network, int(batch_size), dtype, int(steps), options.repeats)
        print(json.dumps({"row": index, "torch": torch.__version__, **result}), flush=True)


if __name__ == "__main__":
    main()
