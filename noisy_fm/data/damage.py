"""Images that cannot be read: how many are let pass, and which they were."""

from collections.abc import Iterable, Mapping

from absl import logging

FEW = 3  # damaged examples that stop nothing, however small the data, unless none is allowed
LEFT_OUT = "left out of evaluation"
LISTED = 20  # damaged examples that are named as they are met


def tolerated(max_bad: float, count: int) -> float:
    """How many of `count` images may be unreadable: the share `max_bad`, or three; of 0, none."""
    return max(FEW, max_bad * count) if max_bad else 0


class Damage:
    """Which examples could not be read: counted, listed, and an error above `max_bad`.

    `max_bad` is the fraction of the examples read so far, by this process since it began, counting
    each once; see `tolerated`. `record` gives all that is known, from `before` (a record: what an
    earlier process or another host found) too; those count in the fraction if `examples`, from how
    many they are, is given. `fate` is what becomes of them.
    """

    def __init__(
        self,
        max_bad: float = 0.001,
        before: Mapping[str, str] | None = None,
        *,
        examples: int = 0,
        fate: str = "replaced by the next",
    ):
        if not 0 <= max_bad <= 1:
            raise ValueError(f"max_bad is {max_bad}; expected a fraction in [0, 1]")
        self.max_bad, self.fate = max_bad, fate
        # id → where it is and why it cannot be read
        self.names = {int(id_): name for id_, name in (before or {}).items()}
        self.found: set[int] = set(self.names) if examples else set()
        self.examples = examples

    @property
    def count(self) -> int:
        return len(self.names)

    @property
    def ids(self) -> list[int]:
        return sorted(self.names)

    @property
    def record(self) -> dict[str, str]:
        """{id: "file: reason"}, to be kept as JSON; records of one data set unite as dicts do."""
        return {str(id_): self.names[id_] for id_ in self.ids}

    def __str__(self):
        return f"{len(self.found)} of {self.examples} examples cannot be read, {self.fate}"

    def add(self, source, found: Iterable[tuple[int, str]], examples: int) -> None:
        """Takes note of the `found` (index, reason) among `examples` more that were read."""
        self.examples = min(self.examples + examples, len(source))
        for index, reason in found:
            id_ = int(source.ids[index])
            if id_ not in self.names:
                self.names[id_] = f"{source.name(index)}: {reason}"
                if len(self.found) < LISTED:
                    logging.warning("cannot be read, %s: %s", self.fate, self.names[id_])
            self.found.add(id_)
        self.check()

    def check(self) -> None:
        """Raises ValueError if too many of the examples so far cannot be read."""
        if len(self.found) > tolerated(self.max_bad, self.examples):
            last = [name for id_, name in self.names.items() if id_ in self.found][-1]
            raise ValueError(f"{self}; more than max_bad = {self.max_bad:g}; the last: {last}")
