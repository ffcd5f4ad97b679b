"""Heads on frozen features: linear probes, MLP tuning, NMTune and reference points, in grids.

from noisy_fm import probe
heads = [probe.Head("nmtune", seed=s, fraction=p) for s in range(3) for p in (0.1, 1.0)]
results = probe.fit_heads(x, y, heads, num_classes=10, test_sets={"test": (x2, y2)})
"""

from noisy_fm.probe.fit import Result, fit_heads
from noisy_fm.probe.head import Head
from noisy_fm.probe.plan import subset
from noisy_fm.probe.selection import Selection, select

__all__ = ["Head", "Result", "Selection", "fit_heads", "select", "subset"]
