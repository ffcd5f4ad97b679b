"""Exports of models: what is written, what refused, and that nothing wrong stands."""

import json
import subprocess
import sys

import exports
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noisy_fm import LinearProbe, MLPTuneClassifier, NMTuneClassifier, noise
from noisy_fm.data import decode
from noisy_fm.export import ParityError, arrays, equal, export, export_head, network, writing
from noisy_fm.export import __main__ as command
from noisy_fm.models import create, fast

PIXELS = np.random.default_rng(2).integers(0, 256, (5, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def vit():
    return exports.made(exports.VIT, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def ran(code: str, folder, monkeypatch, **names) -> dict:
    """The names that the Python of a card leaves, run in the folder above the export."""
    monkeypatch.chdir(folder.parent)
    scope = dict(names)
    exec(code, scope)
    return scope


def test_variables_by_our_names_make_the_same_model(vit, tmp_path, monkeypatch):
    report = export(vit, "saved_npz", tmp_path / "out")
    assert report["checked"]
    assert report["outputs"].keys() == {"logits", "pre_logits"}
    assert report["outputs"]["logits"]["relative"] < 1e-6
    assert report == json.loads((tmp_path / "out" / "parity.json").read_text())
    found = ran(exports.snippet(tmp_path / "out"), tmp_path / "out", monkeypatch)
    jax.tree.map(np.testing.assert_array_equal, found["variables"], dict(vit.variables))
    logits, _ = found["module"].apply(found["variables"], vit.preprocess(PIXELS))
    np.testing.assert_allclose(jax.nn.softmax(logits), vit.predict(PIXELS), atol=1e-5)


BLOCKED = """\
import sys

class Blocked:
    def find_spec(self, name, *unused):
        if name.split(".")[0] in ("noisy_fm", "flax"):
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
"""
BATCHES = """
for count in (1, 5):
    found = model.call(weights, np.load("pixels.npy")[:count])
    np.savez(f"found{count}.npz", **found)
"""


def test_stablehlo_runs_where_noisy_fm_is_not(vit, tmp_path):
    pytest.importorskip("flatbuffers")
    export(vit, "stablehlo", tmp_path / "out", pixels="float32")
    np.save(tmp_path / "pixels.npy", PIXELS.astype(np.float32))
    code = BLOCKED + exports.snippet(tmp_path / "out") + BATCHES
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    ours = network.reference(network.of(vit), PIXELS)
    for count in (1, 5):
        found = np.load(tmp_path / f"found{count}.npz")
        assert set(found) == {"logits", "pre_logits"}
        for name, value in found.items():
            np.testing.assert_allclose(value, ours[name][:count], atol=1e-5)


def test_stablehlo_without_its_library_is_one_line(vit, tmp_path, monkeypatch):
    monkeypatch.setattr("noisy_fm.export.target.missing", lambda libraries: list(libraries))
    with pytest.raises(ValueError, match=r"needs flatbuffers: pip install 'noisy-fm\[export\]'"):
        export(vit, "stablehlo", tmp_path / "out")


CIFAR = {"name": "resnet10_narrow", "width": 4}
CROPPED = decode.Fit(16, 19)


@pytest.mark.parametrize(
    ("fields", "to", "options", "message"),
    [
        (CIFAR, "timm", {}, r"no ResNet with .*; expected one of saved_npz, stablehlo, onnx$"),
        (CIFAR, "torchvision", {}, r"no ResNet with stem='cifar'.*expected one of saved_npz"),
        (exports.VIT, "torchvision", {}, "ViT has no form for torchvision.*timm$"),
        (exports.VIT, "open_clip", {}, "this knows no texts"),
        (exports.VIT, "tim", {}, "unknown to 'tim'; did you mean 'timm'"),
        (exports.VIT, "timm", {"check": "always"}, "unknown check 'always'"),
        (exports.VIT, "timm", {"tolerance": 0}, "tolerance is 0; expected above 0"),
        (exports.VIT, "timm", {"head": "head.safetensors"}, "on top of an ONNX graph only"),
        ({**exports.VIT, "pool": "token_mean"}, "timm", {}, "pool='token_mean'; expected one of"),
        ({**exports.TOWER, "text": exports.TEXT | {"activation": "quick_gelu"}}, "open_clip", {},
         "open_clip's towers have one activation"),
    ],
)  # fmt: skip
def test_what_a_format_does_not_have_is_refused_first(fields, to, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(exports.made(fields), to, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_a_crop_that_the_format_places_otherwise_is_said_first(tmp_path):
    floor = exports.made(exports.VIT, fit=CROPPED._replace(middle="floor"))
    with pytest.raises(ValueError, match=r"timm by 'round', so that some .*nearest=True"):
        export(floor, "timm", tmp_path / "out")
    clip = exports.made(exports.TOWER, fit=CROPPED)
    with pytest.raises(ValueError, match=r"to 16 pixels.* evaluated at 19, bicubic; nearest"):
        export(clip, "open_clip", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_other_things_are_not_overwritten(vit, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"no noisy_fm\.json, which no export wrote"):
        export(vit, "saved_npz", tmp_path)
    with pytest.raises(ValueError, match="expected a local folder"):
        export(vit, "saved_npz", "gs://bucket/out")
    assert [one.name for one in tmp_path.iterdir()] == ["notes.txt"]


def perturbed(monkeypatch) -> None:
    """One weight is another one in the file."""
    write = arrays.files.write_arrays

    def other(path, given):
        given = dict(given)
        given["params/head/bias"] = given["params/head/bias"] + np.float32(0.01)
        write(path, given)

    monkeypatch.setattr(arrays.files, "write_arrays", other)


def test_what_differs_is_not_left(vit, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        perturbed(patched)
        with pytest.raises(ParityError, match=r"logits differs by .* tolerance 0\.0001"):
            export(vit, "saved_npz", tmp_path / "out")
        assert not list(tmp_path.iterdir())
    export(vit, "saved_npz", tmp_path / "out")
    before = {one.name: one.read_bytes() for one in (tmp_path / "out").iterdir()}
    perturbed(monkeypatch)
    with pytest.raises(ParityError):
        export(vit, "saved_npz", tmp_path / "out")
    assert {one.name: one.read_bytes() for one in (tmp_path / "out").iterdir()} == before
    assert export(vit, "saved_npz", tmp_path / "out", tolerance=1)["checked"]


def test_the_command_says_it_in_one_line(vit, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command.app, "chosen_model", lambda flags, arguments: vit)
    flags = ["--model=run", "--to=saved_npz", f"--out={tmp_path / 'out'}"]
    command.main(flags)
    said = capsys.readouterr().out
    assert "pre_logits" in said
    assert "as saved_npz in" in said
    perturbed(monkeypatch)
    with pytest.raises(SystemExit) as ended:
        command.main([*flags[:2], f"--out={tmp_path / 'other'}"])
    assert ended.value.code == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "other").exists()


def test_without_the_target_it_is_written_unchecked_or_refused(vit, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(writing, "missing", lambda libraries: list(libraries))
    report = export(vit, "timm", tmp_path / "out")
    assert report == {"checked": False, "tolerance": 1e-4, "why": report["why"]}
    assert "not checked: timm, torch is not installed here" in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architecture"] == "vit_tiny_patch16_224"
    assert config["num_features"] == 16
    assert config["model_args"] == {
        "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 16,
    }  # fmt: skip
    assert config["pretrained_cfg"]["mean"] == [0.4, 0.5, 0.6]
    with pytest.raises(ValueError, match="check is 'required' and timm, torch is not installed"):
        export(vit, "timm", tmp_path / "required", check="required")
    assert not (tmp_path / "required").exists()
    assert not export(vit, "saved_npz", tmp_path / "never", check="never")["checked"]


def test_the_card_says_what_made_it(vit, tmp_path):
    run = tmp_path / "run"
    _, manifest = noise.flip_labels(np.arange(400) % 5, 5, 0.1, seed=3)
    manifest.save(run / "noise.npz")
    result = {
        "steps": 7,
        "eval": {"accuracy": {"value": 0.61, "low": 0.58, "high": 0.64}, "loss": 1.0},
    }
    (run / "result.json").write_text(json.dumps(result))
    export(vit, "saved_npz", tmp_path / "out", run=run)
    about = json.loads((tmp_path / "out" / "noisy_fm.json").read_text())
    assert about["noise"] == {
        "kind": "symmetric", "rate": 0.1, "realised": 0.1, "changed": 40, "n": 400, "seed": 3,
        "hash": manifest.hash,
    }  # fmt: skip
    assert about["preprocess"] == {
        "size": 16, "shorter": 16, "whole": True, "filter": "bicubic", "middle": "round",
        "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3],
    }  # fmt: skip
    assert about["label_names"] == list(vit.label_names)
    assert set(about["files"]) | {"README.md"} == {one.name for one in (tmp_path / "out").iterdir()}
    card = (tmp_path / "out" / "README.md").read_text()
    for words in ("γ = 10.00% of 400", "accuracy 0.6100 [0.5800, 0.6400]", "emoji_domains",
                  "step 7", "both sides are resized to 16 pixels (bicubic"):  # fmt: skip
        assert words in card


HEADS = [
    LinearProbe(epochs=1, min_steps=20, standardize=True, random_state=0),
    MLPTuneClassifier(epochs=1, min_steps=20, random_state=0),
    NMTuneClassifier("release", epochs=1, min_steps=20, standardize=True, random_state=0),
]


def features(rows: int = 60) -> np.ndarray:
    return np.random.default_rng(4).normal(2, 3, (rows, 8)).astype(np.float32)


@pytest.mark.parametrize(("head", "classes"), list(zip(HEADS, (2, 3, 2), strict=True)))
def test_a_head_in_numpy_alone(head, classes, tmp_path, monkeypatch):
    x = features()
    head.fit(x, np.arange(60) % classes)
    head.save(tmp_path / "head.safetensors")
    report = export_head(tmp_path / "head.safetensors", tmp_path / "out", "numpy")
    assert report["outputs"]["probabilities"]["max"] < 1e-6
    code = exports.snippet(tmp_path / "out")
    assert code.split("def probabilities")[1].split("\n\n\n")[0].count("\n") < 15
    found = ran(code, tmp_path / "out", monkeypatch)
    given = found["probabilities"](x, found["head"])
    np.testing.assert_allclose(given, head.predict_proba(x), atol=1e-6)


def test_what_is_no_head_is_refused(tmp_path):
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        export_head(tmp_path / "no.safetensors", tmp_path / "out", "numpy")
    with pytest.raises(ValueError, match="the head is a dict; expected LinearProbe"):
        export_head({}, tmp_path / "out", "numpy")
    assert not (tmp_path / "out").exists()


def test_forms_that_know_no_platform_are_the_same():
    x = jnp.asarray(np.random.default_rng(5).normal(size=(2, 7, 9, 4)), jnp.float32)
    kernel = jnp.asarray(np.random.default_rng(6).normal(size=(3, 3, 1, 4)), jnp.float32)
    pads = ((1, 1), (1, 1))

    def all_of():
        return [
            fast.max_pool(x, pads),
            fast.max_pool(x, "VALID"),
            fast.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0)), 0.5),
            fast.depthwise(x, kernel, stride=2, padding=pads),
        ]

    usual = all_of()
    with fast.plain():
        plain = all_of()
    for one, other in zip(usual, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_equal_forms_of_a_vit_give_its_logits():
    fields = {**exports.VIT, "position": "sincos2d", "class_position": False, "layer_scale": 0.1}
    name = fields.pop("name")
    module = create(name, 3, **fields)
    x = jnp.asarray(np.random.default_rng(7).normal(size=(2, 16, 16, 3)), jnp.float32)
    variables = dict(module.init(jax.random.key(1), x))
    expected, _ = module.apply(variables, x)
    same, changed = equal.learned_positions(module, variables, 16)
    for step in (equal.placed_token, equal.with_mean):
        same, changed = step(same, changed)
        np.testing.assert_allclose(same.apply(changed, x)[0], expected, atol=1e-5)
    assert same.pool == "token_mean"
    assert same.class_position
