"""How frozen features are tuned: name → the heads it fits, as arguments of `probe.Head`."""

import itertools
from collections.abc import Callable

from ml_collections import ConfigDict

from noisy_fm import probe
from noisy_fm.messages import require_known


def alone(method: str) -> Callable[[ConfigDict], list[dict]]:
    """One head, by the method's recipe."""
    return lambda config: [{"method": method}]


def nmtune(config: ConfigDict) -> list[dict]:
    """The preset's λ (None), and every one of `config.weights` besides."""
    return [{"method": "nmtune", "weights": weights} for weights in (None, *config.weights)]


PROTOCOLS: dict[str, Callable[[ConfigDict], list[dict]]] = {
    "lp": alone("lp"),
    "mlp": alone("mlp"),
    "nmtune": nmtune,
    "ridge": alone("ridge"),
    "logreg": alone("logreg"),
    "knn": alone("knn"),
}


def heads(config: ConfigDict) -> list[probe.Head]:
    """Every head of every method, with each fraction, label noise and seed of the study, once."""
    recipes = [
        recipe
        for method in config.methods
        for recipe in PROTOCOLS[require_known("config.methods", method, PROTOCOLS)](config)
    ]
    made = [
        probe.Head(
            **recipe,
            preset=config.preset,
            seed=seed,
            fraction=fraction,
            label_noise=label_noise,
            epochs=config.probe_epochs,
        )
        for recipe, fraction, label_noise, seed in itertools.product(
            recipes, config.fractions, config.label_noise, range(config.probe_seeds)
        )
    ]
    return list(dict.fromkeys(made))  # the preset's λ may be among `config.weights`
