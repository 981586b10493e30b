"""A convolutional VAE of grey MNIST, z = 64: 3x3 convolutions of stride 2 with 32 and 64 channels and their mirror.

    python train.py --config=configs/conv.py

On 2 CPU cores in 287 s: a test loss of 101.62 nats (grey, seed 0).

Adam 1e-3, batch 16, 10 epochs. The likelihood is a flag: Bernoulli, or a unit-variance Gaussian, which is half the
squared error (plus 784 log(2 pi) / 2 = 720.45 nats), with a test loss of 739.72 nats, the constant included:

    python train.py --config=configs/conv.py --config.likelihood=gaussian --workdir=checkpoints/conv_gaussian
"""

from vae_jax.config import Config


def get_config() -> Config:
    return Config(
        dataset="mnist",
        network="convolutional",
        network_options={"channels": [32, 64]},
        hidden_sizes=(),
        activation="relu",
        latent_dim=64,
        output_bias=False,
        batch_size=16,
        num_epochs=10,
        learning_rate=1e-3,
    )
