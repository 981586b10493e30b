"""Write and read metrics.jsonl, one evaluation of one split per line, and average metrics over training steps."""

import json
from collections.abc import Mapping
from math import isfinite, nan
from pathlib import Path
from typing import Any

from vae_jax.data.files import write_whole

NATS = ("elbo", "log_likelihood", "kl")
LATENTS = ("active_units", "codes_used", "code_perplexity")  # how much of the latents is used: the first, or the others
Totals = dict[str, float]  # sums over steps, with the number of `steps` and the `seconds` that they took


def add(totals: Totals, sums: Mapping[str, Any], steps: int, seconds: float) -> Totals:
    new = {**{name: float(value) for name, value in sums.items()}, "steps": steps, "seconds": seconds}
    return {name: totals.get(name, 0.0) + value for name, value in new.items()}


def averages(totals: Totals, batch_size: int) -> dict[str, float]:
    """The mean of each metric over the steps that were not skipped, or NaN if all steps were skipped.

    The result also holds the number of steps `skipped`, and `examples_per_second`.
    """
    steps, seconds, skipped = (totals[name] for name in ("steps", "seconds", "skipped"))
    sums = {name: total for name, total in totals.items() if name not in ("steps", "seconds", "skipped")}
    means = {name: total / (steps - skipped) if skipped < steps else nan for name, total in sums.items()}
    return {**means, "skipped": skipped, "examples_per_second": steps * batch_size / seconds}


def to_json(value: Any, indent: int | None = None) -> str:
    """Convert a value to JSON. NaN and infinity become null, because JSON has neither."""

    def finite(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: finite(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not isfinite(value) else value

    return json.dumps(finite(value), indent=indent, allow_nan=False)


def append(run_dir: Path, *records: dict[str, Any]) -> None:
    with open(run_dir / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write("".join(to_json(record) + "\n" for record in records))


def text(run_dir: Path) -> str:
    path = run_dir / "metrics.jsonl"
    return path.read_text("utf-8", "replace") if path.exists() else ""


def read(run_dir: Path) -> list[dict[str, Any]]:
    """Read the records up to the first line that is not a record, such as a last line that a crash cut short."""
    records = []
    for line in text(run_dir).splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict):
            break
        records.append(record)
    return records


def names_in(record: Mapping[str, Any]) -> list[str]:
    """The names of the metrics that an objective gave beside its loss: the ELBO and its terms first."""
    rest = ("step", "epoch", "split", "loss", "skipped", "examples_per_second", *LATENTS)
    names = [name for name, value in record.items() if name not in rest and isinstance(value, int | float | None)]
    return [*(name for name in NATS if name in names), *(name for name in names if name not in NATS)]


def describe(record: Mapping[str, Any], rate: float, seconds_left: float) -> str:
    """One line for a person. rate: training examples per second."""
    minutes, seconds = divmod(int(seconds_left), 60)
    shown = [name for name in ("loss", *names_in(record)) if name != "elbo" or "kl" not in record]
    figures = "  ".join(f"{name} {record[name]:.3f}" for name in shown)
    used = "  ".join(f"{name} {record[name]:.5g}" for name in LATENTS if name in record)
    return (
        f"epoch {record['epoch']:g}  {record['split']}: {figures}  {used}  {rate:,.0f} examples/s  "
        f"{minutes}:{seconds:02d} left"
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_whole(path, lambda temporary: temporary.write_text(text, "utf-8"))
