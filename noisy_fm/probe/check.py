"""Mistakes in features, labels and heads, each told in one line before anything is compiled."""

import warnings

import numpy as np

from noisy_fm.probe.head import Head
from noisy_fm.spectrum.arrays import refuse_masked

BLOCK_BYTES = 2**23  # taken at a time


def checked_features(features, name: str, *, width: int | None = None, least: int = 2):
    """The array as given (memory-mapped ones stay on disk), [n d] or [n v d] floats."""
    refuse_masked(features, where=name)
    if not hasattr(features, "dtype") or not hasattr(features, "shape"):
        features = np.asarray(features)
    if features.dtype.kind not in "fiub" and features.dtype.name != "bfloat16":
        raise TypeError(f"{name} must be numbers, got dtype {features.dtype}")
    if features.ndim not in (2, 3) or 0 in features.shape[1:]:
        raise ValueError(f"{name} must be [n, d] or [n, views, d], got shape {features.shape}")
    if len(features) < least:
        raise ValueError(f"{name} need at least {least} rows, got {len(features)}")
    if width is not None and features.shape[-1] != width:
        raise ValueError(
            f"{name} have {features.shape[-1]} dimensions, the training features have {width}"
        )
    return features


def check_finite(features, name: str) -> None:
    """Raises ValueError for NaN and infinity, also after float32; reads a block at a time."""
    rows = rows_within(features)
    for first in range(0, len(features), rows):
        block = np.asarray(features[first : first + rows])
        with np.errstate(over="ignore"):
            finite = np.isfinite(block.astype(np.float32, copy=False))
        if finite.all():
            continue
        where = np.argwhere(~finite)[0]
        value = block[tuple(where)]
        cause = "an overflow of float16" if block.dtype == np.float16 and np.isinf(value) else ""
        raise ValueError(
            f"{name} must be finite in float32: {value} at row {first + where[0]}, "
            f"column {where[-1]}" + (f" ({cause}?)" if cause else "")
        )


def rows_within(features) -> int:
    """How many rows of features [n …] BLOCK_BYTES of float64 hold, at least one."""
    return max(1, BLOCK_BYTES // max(1, 8 * int(np.prod(features.shape[1:]))))


def warn_constant(features, name: str, *, stacklevel: int = 4) -> None:
    """Warns where every row is the same: no head can then tell examples apart."""
    step = rows_within(features)
    if all(
        np.all(np.asarray(features[i : i + step]) == np.asarray(features[:1]))
        for i in range(0, len(features), step)
    ):
        warnings.warn(
            f"{name} are constant: all rows are equal, heads learn only the class shares",
            stacklevel=stacklevel,
        )


def checked_labels(labels, rows: int, num_classes: int, name: str, *, train: bool) -> np.ndarray:
    """int32 [rows] in 0..num_classes−1; training labels hold at least two classes."""
    refuse_masked(labels, where=name)
    labels = np.asarray(labels)
    if labels.ndim != 1 or len(labels) != rows:
        raise ValueError(f"{name} must be [{rows}], one for each row, got shape {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise TypeError(
            f"{name} must be integers 0..{num_classes - 1}, got dtype {labels.dtype}; "
            f"np.unique(labels, return_inverse=True) numbers any labels"
        )
    if rows and (labels.min() < 0 or labels.max() >= num_classes):
        raise ValueError(
            f"{name} must lie in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}"
        )
    if train and np.all(labels == labels[0]):
        raise ValueError(f"{name} hold one class only ({labels[0]}), a head needs two")
    return labels.astype(np.int32)


def checked_ids(ids, rows: int) -> np.ndarray:
    """int64 [rows], unique; 0..rows−1 where none are given."""
    if ids is None:
        return np.arange(rows)
    refuse_masked(ids, where="ids")
    ids = np.asarray(ids)
    if ids.shape != (rows,) or ids.dtype.kind not in "iu":
        raise ValueError(f"ids must be {rows} integers, got {ids.dtype} {ids.shape}")
    if len(np.unique(ids)) != rows:
        raise ValueError(f"ids must be unique, {rows - len(np.unique(ids))} of {rows} repeat")
    return ids.astype(np.int64)


def checked_heads(heads) -> list[Head]:
    heads = list(heads)
    if not heads:
        raise ValueError("no heads to fit, expected at least one Head(...)")
    for i, head in enumerate(heads):
        if not isinstance(head, Head):
            raise TypeError(f"heads[{i}] must be a probe.Head, got {type(head).__name__}")
    return heads
