"""The input pipeline on real-sized JPEGs: against its own decoder, and PyTorch's DataLoader.

It makes the files itself: 500×375 pixels, quality 90, zoomed and grained from scikit-learn's two
photographs. Ours is `loader.train_batches`: read, partial decode, random crop, batch, in order.

`decode`      the same decoder on whole files in memory, on as many threads: nothing else
`crop`        the same with the pipeline's own crops: what partial decoding leaves to do
`DataLoader`  PyTorch's, with as many workers: the same read, decoder, boxes and canvases, collated
"""

import argparse
import functools
import io
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg
from bench import Case

from noisy_fm import data
from noisy_fm.data import decode, loader
from noisy_fm.data.source import View

WIDTH, HEIGHT, QUALITY = 500, 375, 90
LABELS = 10


def run(measure, argv) -> list[Case]:
    parser = argparse.ArgumentParser(prog="bench.py loader")
    parser.add_argument("--images", type=int, default=1536, help="files")
    parser.add_argument("--epochs", type=int, default=6, help="times each is read a round")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=0, help="decoding processes (0: threads)")
    args = parser.parse_args(argv)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(cores) as pool:
        make_photographs(Path(folder), args.images)
        source = data.load("folder", path=folder)
        steps = args.images // args.batch * args.epochs
        count = steps * args.batch
        files = [source.storage.read(i) for i in range(len(source))] * args.epochs
        note = f"{count} images, {cores} cores, {args.workers} workers"
        draws = decode.uniforms(0, 0, count)
        common = {"batch_size": args.batch, "seed": 0, "stop": steps, "workers": args.workers}

        def ours():
            batches = loader.train_batches(source, buffer=2, **common)
            assert sum(len(batch["id"]) for batch in batches) == count
            batches.close()

        def whole(rows):
            for row in rows:
                simplejpeg.decode_jpeg(files[row], buffer=_memory(), strict=False)

        def crops(rows):
            for row in rows:
                frame = decode._frame(files[row])
                box = decode.random_box(frame.height, frame.width, draws[row])
                factor = 1 + (max(box[2:]) > source.canvas)
                decode._decode_jpeg(files[row], frame, box.top + box.height, factor)

        def raw(work):
            list(pool.map(work, [range(i, min(i + 8, count)) for i in range(0, count, 8)]))

        training = measure(
            "training crops",
            ours,
            {
                "decode": functools.partial(raw, whole),
                "crop": functools.partial(raw, crops),
                **_torch(source, args.batch, cores, args.epochs),
            },
            target={"decode": 0.9, "crop": 0.9, "DataLoader": 1.0},
            note=note,
        )

        def ours_evaluating():
            for _ in loader.eval_batches(source, batch_size=args.batch):
                pass

        def views(rows):
            for row in rows:
                if row < len(source):
                    decode.evaluation_view(files[row], source.size)

        evaluation = measure(
            "evaluation views", ours_evaluating, {"view": functools.partial(raw, views)},
            target={"view": 0.9}, repeats=3, note=note,
        )  # fmt: skip
    for case in (training, evaluation):
        read = count if case is training else len(source)
        peers = {name: round(read / seconds) for name, seconds in case.peers.items()}
        case.note += f"; images/s: ours {read / case.ours:.0f}, {peers}"
    return [training, evaluation]


_thread = threading.local()


def _memory() -> bytearray:
    if not hasattr(_thread, "memory"):
        _thread.memory = bytearray(3 * WIDTH * HEIGHT)
    return _thread.memory


def make_photographs(folder: Path, count: int) -> None:
    """`count` different JPEG files of a photograph's size and detail, in class folders."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 4, (2 * HEIGHT, 2 * WIDTH, 1))
    for label in range(LABELS):
        (folder / f"class{label}").mkdir()
    for i in range(count):
        photograph = photographs[i % 2]
        zoom = rng.uniform(0.5, 0.87) * photograph.height
        width, height = zoom * WIDTH / HEIGHT, zoom
        left = rng.uniform(0, photograph.width - width)
        top = rng.uniform(0, photograph.height - height)
        image = photograph.resize(
            (WIDTH, HEIGHT), Image.Resampling.BICUBIC, (left, top, left + width, top + height)
        )
        x, y = rng.integers(0, WIDTH), rng.integers(0, HEIGHT)
        pixels = np.asarray(image) + grain[y : y + HEIGHT, x : x + WIDTH]
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
        (folder / f"class{i % LABELS}" / f"image{i:05d}.jpg").write_bytes(file.getvalue())


class _Crops:
    """The source as PyTorch's map-style data set; position and index are the same."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        batch = self.source.read([index], View(places=np.array([index])))
        return {name: value[0] for name, value in batch.items()}


def _torch(source, batch: int, workers: int, epochs: int) -> dict:
    try:
        from torch.utils.data import DataLoader
    except ImportError:
        return {}
    batches = DataLoader(
        _Crops(source), batch, shuffle=True, num_workers=workers, drop_last=True,
        persistent_workers=True,
    )  # fmt: skip

    def consume():
        for _ in range(epochs):
            for _ in batches:
                pass

    return {"DataLoader": consume}
