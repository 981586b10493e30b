"""Never run to its end: the VAE and the IWAE of Burda et al. 2016 (arXiv:1509.00519), two stochastic layers, on MNIST.

    python train.py --config=configs/iwae/two_layers.py

784-200-200-100-100-100-50: z1 of 100 dimensions next to the image, z2 of 50 above it. All else as `one_layer.py`, which
says what the flags of their table's cells are.
"""

from vae_jax.config import Config


def get_config() -> Config:
    return Config(
        dataset="mnist",
        binarization="dynamic",
        hidden_sizes=(200, 200),
        activation="tanh",
        latent_dim=100,
        hierarchy="markov",
        hierarchy_options={"latent_dim": 50, "hidden_sizes": [100, 100]},
        batch_size=20,
        num_epochs=3280,
        learning_rate=1e-3,
        schedule="burda",
        optimizer_options={"eps": 1e-4},
        eval_epochs=40,
    )
