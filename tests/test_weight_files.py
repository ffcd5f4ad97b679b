"""Files of weights: read as what they say, written as what was meant, or refused in one line."""

import collections
import io
import json
import os
import pickle
import struct
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from noisy_fm.weights import files, torch_file


def test_arrays_that_are_not_contiguous_are_written_as_they_are(tmp_path):
    """What a converter makes: transposed, strided, reversed, of half width."""
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    arrays = {
        "transposed": base.transpose(2, 0, 1),
        "strided": base[:, ::2],
        "reversed": base[..., ::-1],
        "fortran": np.asfortranarray(base[0]),
        "bfloat16": base.astype(ml_dtypes.bfloat16).T,
        "half": base.astype(np.float16)[:, 1],
        "scalar": np.float32(3),
        "empty": np.zeros((0, 3), np.float32).T,
    }
    path = tmp_path / "a" / "model.safetensors"
    files.write(path, arrays, about={"made": "here"})
    for found in (files.read(path), load_file(path)):
        assert found.keys() == arrays.keys()
        for name, value in arrays.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_what_cannot_be_read_back_does_not_stand(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "safetensors.numpy.save_file",
        lambda given, path, metadata: save_file({n: v + 1 for n, v in given.items()}, path),
    )
    with pytest.raises(ValueError, match="does not hold what was meant"):
        files.write(tmp_path / "x.safetensors", {"a": np.ones(3, np.float32)})
    assert not list(tmp_path.iterdir())


def shards(folder, **places):
    folder.mkdir()
    for file in set(places.values()):
        own = {name: np.full(2, ord(name), "f4") for name, one in places.items() if one == file}
        save_file(own, folder / file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards_are_one_and_none_may_be_missing(tmp_path):
    folder = shards(tmp_path / "a", x="1.safetensors", y="2.safetensors")
    found = files.read(folder)
    assert {name: value[0] for name, value in found.items()} == {"x": ord("x"), "y": ord("y")}
    (folder / "2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of 2 shards, as 2\.safetensors"):
        files.read(folder)
    save_file({"z": np.ones(1, "f4")}, folder / "2.safetensors")
    with pytest.raises(ValueError, match="has z, which"):
        files.read(folder)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "../1.safetensors"}})
    )
    with pytest.raises(ValueError, match="expected files beside it"):
        files.read(folder)


def test_a_folder_has_one_file_of_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no file of weights"):
        files.read(tmp_path)
    np.savez(tmp_path / "a.npz", x=np.ones(2, "f4"))
    assert files.read(tmp_path)["x"].tolist() == [1, 1]
    np.savez(tmp_path / "b.npz", x=np.ones(2, "f4"))
    with pytest.raises(ValueError, match=r"has several files of weights \(a\.npz, b\.npz\)"):
        files.read(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "huge"])
def test_a_damaged_safetensors_file_is_named(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    save_file({"a": np.arange(100, dtype="f4")}, path)
    whole = path.read_bytes()
    path.write_bytes({
        "cut": whole[:-10], "header": whole[:8] + b"{" * 20 + whole[28:], "empty": b"",
        "huge": b"\xff" * 8 + whole[8:],
    }[damage])  # fmt: skip
    with pytest.raises(ValueError, match=r"x\.safetensors is not a readable safetensors file"):
        files.read(path)


def test_wrappers_names_come_off_and_parts_are_chosen(save, tmp_path):
    one, values = ("1", "FloatStorage", 0, (3,), (1,), 3), {"1": np.ones(3, "<f4")}
    names = {"module._orig_mod.a": one, "module._orig_mod.module.b": one}
    assert set(files.read(save(names, values, archive=True))) == {"a", "module.b"}

    def nested(**parts):
        made = {k: {n: FakeTensor(t[0], sys.modules["torch"].FloatStorage, *t[2:]) for n, t in
                    v.items()} if isinstance(v, dict) else v for k, v in parts.items()}  # fmt: skip
        return save(made, values, archive=True)

    assert set(files.read(nested(state_dict={"a": one}, epoch=3))) == {"a"}
    both = nested(model={"a": one}, model_ema={"b": one}, epoch=3)
    with pytest.raises(ValueError, match=r"several parts of arrays \(model, model_ema\)"):
        files.read(both)
    assert set(files.read(both, part="model_ema")) == {"b"}
    with pytest.raises(ValueError, match="unknown part 'ema'"):
        files.read(both, part="ema")
    (tmp_path / "a.h5").write_bytes(b"x")
    with pytest.raises(ValueError, match="is none of"):
        files.read(tmp_path / "a.h5")


class FakeTensor:
    """Pickles as PyTorch's legacy layout has it, without PyTorch."""

    def __init__(self, key, kind, offset, shape, strides, length):
        self.parts = ((key, kind, length), offset, shape, strides)

    def __reduce__(self):
        (key, kind, length), offset, shape, strides = self.parts
        storage = Identity(("storage", kind, key, "cpu", length))
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        return rebuild, (storage, offset, shape, strides, False, collections.OrderedDict())


class Identity(tuple):
    pass


class LegacyPickler(pickle._Pickler):
    def persistent_id(self, obj):
        return tuple(obj) if isinstance(obj, Identity) else None


@pytest.fixture
def save(monkeypatch, tmp_path):
    """save(tensors, values) writes a legacy file: {name: FakeTensor's arguments}, {key: array}."""
    torch, inner = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for module, name in (
        (torch, "FloatStorage"),
        (torch, "LongStorage"),
        (torch, "HalfStorage"),
        (torch, "ComplexStorage"),
    ):
        setattr(module, name, type(name, (), {"__module__": "torch", "__qualname__": name}))
    inner._rebuild_tensor_v2 = lambda *_: None
    inner._rebuild_tensor_v2.__module__ = "torch._utils"
    inner._rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", inner)

    def write(tensors, values, *, magic=0x1950A86A20F9469CFC6C, archive=False):
        path = tmp_path / "weights.pth"
        state = {
            name: FakeTensor(t[0], getattr(torch, t[1]), *t[2:]) if isinstance(t, tuple) else t
            for name, t in tensors.items()
        }
        if archive:
            with zipfile.ZipFile(path, "w") as file:
                pickled = io.BytesIO()
                LegacyPickler(pickled, 2).dump(state)
                file.writestr("weights/data.pkl", pickled.getvalue())
                file.writestr("weights/byteorder", "little")
                for key, array in values.items():
                    file.writestr(f"weights/data/{key}", array.tobytes())
            return path
        with path.open("wb") as file:
            for header in (magic, 1001, {"little_endian": True}):
                pickle.dump(header, file, 2)
            LegacyPickler(file, 2).dump(collections.OrderedDict(state))
            pickle.dump(list(values), file, 2)
            for array in values.values():
                file.write(struct.pack("<q", len(array)) + array.tobytes())
        return path

    return write


@pytest.mark.parametrize("archive", [False, True])
def test_reads_strides_offsets_shared_storages_and_integers(save, archive):
    values = {"1": np.arange(12, dtype="<f4"), "2": np.array([7], "<i8")}
    path = save(
        {
            "rows": ("1", "FloatStorage", 0, (3, 4), (4, 1), 12),
            "columns": ("1", "FloatStorage", 0, (4, 3), (1, 4), 12),
            "part": ("1", "FloatStorage", 5, (2,), (3,), 12),
            "empty": ("1", "FloatStorage", 0, (0, 4), (4, 1), 12),
            "count": ("2", "LongStorage", 0, (), (), 1),
        },
        values,
        archive=archive,
    )
    state = torch_file.read(path)
    rows = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(state["rows"], rows)
    np.testing.assert_array_equal(state["columns"], rows.T)
    np.testing.assert_array_equal(state["part"], [5, 8])
    assert state["empty"].shape == (0, 4)
    assert state["count"].shape == ()
    assert state["count"] == 7
    assert state["count"].dtype == np.int64
    assert state["rows"].flags.writeable


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (("1", "FloatStorage", 1, (3,), (1,), 3), "reaches outside its storage"),
        (("1", "FloatStorage", 0, (2,), (-1,), 3), "reaches outside its storage"),
        (("1", "FloatStorage", 0, (3,), (1,), 4), "ends in the middle of storage 1"),
        (("1", "ComplexStorage", 0, (3,), (1,), 3), r"torch\.ComplexStorage, which is no tensor"),
        (collections.Counter(), r"collections\.Counter, which is no tensor"),
    ],
)
def test_refuses_tensors_it_cannot_take(save, tensor, message):
    path = save({"x": tensor}, {"1": np.ones(3, "<f4")})
    with pytest.raises(ValueError, match=message):
        torch_file.read(path)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_nothing_in_a_file_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Harmful(), 2))
    with pytest.raises(ValueError, match=r"weights\.pth is not a readable .*mkdir"):
        torch_file.read(path)
    assert not (tmp_path / "harmed").exists()


def test_other_files_are_refused_in_one_line(save, tmp_path):
    whole = save({"x": ("1", "FloatStorage", 0, (3,), (1,), 3)}, {"1": np.ones(3, "<f4")})
    payload = whole.read_bytes()
    short = tmp_path / "short.pth"
    for length in range(0, len(payload), 7):
        short.write_bytes(payload[:length])
        with pytest.raises(ValueError, match=r"short\.pth is not a readable PyTorch file"):
            torch_file.read(short)
    with pytest.raises(ValueError, match="its header is not that of"):
        torch_file.read(save({}, {}, magic=1))
    short.write_bytes(b"PK\x03\x04" + payload)
    with pytest.raises(ValueError, match="not a readable PyTorch file"):
        torch_file.read(short)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.pth"):
        torch_file.read(tmp_path / "absent.pth")
