"""Train a VAE: `python train.py --config=configs/mnist.py --config.beta=4`. `--help` lists every flag.

vae_jax/cli/train.py is to be read: the way from the flags to the printed result. `python -m vae_jax train` is the same.
"""

from pathlib import Path

from vae_jax.__main__ import perform
from vae_jax.cli import console


def main(argv: list[str]) -> int:
    return perform(console.parse_train(argv, folder=Path(__file__).resolve().parent))


if __name__ == "__main__":
    console.script(main)
