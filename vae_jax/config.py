"""The settings of a run: typed, documented, readable from a recipe, flags or a checkpoint. Imports no jax."""

import difflib
import inspect
import json
import runpy
from dataclasses import asdict, dataclass, field, fields, replace
from math import isfinite
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin, get_type_hints

from vae_jax.errors import UserError

MAX_WHOLE = 2**32 - 1  # what a key of jax.random and a step count hold


def _setting(default: Any, doc: str, choices: tuple[str, ...] = (), least: int = 0) -> Any:
    metadata = {"doc": doc, "choices": choices, "least": least}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes. A value that is no part of it cannot change the result."""

    # fmt: off
    dataset: str = _setting("digits", "digits (embedded), mnist, fashion_mnist, kmnist, a .npy, a .npz or a folder")
    classes: tuple[int, ...] = _setting((), "keep only the examples with these labels; empty: all")
    validation_size: int = _setting(0, "training examples held out; 0: the curves and the best are of the test split")
    binarization: str = _setting("none", "none; dynamic: x ~ Bernoulli(x) anew each step; static: once, for good",
                          ("none", "dynamic", "static"))
    stream: bool = _setting(False, "read the training examples as they are needed: of a .npy file larger than memory")
    conditional: bool = _setting(False, "give the label to encoder and decoder")
    network: str = _setting("mlp", "a function of vae_jax/networks.py")
    network_options: dict[str, Any] = _setting({}, "further arguments of the network, as JSON")
    hidden_sizes: tuple[int, ...] = _setting((400,), "units of the encoder's dense layers; the decoder mirrors them")
    activation: str = _setting("relu", "a function of jax.nn, or one a hidden layer, separated by commas")
    compute_dtype: str = _setting("float32", "of the factors in the network's products; all else is float32",
                          ("float32", "bfloat16"))
    latent_dim: int = _setting(20, "dimensions of z", least=1)
    likelihood: str = _setting("bernoulli", "p(x|z): a function of vae_jax/likelihoods.py")
    likelihood_options: dict[str, Any] = _setting({}, "further arguments of the likelihood, as JSON")
    posterior: str = _setting("diagonal", "q(z|x): a function of vae_jax/posteriors.py")
    posterior_options: dict[str, Any] = _setting({}, "further arguments of the posterior, as JSON")
    prior: str = _setting("standard_normal", "p(z): a function of vae_jax/priors.py")
    prior_options: dict[str, Any] = _setting({}, "further arguments of the prior, as JSON")
    hierarchy: str = _setting("", "a second latent above z: a function of vae_jax/hierarchies.py; empty: none")
    hierarchy_options: dict[str, Any] = _setting({}, "further arguments of the hierarchy, as JSON")
    output_bias: bool = _setting(True, "start the decoder's last bias at the training mean")
    objective: str = _setting("elbo", "what is maximised: the ELBO or the bound of num_samples importance weights",
                         ("elbo", "iwae"))
    estimator: str = _setting("pathwise", "of the gradient; stl for elbo, dreg for iwae", ("pathwise", "stl", "dreg"))
    free_bits: float = _setting(0.0, "nats that the KL of a latent dimension costs at least")
    kl: str = _setting("analytic", "analytic where there is a closed form, or its estimate from samples",
                ("analytic", "monte_carlo"))
    num_samples: int = _setting(1, "posterior samples K an example and step", least=1)
    alpha: float = _setting(1.0, "weight of -log p(x|z) in the loss")
    beta: float = _setting(1.0, "weight of the KL in the loss")
    beta_warmup_steps: int = _setting(0, "steps over which beta rises from 0")
    batch_size: int = _setting(128, "examples a step; the ragged rest of a shuffled epoch is left out", least=1)
    num_epochs: int = _setting(50, "passes over the training examples", least=1)
    optimizer: str = _setting("adam", "an optimiser of optax")
    optimizer_options: dict[str, Any] = _setting({}, "further arguments of the optimiser, as JSON")
    learning_rate: float = _setting(1e-3, "its peak, a step")
    schedule: str = _setting("constant", "of the learning rate, over the whole run", ("constant", "cosine"))
    warmup_steps: int = _setting(0, "steps over which the learning rate rises from 0")
    clip_norm: float = _setting(0.0, "largest global norm of a gradient; 0: any")
    ema_decay: float = _setting(0.0, "decay a step of the averaged weights that are evaluated; 0: no average")
    eval_epochs: int = _setting(1, "epochs between evaluations, each of which saves a checkpoint", least=1)
    picture_epochs: int = _setting(0, "epochs between pictures kept in the run directory; 0: only those at the end")
    seed: int = _setting(0, "of everything random")
    # fmt: on

    def __post_init__(self):
        hints = get_type_hints(type(self))
        for f in fields(self):
            object.__setattr__(self, f.name, _typed(f.name, getattr(self, f.name), hints[f.name]))
            choices = f.metadata["choices"]
            if choices and getattr(self, f.name) not in choices:
                raise unknown(f.name, getattr(self, f.name), choices)
            if hints[f.name] in (int, float) and getattr(self, f.name) < f.metadata["least"]:
                raise UserError(f"{f.name} is {getattr(self, f.name)}; expected at least {f.metadata['least']}.")
            if hints[f.name] is int and getattr(self, f.name) > MAX_WHOLE:
                raise UserError(f"{f.name} is {getattr(self, f.name)}; expected at most {MAX_WHOLE}.")
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate is {self.learning_rate}; expected a positive number.")
        if self.ema_decay >= 1:
            raise UserError(f"ema_decay is {self.ema_decay}; expected a number in [0, 1).")
        if any(size < 1 for size in self.hidden_sizes):
            raise UserError(f"hidden_sizes is {self.hidden_sizes}; expected positive whole numbers.")


def load_recipe(path: str | Path) -> Config:
    """The Config that `get_config()` of a Python file returns."""
    if not Path(path).is_file():
        raise UserError(f"There is no config file {path}. Give a recipe, such as --config=configs/mnist.py.")
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        if get_config is None:
            raise UserError("expected a function get_config() that returns a vae_jax.config.Config.")
        config = get_config()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} failed: {type(error).__name__}: {error}".replace("\n", " ")) from None
    if not isinstance(config, Config):
        raise UserError(f"get_config() of {path} returned a {type(config).__name__}; expected a vae_jax.config.Config.")
    return config


def override(config: Config, values: dict[str, str]) -> Config:
    """`config` with fields set from text, as given on a command line."""
    hints = get_type_hints(Config)
    for name in values:
        if name not in hints:
            raise unknown("field", name, tuple(hints))
    return replace(config, **{name: parse(name, text, hints[name]) for name, text in values.items()})


def to_json(config: Config) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config)))


def from_json(values: dict[str, Any]) -> Config:
    names = {f.name for f in fields(Config)}
    for name in values:
        if name not in names:
            raise UserError(f"The config has a field {name!r} that this version does not know. Update vae_jax.")
    return Config(**values)


def parse(name: str, text: str, kind: Any) -> Any:
    """The value of type `kind` that `text` writes."""
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind in (int, float, str):
            return kind(text)
        if get_origin(kind) is tuple:
            item = get_args(kind)[0]
            return tuple(item(part) for part in text.strip("()[] ").split(",") if part.strip())
        value = json.loads(text)
        if isinstance(value, dict):
            return value
    except (ValueError, KeyError):
        pass
    raise UserError(f"{name} is {text!r}; expected {_describe(kind)}.")


def unknown(kind: str, name: Any, choices: tuple[str, ...]) -> UserError:
    """The error for a name that is none of `choices`, with the nearest of them."""
    close = difflib.get_close_matches(str(name), choices, 1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UserError(f"Unknown {kind} {name!r}.{hint} Choose one of: {', '.join(choices)}.")


def make(module: ModuleType, kind: str, name: str, /, *args: Any, **options: Any) -> Any:
    """Call the function `name` of `module` that returns a `kind`; if there is none, or no such option, a UserError."""
    functions = {n: f for n, f in vars(module).items() if inspect.isfunction(f) and not n.startswith("_")}
    known = {n: f for n, f in functions.items() if getattr(f.__annotations__.get("return"), "__name__", "") == kind}
    choices = tuple(sorted(known))
    if name not in choices:
        raise unknown(kind.lower(), name, choices)
    kind = kind.lower()
    accepted = [p.name for p in inspect.signature(known[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in accepted:
            raise UserError(f"{kind} {name!r} has no option {option!r}. Its options: {', '.join(accepted) or 'none'}.")
    try:
        return known[name](*args, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{kind} {name!r}: {error}") from None


def _typed(name: str, value: Any, kind: Any) -> Any:
    """`value` as `kind`, if that changes nothing: 4 is a float, [400] a tuple; '4' is no int and 0.5 neither."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_typed(name, item, get_args(kind)[0]) for item in value)
    expected = get_origin(kind) or kind
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise UserError(f"{name} is {value!r}; expected {_describe(kind)}.")
    if expected is float and not isfinite(value):
        raise UserError(f"{name} is {value}; expected a finite number.")
    return value


def _describe(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return "whole numbers separated by commas"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(kind, "a JSON object such as '{\"name\": 1}'")
