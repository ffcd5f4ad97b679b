"""The whole study: which cells are missing, where they run, and the report of all there are."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from noisy_fm import checkpoint, data, features, files, hosts, lease, report, train
from noisy_fm import config as config_lib
from noisy_fm.messages import require_known, say
from noisy_fm.study import cells, gather, settings, stages, transfers
from noisy_fm.study.cells import Cell

Place = Callable[[Sequence[Cell], ConfigDict], None]


def resolve(config: ConfigDict) -> ConfigDict:
    """The config with its shorthands spelled out; raises for whatever could not run.

    All data are opened: a study fails before it trains, or not for want of them.
    """
    return _opened(config)[0]


def _opened(config: ConfigDict) -> tuple[ConfigDict, str]:
    """(The config as `resolve` has it, `data.identity` of what is trained and validated on)."""
    config = settings.completed(config)
    settings.check(config)
    first = cells.grid(config, Path())[0].config
    with settings.own_keys():
        made = train.setup(first)
    features.check_names(
        made.task, made.plan.shapes.variables, made.source, [config.feature], where="config.feature"
    )
    transfers.check(transfers.collect(config), first.data.size)
    return config, data.identity(made.clean, made.eval_source, columns=made.task.columns)


def here(grid: Sequence[Cell], config: ConfigDict) -> None:
    """Runs the cells one after another in this process, or this run's processes."""
    for cell in grid:
        stages.run(cell, config)


def run(config: ConfigDict, workdir: str, *, place: Place = here) -> Path | None:
    """Runs what is missing of the study in `workdir`; returns the path of its report.

    `place` sees to it that the cells it is given are done. Only the first of several processes
    writes the report.
    """
    config_lib.cache_compilations()
    config, data_hash = _opened(config)
    folder = begun(config, workdir, data_hash)
    with lease.held(folder):
        if hosts.first():
            files.write_json(folder / "config.json", config_lib.plain(config))
            files.write_json(folder / "environment.json", gather.environment())
        place(cells.grid(config, folder), config)
        return reported(config, folder) if hosts.first() else None


def run_cell(config: ConfigDict, workdir: str, name: str) -> None:
    """Runs what is missing of one cell, beside whoever runs the others."""
    config_lib.cache_compilations()
    config, data_hash = _opened(config)
    folder = begun(config, workdir, data_hash)
    grid = {cell.name: cell for cell in cells.grid(config, folder)}
    # One that is not wanted any more may still be saving what it did of this cell.
    stages.run(grid[require_known("--cell", name, grid)], config, patience=120.0)


def dry_run(config: ConfigDict, workdir: str) -> list[tuple[Cell, str]]:
    """The cells of the grid, and what is left to do of each; writes nothing."""
    config = resolve(config)
    found = []
    for cell in cells.grid(config, Path(workdir).expanduser().absolute()):
        left = [name for name, made in stages.outputs(cell, config).items() if made is None]
        found.append((cell, f"left: {', '.join(left)}" if left else "done"))
    return found


def begun(config: ConfigDict, workdir: str, data_hash: str) -> Path:
    """The study's folder, marked as of this training config and these examples.

    Raises ValueError if it is of others.
    """
    if "://" in workdir:
        raise ValueError(f"--workdir {workdir}: expected a folder that all machines of a study see")
    folder = Path(workdir).expanduser().absolute()
    checkpoint.claim(
        folder,
        "pretrain.json",
        config_lib.plain(config.pretrain),
        differences=config_lib.run_differences,
    )
    examples = {"hash of examples and labels": data_hash}
    checkpoint.claim(folder, "data.json", examples, differences=config_lib.differences)
    return folder


def reported(config: ConfigDict, folder: Path) -> Path:
    """Gathers the records of all cells, those of earlier grids too, and builds the report."""
    found, left_out = {}, {}
    earlier = cells.beside(config, folder)
    for cell in (*cells.grid(config, folder), *earlier):
        made = {name: out for name, out in stages.outputs(cell, config).items() if out is not None}
        if lacking := [stage.name for stage in stages.STAGES if stage.name not in made]:
            left_out[cell.name] = f"it lacks {', '.join(lacking)} as this config has them"
        else:
            found[cell] = made
    if more := [cell.name for cell in earlier if cell in found]:
        say(f"the report includes cells of an earlier grid in this workdir: {', '.join(more)}")
    for name, why in left_out.items():
        say(f"the report does not include {folder / 'cells' / name}: {why}")
    gather.assemble(config, folder, found)
    stages_done = [one for made in found.values() for one in made.values()]
    unreadable = {name for one in stages_done for name in one.get("unreadable", ())}
    about = {"left_out": left_out, "unreadable": sorted(unreadable)}
    files.write_json(folder / "grid.json", {"cells": [cell.name for cell in found], **about})
    return report.build(folder)
