"""Hours on a CPU: the VAE and the IWAE of Burda et al. 2016 (arXiv:1509.00519), one stochastic layer, on MNIST.

    python train.py --config=configs/iwae/one_layer.py
    python -m vae_jax evaluate checkpoints/one_layer

On one CPU core in 1 h 50 min: NLL 86.43 nats (dynamic binarisation, K = 500, all 10,000 test images, seed 0), and 86.13
with K = 5,000, as in the paper, whose VAE reaches 86.76. The other cells were never run to their end.

784-200-200-50, tanh; Adam with epsilon 1e-4, batch 20, and 3,280 epochs: 3^i of them at 1e-3 * 10^(-i/7), i = 0 to 7.
A smaller --config.num_epochs ends the same schedule early. The cells of their table 1 are flags: k samples of the VAE
are --config.num_samples=5, whose KL they estimate from samples (--config.kl=monte_carlo) and this recipe has in closed
form; of the IWAE --config.objective=iwae as well, with --config.estimator=dreg for the gradient of Tucker et al. 2019.
"""

from vae_jax.config import Config


def get_config() -> Config:
    return Config(
        dataset="mnist",
        binarization="dynamic",
        hidden_sizes=(200, 200),
        activation="tanh",
        latent_dim=50,
        batch_size=20,
        num_epochs=3280,
        learning_rate=1e-3,
        schedule="burda",
        optimizer_options={"eps": 1e-4},
        eval_epochs=40,
    )
