"""Never run to its end: dynamically binarised MNIST on one GPU, with residual blocks and a RealNVP prior on z = 40.

    python train.py --config=configs/mnist_gpu.py
    python -m vae_jax evaluate checkpoints/mnist_gpu --checkpoint=best --num_samples=5000

The network of `mnist_12min.py` with two to four times the channels and with blocks at every size, for 300 epochs. The
checkpoint with the lowest loss of the 5,000 validation images is the one to evaluate: so many epochs can overfit.
"""

from vae_jax.config import Config


def get_config() -> Config:
    return Config(
        dataset="mnist",
        validation_size=5000,
        binarization="dynamic",
        network="convolutional",
        network_options={
            "channels": [64, 128],
            "encoder_blocks": [2, 2],
            "decoder_channels": [128, 128],
            "decoder_blocks": [2, 2],
        },
        hidden_sizes=(256,),
        activation="gelu",
        compute_dtype="bfloat16",
        latent_dim=40,
        prior="real_nvp",
        prior_options={"hidden_size": 256},
        kl="monte_carlo",
        estimator="stl",
        batch_size=256,
        num_epochs=300,
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=1000,
        ema_decay=0.999,
        eval_epochs=5,
    )
