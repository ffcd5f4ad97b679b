"""A study: a grid of training runs under noise, what is measured on each, and one report.

A cell is one pre-trained model. It goes through `stages.STAGES`, of which each leaves one artifact;
`grid` says which cells there are and runs what is missing, here or on other machines.
"""

from noisy_fm.study.grid import resolve, run
from noisy_fm.study.settings import defaults, transfer

__all__ = ["defaults", "resolve", "run", "transfer"]
