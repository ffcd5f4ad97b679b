"""A model taken out of a run's folder is the one the run evaluated, without the run's data."""

import json
import shutil

import jax
import numpy as np
import pictures
import pytest
import toy
from PIL import Image
from test_object_store import workdir as bucket  # noqa: F401 (a fixture)
from test_run import on_disk, small

import noisy_fm
from noisy_fm import checkpoint, config, data, model, train
from noisy_fm.data import decode

VIT = {"name": "vit_tiny", "dim": 64, "depth": 1, "num_heads": 2}
FROZEN = (("patch_embed", None), (".*", 1.0))


def trained(folder, **changes):
    """(folder, state, setup, result) of a run on eight devices, which hold parts of parameters."""
    cfg = small(epochs=0.4, model=VIT, optimizer__learning_rate=3e-3, **changes)
    return folder, *train.run(cfg, str(folder))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """All at once: sharded parameters, an average, a frozen part, the best checkpoint kept."""
    return trained(
        tmp_path_factory.mktemp("run"), ema=0.7, trainable=FROZEN, keep_best="accuracy",
        eval_every=4, checkpoint_every=4, keep_checkpoints=2,
    )  # fmt: skip


def accuracy(found, source) -> float:
    correct = found.predict(source.images).argmax(-1) == source.labels
    return float(correct.astype(np.float32).mean())


def metrics(folder, step) -> dict:
    return json.loads((folder / "checkpoints" / str(step) / "metrics" / "metrics").read_text())


def test_it_is_the_model_that_the_run_evaluated(run):
    folder, state, made, result = run
    assert any(not leaf.is_fully_replicated for leaf in state.params.values())
    assert state.frozen
    found = noisy_fm.load_model(folder)
    leaves = jax.tree.leaves(found.variables)
    assert {leaf.sharding for leaf in leaves} == {
        jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    }
    jax.tree.map(
        np.testing.assert_array_equal,
        toy.host(model.separated(found.variables)),
        toy.host(state.variables),
    )
    assert accuracy(found, made.eval_source) == result["eval"]["accuracy"]
    assert found.label_names == tuple(made.source.label_names)
    assert found.meta["config_hash"] == result["config_hash"]
    assert repr(found) == (
        f"Model(vit_tiny, {result['num_params']:,} parameters, images 32×32, 55 classes, "
        f"feature 'pre_logits', step {made.steps})"
    )


def test_the_best_and_any_step_can_be_asked_for(run):
    folder, _, made, _ = run
    steps = sorted(int(path.name) for path in (folder / "checkpoints").iterdir())
    assert steps[-1] == made.steps
    assert (
        accuracy(noisy_fm.load_model(folder, step=steps[0]), made.eval_source)
        == (metrics(folder, steps[0])["accuracy"])
    )
    best = noisy_fm.load_model(folder, best=True)
    assert accuracy(best, made.eval_source) == max(metrics(folder, s)["accuracy"] for s in steps)
    with pytest.raises(ValueError, match=rf"no checkpoint of step 1; there are .*{made.steps}$"):
        noisy_fm.load_model(folder, step=1)
    with pytest.raises(ValueError, match="expected one of them"):
        noisy_fm.load_model(folder, step=steps[0], best=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema": 0.9},
        {"trainable": FROZEN},
        {"keep_best": "loss", "eval_every": 4},
        {"mesh__data": 8, "mesh__fsdp": 1},
        {
            "task__loss" if "task" in config.train() else "loss__name": "bce",
            "precision": "bfloat16",
        },
    ],
    ids=str,
)
def test_a_run_of_each_shape_gives_its_own_accuracy(changes, tmp_path):
    folder, _, made, result = trained(tmp_path, **changes)
    found = noisy_fm.load_model(folder)
    assert accuracy(found, made.eval_source) == result["eval"]["accuracy"]
    assert found.predict(made.eval_source.images[:9]).sum(-1) == pytest.approx(1, abs=1e-3)
    if not changes:
        with pytest.raises(ValueError, match=r"no best checkpoint: its config\.keep_best is empty"):
            noisy_fm.load_model(folder, best=True)


def test_a_damaged_checkpoint_is_passed_over_or_refused(run, tmp_path, caplog):
    folder, *_ = run
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    steps = sorted(int(path.name) for path in (copy / "checkpoints").iterdir())
    for file in (copy / f"checkpoints/{steps[-1]}/state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert noisy_fm.load_model(copy).meta["step"] == steps[-2]
    assert f"{steps[-1]} cannot be read" in caplog.text
    with pytest.raises(ValueError, match=rf"can be read \(steps \[{steps[-1]}\]\)"):
        noisy_fm.load_model(copy, step=steps[-1])


def test_a_changed_bit_is_found(run, monkeypatch):
    """What was read is compared with the digests of the leaves that were read."""
    folder, *_ = run
    digests = checkpoint.digests

    def other(tree):
        return dict.fromkeys(digests(tree), "0" * 16)

    monkeypatch.setattr(checkpoint, "digests", other)
    with pytest.raises(ValueError, match=r"no checkpoint .* can be read"):
        noisy_fm.load_model(folder)


def test_a_run_made_before_names_were_kept_has_numbers(run, monkeypatch):
    folder, *_ = run
    restore = checkpoint.Checkpointer.restore_parts

    def older(self, *arguments, **options):
        parts, meta, step = restore(self, *arguments, **options)
        return parts, {key: value for key, value in meta.items() if key != "info"}, step

    monkeypatch.setattr(checkpoint.Checkpointer, "restore_parts", older)
    assert noisy_fm.load_model(folder).label_names == tuple(map(str, range(55)))


def test_where_there_is_no_run_is_one_line(tmp_path, bucket):  # noqa: F811
    for place in (tmp_path, bucket):
        with pytest.raises(FileNotFoundError, match="not a run's folder"):
            noisy_fm.load_model(place)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="no checkpoint yet"):
        noisy_fm.load_model(tmp_path)


def test_features_are_in_order_whatever_the_batch_and_compiled_once(run, caplog):
    folder, _, made, _ = run
    found = noisy_fm.load_model(folder)
    images = made.eval_source.images[:21]
    whole = found.features(images)
    assert whole.shape == (21, 64)
    assert whole.dtype == np.float32
    with jax.log_compiles():
        parts = found.features(list(images), batch_size=8)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    assert sum(line.startswith("Compiling") for line in caplog.messages) == 1
    logits, named = found.module.apply(found.variables, found.preprocess(images))
    np.testing.assert_allclose(named["pre_logits"], whole, atol=1e-5)
    np.testing.assert_allclose(jax.nn.softmax(logits), found.predict(images), atol=1e-5)
    tokens = next(name for name, value in named.items() if value.ndim == 3)
    np.testing.assert_allclose(
        found.features(images, feature=tokens), named[tokens].mean(1), atol=1e-5
    )
    with pytest.raises(ValueError, match=r"unknown feature 'pool'; .*known: .*pre_logits"):
        found.features(images, feature="pool")


IMAGE = np.zeros((5, 6, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "kind", "message"),
    [
        (IMAGE, ValueError, r"images are \[5, 6, 3\]; expected \[n h w 3\]"),
        (
            IMAGE[None].astype(np.float32),
            TypeError,
            r"images\[0\] has dtype float32; expected uint8",
        ),
        ([IMAGE, IMAGE[..., 0]], ValueError, r"images\[1\] is grey, \[5, 6\]; expected \[h w 3\]"),
        ([IMAGE[..., :1]], ValueError, r"images\[0\] is grey, \[5, 6, 1\]"),
        ([IMAGE] * 5 + [np.zeros((5, 6, 4), np.uint8)], ValueError, r"images\[5\] has shape .*RGB"),
        ([], ValueError, "0 images"),
    ],
)
def test_what_is_no_rgb_image_is_refused(run, images, kind, message):
    found = noisy_fm.load_model(run[0])
    with pytest.raises(kind, match=message):
        found.features(images, batch_size=2)


def test_views_are_those_of_evaluation_from_files():
    files = [pictures.jpeg(i, 20 + 9 * i, 70 - 5 * i) for i in range(6)]
    pixels = [decode.decode(file) for file in files]
    cropped = model.Preprocess(decode.fitted(16), 0.5, 0.5).views(pixels)
    np.testing.assert_array_equal(cropped, [decode.evaluation_view(file, 16) for file in files])
    whole = model.Preprocess(decode.Fit(16, 16, whole=True), 0.5, 0.5).views(pixels)
    resized = [Image.fromarray(x).resize((16, 16), Image.Resampling.BICUBIC) for x in pixels]
    np.testing.assert_array_equal(whole, [np.asarray(image) for image in resized])


@pytest.mark.slow
def test_a_run_on_files_is_used_when_they_are_gone(tmp_path):
    pictures.write_folder(tmp_path / "data", pictures.examples(16), "train")
    pictures.write_folder(tmp_path / "data", pictures.examples(9, 50), "val")
    cfg = on_disk(tmp_path / "data", model=VIT, checkpoint_every=100)
    _, _, result = train.run(cfg, str(tmp_path / "run"))
    source = data.load("folder", path=str(tmp_path / "data"), split="val", size=16)
    images = [decode.decode(source.storage.read(row)) for row in range(len(source))]
    shutil.rmtree(tmp_path / "data")
    found = noisy_fm.load_model(tmp_path / "run")
    assert found.label_names == pictures.CLASSES
    correct = found.predict(images).argmax(-1) == source.labels
    assert float(correct.astype(np.float32).mean()) == result["eval"]["accuracy"]
    assert found.features(images[0][None]).shape == found.features([images[3]]).shape
