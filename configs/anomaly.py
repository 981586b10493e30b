"""Breast tumours: trained on the benign ones alone, so that malignant ones are anomalies.

Its data, made by these lines of Python (Wolberg et al. 1993, in scikit-learn; 30 measured columns):

    from numpy import concatenate, savez
    from numpy.random import RandomState
    from sklearn.datasets import load_breast_cancer

    x, target = load_breast_cancer(return_X_y=True)
    kind = load_breast_cancer().target_names[target]
    benign = RandomState(0).permutation((kind == "benign").nonzero()[0])
    test = concatenate([benign[250:], (kind == "malignant").nonzero()[0]])
    savez("breast_cancer.npz", x_train=x[benign[:250]], y_train=kind[benign[:250]], x_test=x[test], y_test=kind[test])

TODO
"""

from vae_jax.config import Config


def get_config() -> Config:
    return Config(
        dataset="breast_cancer.npz",
        classes=("benign",),
        standardize=True,
        likelihood="gaussian_pixel",
        hidden_sizes=(64,),
        activation="gelu",
        latent_dim=6,
        batch_size=50,
        num_epochs=300,
        eval_epochs=20,
        schedule="cosine",
        ema_decay=0.99,
    )
