"""What vae_jax exports, for type checkers. __init__.py imports it when it is first used."""

from vae_jax import (
    annealing as annealing,
    anomalies as anomalies,
    bounds as bounds,
    build as build,
    codebooks as codebooks,
    codes as codes,
    config as config,
    core as core,
    distributions as distributions,
    errors as errors,
    evaluate as evaluate,
    fitted as fitted,
    flows as flows,
    generate as generate,
    hierarchies as hierarchies,
    likelihoods as likelihoods,
    networks as networks,
    objectives as objectives,
    penalties as penalties,
    posteriors as posteriors,
    priors as priors,
    update as update,
    vae as vae,
)
from vae_jax.annealing import annealed_log_weights as annealed_log_weights
from vae_jax.bounds import (
    negative_ciwae as negative_ciwae,
    negative_miwae as negative_miwae,
    negative_piwae as negative_piwae,
    negative_renyi as negative_renyi,
    negative_thermodynamic as negative_thermodynamic,
)
from vae_jax.config import Config as Config
from vae_jax.core import (
    VAE as VAE,
    Distribution as Distribution,
    Examples as Examples,
    Likelihood as Likelihood,
    condition as condition,
    reparameterize as reparameterize,
)
from vae_jax.distributions import (
    Bernoulli as Bernoulli,
    Delta as Delta,
    DiagonalGaussian as DiagonalGaussian,
    FullGaussian as FullGaussian,
    bernoulli_log_prob as bernoulli_log_prob,
    full_gaussian_log_prob as full_gaussian_log_prob,
    gaussian_log_prob as gaussian_log_prob,
    kl_analytic as kl_analytic,
    kl_diagonal_gaussians as kl_diagonal_gaussians,
    kl_divergence as kl_divergence,
    kl_gaussians as kl_gaussians,
    kl_monte_carlo as kl_monte_carlo,
    kl_standard_normal as kl_standard_normal,
)
from vae_jax.errors import UserError as UserError
from vae_jax.evaluate import (
    make_annealed as make_annealed,
    make_evaluate as make_evaluate,
    make_exact as make_exact,
    make_mutual_information as make_mutual_information,
    summarize as summarize,
)
from vae_jax.fitted import fit_prior as fit_prior
from vae_jax.generate import reconstruct as reconstruct, sample as sample
from vae_jax.networks import Network as Network
from vae_jax.objectives import (
    Elbo as Elbo,
    elbo as elbo,
    importance_bound as importance_bound,
    log_weights as log_weights,
    negative_elbo as negative_elbo,
    negative_iwae as negative_iwae,
)
from vae_jax.penalties import (
    negative_capacity as negative_capacity,
    negative_dip as negative_dip,
    negative_mmd as negative_mmd,
    negative_total_correlation as negative_total_correlation,
    negative_vq as negative_vq,
)
from vae_jax.posteriors import Posterior as Posterior
from vae_jax.priors import Prior as Prior
from vae_jax.run.checkpoints import load as load
from vae_jax.run.weights import save as save
from vae_jax.update import (
    Training as Training,
    TrainState as TrainState,
    init_state as init_state,
    make_train as make_train,
    make_training as make_training,
    make_update as make_update,
)

__version__: str
