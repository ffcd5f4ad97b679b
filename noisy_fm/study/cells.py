"""The cells of a study's grid: every noise rate with every seed."""

import dataclasses
import itertools
import re
from pathlib import Path

from ml_collections import ConfigDict

from noisy_fm import config as config_lib

NAME = re.compile(r"noise(\d+(?:\.\d+)?(?:e-\d+)?)-seed(\d+)")


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One pre-trained model of the grid."""

    rate: float
    seed: int
    config: ConfigDict  # its training config
    folder: Path
    title: str = ""  # for who watches

    @property
    def name(self) -> str:
        return self.folder.name


def make(config: ConfigDict, workdir: Path, rate: float, seed: int, title: str = "") -> Cell:
    """The cell of a study at γ = `rate`, its seeds those of the config plus `seed`."""
    seeds = {f"seeds.{key}": value + seed for key, value in config.pretrain.seeds.items()}
    own = config_lib.updated(config.pretrain, {"noise.rate": float(rate), **seeds})
    folder = workdir / "cells" / f"noise{rate:g}-seed{seed}"
    return Cell(float(rate), seed, own, folder, f"{title}noise {rate:.1%} seed {seed}")


def grid(config: ConfigDict, workdir: Path) -> list[Cell]:
    """The cells that `config` asks for."""
    places = list(itertools.product(range(config.seeds), config.noise_rates))
    return [
        make(config, workdir, rate, seed, f"[{number}/{len(places)}] ")
        for number, (seed, rate) in enumerate(places, 1)
    ]


def beside(config: ConfigDict, workdir: Path) -> list[Cell]:
    """The cells in `workdir` that an earlier, other grid made."""
    asked = {cell.name for cell in grid(config, workdir)}
    found = [
        (int(match[2]), float(match[1]))
        for path in (workdir / "cells").glob("noise*-seed*")
        if path.name not in asked and (match := NAME.fullmatch(path.name))
    ]
    return [make(config, workdir, rate, seed) for seed, rate in sorted(found)]
