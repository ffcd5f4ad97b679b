"""A work folder in a bucket: what a run writes itself goes through paths that do not care.

The bucket is fsspec's memory; orbax and TensorBoard bring their own clients for real ones.
"""

import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from noisy_fm import checkpoint, config, files, noise


class Bucket(MemoryFileSystem):
    """Memory under gs://."""

    protocol = ("gs", "gcs")
    store = {}  # noqa: RUF012 (as fsspec has it)
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(f"memory://{str(path).split('://')[-1].lstrip('/')}")


@pytest.fixture
def workdir(monkeypatch):
    for protocol in Bucket.protocol:
        monkeypatch.setitem(_registry, protocol, Bucket)
    Bucket.store.clear()
    return epath.Path("gs://bucket/run")


def test_a_workdir_in_a_bucket_is_claimed_once(workdir):
    checkpoint.claim(workdir, "config.json", {"a": 1}, differences=config.differences)
    assert set(Bucket.store) == {"/bucket/run/config.json"}
    checkpoint.claim(workdir, "config.json", {"a": 1}, differences=config.differences)
    with pytest.raises(ValueError, match=r"^gs://bucket/run was begun with another .*a: 1 → 2"):
        checkpoint.claim(workdir, "config.json", {"a": 2}, differences=config.differences)


def test_noise_and_results_are_written_whole_and_read_back(workdir):
    _, manifest = noise.flip_labels(np.arange(10), 10, 0.3, ids=np.arange(10), seed=0)
    manifest.save(workdir / "noise.npz")
    files.write_json(workdir / "result.json", {"accuracy": 0.5})
    assert noise.Manifest.load(workdir / "noise.npz").hash == manifest.hash
    assert files.read_json(workdir / "result.json") == {"accuracy": 0.5}
    assert {path.rsplit("/", 1)[1] for path in Bucket.store} == {"noise.npz", "result.json"}


def test_nothing_lands_in_the_current_folder(workdir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.write_json(workdir / "result.json", {})
    assert not list(tmp_path.iterdir())
