"""Where a run's scalars and pictures go: TensorBoard, Weights & Biases, MLflow, or several."""

import contextlib
import hashlib
import importlib
import importlib.util
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import directory_check

from noisy_fm import hosts
from noisy_fm.config import flatten
from noisy_fm.messages import say, unknown


class Writer(Protocol):
    """Takes values by step; `close` waits until they are stored."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def image(self, step: int, name: str, image: np.ndarray) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files; on resume, what was written past `start` is dropped.

    Written at once: behind `tensorboardX.SummaryWriter` a thread writes, and once a full disk has
    ended that, the eleventh value is waited for without end.
    """

    def __init__(self, folder, start: int, config: Mapping):
        place = str(folder / "tensorboard")
        directory_check(place)
        self.events = EventsWriter(f"{place}/events", f".{os.getpid()}")
        began = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(start + 1, file_version="brain.Event:2")
        self._write(start + 1, session_log=began)

    def scalars(self, step, values):
        for key, value in values.items():
            self._write(step, summary=summary.scalar(key, value))
        self.events.flush()

    def image(self, step, name, image):
        self._write(step, summary=summary.image(name, image, dataformats="HWC"))
        self.events.flush()

    def close(self):
        self.events.close()

    def _write(self, step: int, **what) -> None:
        self.events.write_event(event_pb2.Event(step=step, wall_time=time.time(), **what))


class WandB:
    """A Weights & Biases run named after the work folder, which is resumed with it."""

    def __init__(self, folder, start: int, config: Mapping):
        wandb = importlib.import_module("wandb")
        self.picture = wandb.Image
        self.run = wandb.init(
            project="noisy_fm", id=run_id(folder), name=folder.name, dir=str(folder),
            config=dict(config), resume="allow",
        )  # fmt: skip

    def scalars(self, step, values):
        self.run.log(dict(values), step=step)

    def image(self, step, name, image):
        self.run.log({name: self.picture(image)}, step=step)

    def close(self):
        self.run.finish()


class MLflow:
    """An MLflow run tagged with the work folder, which is resumed with it.

    Kept where MLFLOW_TRACKING_URI says, else in the work folder's mlflow.db.
    """

    def __init__(self, folder, start: int, config: Mapping):
        mlflow = importlib.import_module("mlflow")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            place = None
            if not mlflow.is_tracking_uri_set():
                mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
                place = f"{folder}/mlflow"
            self.client = mlflow.MlflowClient()
            known = self.client.get_experiment_by_name("noisy_fm")
            experiment = (
                known.experiment_id if known
                else self.client.create_experiment("noisy_fm", artifact_location=place)
            )  # fmt: skip
            tag = f"tags.noisy_fm = '{run_id(folder)}'"
            found = self.client.search_runs([experiment], filter_string=tag)
            run = found[0] if found else self.client.create_run(
                experiment, tags={"noisy_fm": run_id(folder)}, run_name=folder.name
            )  # fmt: skip
            self.id = run.info.run_id
            if not found:
                for key, value in flatten(config).items():
                    self.client.log_param(self.id, key, str(value))

    def scalars(self, step, values):
        for key, value in values.items():
            self.client.log_metric(self.id, key, float(value), step=step)

    def image(self, step, name, image):
        self.client.log_image(self.id, image, f"{name.replace('/', '_')}_{step}.png")

    def close(self):
        self.client.set_terminated(self.id)


WRITERS: dict[str, Callable[..., Writer]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


class Writers:
    """The writers of `names`, on host 0; on other hosts nothing is written.

    One that fails, be it a full disk or a lost connection, is named once and left out from then
    on: training does not end by what is shown of it.
    """

    def __init__(self, names: Sequence[str], folder, *, start: int = 0, config: Mapping):
        self.writers: dict[str, Writer] = {}
        for name in names if hosts.first() else ():
            with self._guarded(name):
                self.writers[name] = WRITERS[name](folder, start, config)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._each(lambda writer: writer.scalars(step, values))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """`image` is uint8 [h w 3]."""
        self._each(lambda writer: writer.image(step, name, image))

    def close(self) -> None:
        self._each(lambda writer: writer.close())

    def _each(self, call: Callable[[Writer], None]) -> None:
        for name, writer in list(self.writers.items()):
            with self._guarded(name):
                call(writer)

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # these raise whatever they like
            self.writers.pop(name, None)
            why = " ".join(f"{type(error).__name__}: {error}".split())
            say(f"warning: {name} is given no more values ({why})", file=sys.stderr)


def check(names: Sequence[str]) -> None:
    """Raises one line for a writer that is unknown or not installed."""
    for name in names:
        if name not in WRITERS:
            raise ValueError(unknown("config.writers", name, WRITERS))
        package = {"wandb": "wandb", "mlflow": "mlflow"}.get(name)
        if package and importlib.util.find_spec(package) is None:
            raise ValueError(f"config.writers has {name!r}; pip install {package}")


def run_id(folder) -> str:
    """A name for the run of a work folder that does not change when it is resumed."""
    return hashlib.sha256(str(folder).encode()).hexdigest()[:12]
