"""The names and layouts of one model's arrays here and elsewhere, read in both directions.

A `Map` is a table: a row says what one of our paths is called there, and how its array lies there.
Both directions walk our variables, so that no row can convert one way only.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

FLOATS = ("float16", "bfloat16", "float32", "float64")
SHOWN = 5  # names of a list that an error gives


class Layout(NamedTuple):
    """How an array lies: theirs → ours, and ours → theirs."""

    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]


def _permuted(*axes: int) -> Layout:
    inverse = tuple(int(i) for i in np.argsort(axes))
    return Layout(lambda x: x.transpose(axes), lambda x: x.transpose(inverse))


SAME = Layout(lambda x: x, lambda x: x)
LINEAR = _permuted(1, 0)  # [out in] ↔ [in out]
CONV = _permuted(2, 3, 1, 0)  # [out in h w] ↔ [h w in out]; also of as many groups as channels
PIXEL = Layout(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])  # 1×1 ↔ a product
BATCH = Layout(lambda x: x[None], lambda x: x[0])  # [n d] ↔ [1 n d]
TOKEN = Layout(lambda x: x[None, None], lambda x: x[0, 0])  # [d] ↔ [1 1 d]


class Rule(NamedTuple):
    """One row: `ours`, a path such as "params/block{i}/attn/qkv/kernel", and `theirs`, a name.

    {i}, {j}, … stand for numbers, in theirs also as {i-1}, or in two digits as {i+1:02}. Several
    names of theirs are parts of our array along its last axis, of equal width.
    """

    ours: str
    theirs: str | Sequence[str]
    layout: Layout = SAME


class Map(NamedTuple):
    """The rows, of which the first that fits a path holds, and what of theirs has no counterpart.

    ignored: regular expressions of whole names: counters, masks, tables that are computed.
    """

    rules: Sequence[Rule]
    ignored: Sequence[str] = (r".*num_batches_tracked",)


def linear(ours: str, theirs: str, *, bias: bool = True) -> list[Rule]:
    """The rows of a product, x W + b."""
    kernel = Rule(f"{ours}/kernel", f"{theirs}.weight", LINEAR)
    return [kernel, Rule(f"{ours}/bias", f"{theirs}.bias")] if bias else [kernel]


def conv(ours: str, theirs: str, *, bias: bool = False) -> list[Rule]:
    """The rows of a convolution, depthwise or not."""
    kernel = Rule(f"{ours}/kernel", f"{theirs}.weight", CONV)
    return [kernel, Rule(f"{ours}/bias", f"{theirs}.bias")] if bias else [kernel]


def norm(ours: str, theirs: str) -> list[Rule]:
    """The rows of a LayerNorm or GroupNorm."""
    return [Rule(f"{ours}/scale", f"{theirs}.weight"), Rule(f"{ours}/bias", f"{theirs}.bias")]


def batch_norm(ours: str, theirs: str) -> list[Rule]:
    """The rows of a BatchNorm; `ours` without "params/"."""
    return [
        *norm(f"params/{ours}", theirs),
        Rule(f"batch_stats/{ours}/mean", f"{theirs}.running_mean"),
        Rule(f"batch_stats/{ours}/var", f"{theirs}.running_var"),
    ]


OWN = Map((), ())  # our own names


def named(rules: Map, path: str) -> tuple[tuple[str, ...], Layout]:
    """What a path of ours is called there, and its layout. ValueError without a row."""
    if rules is OWN:
        return (path,), SAME
    for rule in rules.rules:
        found = _pattern(rule.ours).fullmatch(path)
        if found:
            numbers = {name: int(value) for name, value in found.groupdict().items()}
            names = (rule.theirs,) if isinstance(rule.theirs, str) else tuple(rule.theirs)
            return tuple(_filled(name, numbers) for name in names), rule.layout
    raise ValueError(f"the table of names has no row for {path}")


def to_ours(state: Mapping[str, Any], shapes, rules: Map, *, where: str = "the weights") -> dict:
    """Variables of the tree `shapes`, in its dtypes, from arrays by their names.

    Every array is used exactly once. Raises ValueError that lists what is missing, what is left
    over, and what has another shape; `where` names the file there.
    """
    left, missing, wrong, strange, found = dict(state), [], [], [], {}
    for path, leaf in _leaves(shapes):
        names, layout = named(rules, path)
        absent = [name for name in names if name not in left]
        missing += absent
        if absent:
            continue
        given = [np.asarray(left.pop(name)) for name in names]
        kinds = [str(one.dtype) for one in given if str(one.dtype) not in FLOATS]
        if kinds:
            strange.append(f"{names[0]} ({kinds[0]})")
            continue
        try:
            parts = [layout.ours(one) for one in given]
            value = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
            value = value.reshape(leaf.shape) if value.size == 1 else value  # a number
            same = value.shape == tuple(leaf.shape)
            found[path] = value.astype(leaf.dtype, copy=False)
        except (ValueError, IndexError):  # so other a shape that the layout cannot be
            same = False
        if not same:
            wrong.append(f"{names[0]} {list(given[0].shape)} ({path} is {list(leaf.shape)})")
    surplus = [n for n in left if not any(re.fullmatch(one, n) for one in rules.ignored)]
    if missing or surplus or wrong or strange:
        faults = {"missing": missing, "of no use": surplus, "of another shape": wrong,
             "no floats": strange}  # fmt: skip
        said = [f"{len(n):,} {kind}: {_listed(n)}" for kind, n in faults.items() if n]
        raise ValueError(f"{where} are not this model's: {'; '.join(said)}")
    return traverse_util.unflatten_dict(found, sep="/")


def to_theirs(variables, rules: Map) -> dict[str, np.ndarray]:
    """Arrays by their names, C-contiguous, from our variables. Raises ValueError without a row."""
    found: dict[str, np.ndarray] = {}
    for path, leaf in _leaves(variables):
        names, layout = named(rules, path)
        whole = np.asarray(leaf)
        parts = np.split(whole, len(names), axis=-1) if len(names) > 1 else [whole]
        for name, part in zip(names, parts, strict=True):
            if name in found:
                raise ValueError(f"two of our arrays are called {name} there")
            found[name] = np.asarray(layout.theirs(part), order="C")
    return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:SHOWN]) + " …" * (len(names) > SHOWN)


def _leaves(tree) -> Iterator[tuple[str, Any]]:
    yield from traverse_util.flatten_dict(dict(tree), sep="/").items()


@functools.cache
def _pattern(template: str) -> re.Pattern:
    parts = re.split(r"\{(\w)\}", template)
    return re.compile("".join(
        rf"(?P<{part}>\d+)" if i % 2 else re.escape(part) for i, part in enumerate(parts)
    ))  # fmt: skip


def _filled(name: str, numbers: Mapping[str, int]) -> str:
    def number(found: re.Match) -> str:
        return format(numbers[found[1]] + int(found[2] or 0), found[3] or "")

    return re.sub(r"\{(\w)([+-]\d+)?(?::(\d+))?\}", number, name)
