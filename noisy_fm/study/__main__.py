"""Runs a study: pre-train at each noise rate, extract, look at the spectrum, tune, report.

    python -m noisy_fm.study --config=configs/study/emoji.py --workdir=runs/emoji

Every stage writes one artifact, whole or not at all, and is skipped when its artifact is there:
kill it anywhere and run the same line again. More noise_rates or seeds in the same workdir only run
the new cells; a change in what is measured (transfers, methods, …) runs that again, never the
training.

    --scheduler=local:4            four cells at a time on this machine, each a process of its own
                                   with a quarter of the cores (a core more or less is another draw
                                   of the rounding: compare runs of one N)
    --scheduler=tcp://host:8786    on the workers of a Dask scheduler (tools/launch/); WORKDIR is a
                                   folder that all of them see
    --dry_run                      print the line that runs each cell, for any other scheduler; the
                                   plain line then makes the report
    --cell=NAME                    run that cell only
"""

import functools
import os
import shlex
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from noisy_fm import app, children, hosts, study
from noisy_fm.messages import say
from noisy_fm.study import cluster, grid, settings

OWN = ("scheduler", "dry_run", "cell")  # flags that say where cells run


def line(arguments: Sequence[str], cell: str) -> list[str]:
    """The command line that runs one cell of a study that was given these arguments."""
    kept, skip = [], False
    for argument in arguments:
        name, equals, _ = argument.lstrip("-").partition("=")
        if not skip and not (argument.startswith("-") and name in OWN):
            kept.append(argument)
        skip = not skip and argument.startswith("-") and name in OWN[::2] and not equals
    return [sys.executable, "-m", "noisy_fm.study", *kept, f"--cell={cell}"]


def main(config: ConfigDict, workdir: str) -> None:
    given = flags.FLAGS
    children.die_with_parent()
    of_cell = functools.partial(line, sys.argv[1:])
    if given.dry_run:
        found = grid.dry_run(config, workdir)
        for cell, left in found if hosts.first() else ():
            say(f"{shlex.join(of_cell(cell.name))}  # {left}")
        return
    if given.cell:
        grid.run_cell(config, workdir, given.cell)
        return
    place = grid.here
    if given.scheduler:
        cluster.check(given.scheduler)
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # cells share it
        place = functools.partial(cluster.place, scheduler=given.scheduler, line=of_cell)
    path = study.run(config, workdir, place=place)
    if path is not None:
        say(f"report: {path}")


if __name__ == "__main__":
    flags.DEFINE_string("scheduler", "", "local:N or the address of a Dask scheduler")
    flags.DEFINE_string("cell", "", "the one cell to run")
    flags.DEFINE_bool("dry_run", False, "print the line that runs each cell")
    app.run_app(main, defaults=settings.defaults)
