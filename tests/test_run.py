"""One run's folder: what is measured, kept, shown and resumed, as the command line leaves it."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from board import events, records
from PIL import Image

from noisy_fm import checkpoint, config, evaluators, sharding, train
from noisy_fm.train import pictures, writers


def small(**changes):
    cfg = config.train()
    cfg.data.domain = ("noto",)
    cfg.model = {"name": "resnet10_narrow", "width": 4}
    cfg.epochs = 1.0
    cfg.noise.rate = 0.3
    cfg.eval_every = -1
    cfg.mesh.data = 1
    cfg.mesh.fsdp = -1
    return config.updated(cfg, {key.replace("__", "."): value for key, value in changes.items()})


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run with every evaluator, an average, microbatches and mixing."""
    folder = tmp_path_factory.mktemp("run")
    cfg = small(
        eval_every=10,
        checkpoint_every=1000,
        keep_checkpoints=1,
        keep_best="accuracy",
        ema=0.9,
        microbatches=2,
        task__mix__mixup=0.2,
        task__mix__groups=64,
        evaluators__memorised__examples=200,
        evaluators__spectrum__names=("pre_logits",),
        evaluators__probe__feature="pre_logits",
    )
    state, made, result = train.run(cfg, str(folder))
    return folder, cfg, state, made, result


def test_it_leaves_what_the_docstring_names(done):
    folder, cfg, _, _, result = done
    assert json.loads((folder / "result.json").read_text())["eval"] == result["eval"]
    assert json.loads((folder / "config.json").read_text()) == config.plain(cfg)
    assert f"{result['num_params']:,}" in (folder / "parameters.txt").read_text()
    wanted = {"loss", "accuracy", "memorised", "resisted", "probe", "spectrum/pre_logits/sve"}
    assert wanted <= set(result["eval"])


def test_the_best_checkpoint_outlives_the_newest(done):
    folder, _, _, made, _ = done
    saver = checkpoint.Checkpointer(folder / "checkpoints", keep=1, best="accuracy")
    best, newest = saver.best_step, saver.steps[-1]
    assert newest == made.steps
    assert best in saver.steps
    assert len(saver.steps) <= 2
    saver.close()
    # No save was due by steps or minutes: the best was saved because it was.
    evaluated = [value for _, value in events(folder)["eval/accuracy"]]
    kept = folder / f"checkpoints/{best}/metrics/metrics"
    assert json.loads(kept.read_text())["accuracy"] == pytest.approx(max(evaluated), abs=1e-6)
    assert len(evaluated) > 1


def test_best_is_by_the_metric_and_of_a_loss_the_smallest(tmp_path):
    mesh = toy.one_device()
    _, _, state = toy.start(mesh)
    for best, expected in (("accuracy", 3), ("loss", 2)):
        saver = checkpoint.Checkpointer(tmp_path / best, keep=1, best=best)
        accuracies = [0.1, 0.2, 0.9, 0.3, None]
        losses = [1.0, 0.2, 0.6, 0.7, None]
        for step, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True), 1):
            found = None if loss is None else {"accuracy": accuracy, "loss": loss}
            saver.save(step, state, {}, found)
            assert not saver.would_be_best({"accuracy": 0.1, "loss": 1.0})  # while it is written
            saver.wait()
        assert saver.best_step == expected
        assert saver.steps == [expected, 5]
        saver.close()


def test_what_a_failed_save_left_is_dropped_and_the_last_good_one_named(tmp_path):
    _, _, state = toy.start(toy.one_device())
    saver = checkpoint.Checkpointer(tmp_path / "kept")
    assert saver.drop_unfinished() is None
    saver.save(3, state, {})
    saver.wait()
    part = tmp_path / "kept" / f"5{checkpoint.TEMPORARY}"
    (part / "state").mkdir(parents=True)
    assert saver.drop_unfinished() == 3
    assert not part.exists()
    saver.close()


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path):
    line = (
        f"-m noisy_fm.train --config=configs/pretrain/emoji.py --workdir={tmp_path / 'run'} "
        "--config.data.domain=noto --config.model.name=resnet10_narrow --config.epochs=0.5 "
        "--config.schedule.warmup_epochs=0.1 --config.checkpoint_every=5 --config.writers=()"
    )

    def run(before):
        return subprocess.run(
            ["bash", "-c", f'{before} exec "$0" "$@"', sys.executable, *line.split()],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},
        )

    first = run("ulimit -f 100;")  # KiB a file
    assert first.returncode == 2
    (said,) = first.stderr.strip().splitlines()
    assert "File too large; there is no good one yet" in said
    assert not list((tmp_path / "run/checkpoints").iterdir())
    assert run("").returncode == 0


def test_memorised_counts_wrong_labels_learned_and_resisted():
    clean = toy.source_of(40)
    given = clean.labels.copy()
    given[:20] = (given[:20] + 1) % 4
    # A model that says `given` for the first ten examples, and the truth for all others.
    said = np.where(np.arange(40) < 10, given, clean.labels)
    answers = jnp.asarray(said)

    task, _, state = toy.start(toy.one_device())
    told = task._replace(
        predict_fn=lambda params, model_state, batch: {
            **task.predict_fn(params, model_state, batch),
            "correct": answers[batch["id"] - 1000] == batch["label"],
        }
    )

    def measured(most):
        noisy = toy.given(told, state.variables, clean, clean.replace(label=given), batch_size=8)
        return evaluators.memorised(noisy, examples=most).measure(state.variables)

    assert measured(1000) == {"memorised": 0.5, "resisted": 0.5}
    assert measured(7)["memorised"] * 7 == pytest.approx(round(measured(7)["memorised"] * 7))


def test_the_probe_finds_what_is_linear_in_the_features():
    task, _, state = toy.start(toy.one_device())

    sets = toy.source_of(200), None, toy.source_of(200, seed=1)
    images = jnp.concatenate([sets[0].images, sets[2].images])
    labels = jnp.concatenate([sets[0].labels, sets[2].labels])

    def spelled(params, model_state, batch):
        """Features that hold the label, and ones that hold nothing."""
        same = (batch["image"][:, None] == images).all((2, 3, 4))
        label = jax.nn.one_hot(labels[jnp.argmax(same, axis=1)], 4)
        noise = jax.random.normal(jax.random.key(0), (len(label), 4))
        return {"features": {"label": 100 * label, "noise": noise}}

    told = task._replace(predict_fn=spelled)
    given = toy.given(told, state.variables, *sets, batch_size=50)
    score = {
        name: evaluators.ridge(given, feature=name).measure(state.variables)[""]
        for name in ("label", "noise")
    }
    assert score["label"] == 1.0
    assert score["noise"] < 0.45


def test_logged_scalars_and_the_picture_are_there(done):
    folder, _, _, made, result = done
    logged = events(folder)
    assert {"train/loss", "train/examples_per_second", "train/data_wait_share"} <= set(logged)
    assert logged["eval/accuracy"][-1] == (made.steps, pytest.approx(result["eval"]["accuracy"]))
    assert [step for step, _ in logged["eval/probe"]] == [*range(10, made.steps, 10), made.steps]
    with Image.open(io.BytesIO(logged["train/examples"][0][1])) as sheet:
        assert sheet.width == 8 * (pictures.CELL + 6)


@pytest.mark.slow
def test_a_run_stopped_with_an_average_and_microbatches_resumes_to_the_same_bits(done, tmp_path):
    _, cfg, whole, _, finished = done

    class StoppedError(Exception):
        pass

    evaluate = train.Run.evaluate

    def stop_at_20(self, step, state):
        note = evaluate(self, step, state)
        if step == 20 and not self.start:
            self.save(step, state)
            raise StoppedError
        return note

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Run, "evaluate", stop_at_20)
        with pytest.raises(StoppedError):
            train.run(cfg, str(tmp_path))
    state, _, result = train.run(cfg, str(tmp_path))
    assert result["resumed_at"] == 20
    # TensorBoard forgets what the stopped run logged from here on: not the values of step 20.
    assert [event.step for event in records(tmp_path) if event.HasField("session_log")] == [1, 21]
    jax.tree.map(np.testing.assert_array_equal, toy.host(whole), toy.host(state))
    assert result["history"] == finished["history"]
    assert [row["step"] for row in result["history"]][-1] == result["steps"]


def test_a_run_moves_to_another_topology(done, tmp_path):
    """What eight devices wrote (parameters split over them) goes on, exactly placed, on one."""
    folder, cfg, state, made, _ = done
    one = train.setup(config.updated(cfg, {"mesh.fsdp": 1, "mesh.data": -1}))
    mesh = sharding.make_mesh(data=1, devices=jax.devices()[:1])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=jax.sharding.SingleDeviceSharding(mesh.devices.flat[0])
        ),
        one.plan.shapes,
    )
    saver = checkpoint.Checkpointer(folder / "checkpoints")
    moved, _ = saver.restore(target, step=made.steps)
    saver.close()
    jax.tree.map(np.testing.assert_array_equal, toy.host(state), toy.host(moved))


@pytest.mark.slow
def test_a_run_says_where_it_begins_and_a_constant_rate_can_go_on(tmp_path, capsys):
    cfg = small(batch_size=512, schedule__name="constant")
    _, made, _ = train.run(cfg, str(tmp_path / "long"))
    train.run(cfg, str(tmp_path / "long"))
    cfg.epochs = 2.0
    longer, twice, result = train.run(cfg, str(tmp_path / "long"))
    assert twice.steps == result["steps"] == 2 * made.steps
    short = json.loads((tmp_path / "long/result.json").read_text()) | {"steps": made.steps}
    (tmp_path / "long/result.json").write_text(json.dumps(short))  # as a kill before it leaves
    assert train.run(cfg, str(tmp_path / "long"))[2]["eval"] == result["eval"]
    noise = "30.0% noise (symmetric)"
    said = [line for line in capsys.readouterr().out.splitlines() if "loss" not in line]
    assert said == [
        f"train: fresh start of {made.steps} steps, {noise}",
        f"train: all {made.steps} steps were done before",
        f"train: resumed at step {made.steps} of {2 * made.steps} steps, {noise}",
        f"train: resumed at step {2 * made.steps} of {2 * made.steps} steps, {noise}",
    ]
    whole, _, _ = train.run(cfg, str(tmp_path / "whole"))
    jax.tree.map(np.testing.assert_array_equal, toy.host(longer.params), toy.host(whole.params))
    cfg.epochs = 1.0
    with pytest.raises(ValueError, match=r"another config \(epochs: 2\.0 → 1\.0\)"):
        train.run(cfg, str(tmp_path / "long"))


@pytest.mark.slow
def test_a_run_made_before_tasks_had_their_keys_goes_on(tmp_path):
    cfg = small(batch_size=512)
    train.run(cfg, str(tmp_path / "run"))
    file = tmp_path / "run/config.json"
    old = json.loads(file.read_text())
    task = old.pop("task")
    old |= {key: task[key] for key in ("normalize", "augment", "mix")}
    old["loss"] = {"name": task["loss"], "label_smoothing": task["label_smoothing"]}
    old["data"]["task"] = old["data"].pop("labels")
    file.write_text(json.dumps(old))
    _, made, result = train.run(cfg, str(tmp_path / "run"))
    assert result["steps"] == made.steps
    old["loss"]["name"] = "bce"
    file.write_text(json.dumps(old))
    with pytest.raises(ValueError, match=r"another config \(task\.loss: bce → softmax\)"):
        train.run(cfg, str(tmp_path / "run"))
    cfg.epochs = 3.0
    file.write_text(json.dumps({**old, "loss": {"name": "softmax", "label_smoothing": 0.0}}))
    with pytest.raises(ValueError, match=r"epochs: 1\.0 → 3\.0, and all rates of a cosine"):
        train.run(cfg, str(tmp_path / "run"))


def test_a_contact_sheet_shows_every_image_and_its_text():
    images = np.full((10, 16, 16, 3), 255.0)
    images[3] = (255, 0, 0)
    sheet = pictures.contact_sheet(images, [("given", "is true")] * 10, columns=4)
    red = np.all(sheet == (255, 0, 0), axis=-1)
    assert red.sum() == pictures.CELL**2
    y, x = np.argwhere(red).min(axis=0)
    assert (y, x) == (0, 3 * (pictures.CELL + 6))
    cells = sheet.reshape(3, -1, 4, pictures.CELL + 6, 3)  # rows, height, columns, width
    written = (cells.sum(-1) < 300).any(axis=(1, 3)).ravel()  # dark ink
    assert written.tolist() == [True] * 10 + [False] * 2


@pytest.mark.parametrize(
    ("names", "message"),
    [(("tensorbord",), "did you mean 'tensorboard'"), (("wandb",), "pip install wandb")],
)
def test_writers_that_cannot_write_are_named(names, message):
    with pytest.raises(ValueError, match=message):
        writers.check(names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"microbatches": 3}, "multiple of config.microbatches"),
        ({"profile": (5, 2)}, "config.profile"),
        ({"profile": (5, 9999)}, "training has [0-9]+ steps"),
        ({"ema": 1.5}, r"config\.ema is 1\.5"),
        ({"task__mix__mode": "pair"}, "config.task.mix.mode"),
        ({"evaluators__spectrum__names": ("pre_logit",)}, "did you mean 'pre_logits'"),
        ({"evaluators__probe__feature": "pre_logit"}, "did you mean 'pre_logits'"),
        ({"keep_best": "acuracy"}, "did you mean 'accuracy'"),
        ({"task__augment__padding": 3}, "config.task.augment.padding"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train.run(small(**changes), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_training_is_kept_when_its_evaluation_fails_and_goes_on_with_another_tolerance(tmp_path):
    classes = ("cat", "dog")
    folder_of_images(tmp_path / "data", {"train": classes, "val": classes})
    for i in range(4):
        (tmp_path / f"data/val/cat/val_cat_{i}.png").write_bytes(b"no image")
    cfg = on_disk(tmp_path / "data", eval_every=-1)
    with pytest.raises(ValueError, match=r"4 of 8 .* max_bad = 0\.001"):
        train.run(cfg, str(tmp_path / "run"))
    (tmp_path / "data").rename(tmp_path / "moved")
    cfg.loader.max_bad, cfg.data.path = 0.5, str(tmp_path / "moved")
    (tmp_path / "moved/val/dog/val_dog_7.png").rename(tmp_path / "one.png")
    with pytest.raises(ValueError, match="was trained on other data"):
        train.run(cfg, str(tmp_path / "run"))
    kept = json.loads((tmp_path / "run/config.json").read_text())
    assert kept["loader"]["max_bad"] == 0.001
    (tmp_path / "one.png").rename(tmp_path / "moved/val/dog/val_dog_7.png")
    _, made, result = train.run(cfg, str(tmp_path / "run"))
    assert result["resumed_at"] == made.steps
    assert json.loads((tmp_path / "run/config.json").read_text()) == result["config"]
    assert result["config"]["loader"]["max_bad"] == 0.5
    cfg.optimizer.learning_rate = 0.5
    with pytest.raises(ValueError, match=r"begun with another config \(optimizer.learning_rate: "):
        train.run(cfg, str(tmp_path / "run"))


def folder_of_images(root, names):
    for split, classes in names.items():
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(8):
                shade = np.full((20, 20, 3), 30 * i, np.uint8)
                Image.fromarray(shade).save(root / split / name / f"{split}_{name}_{i}.png")


def on_disk(path, **changes):
    data = {**config.train().data, "name": "folder", "path": str(path), "labels": "", "domain": ()}
    cfg = small(split="train", eval_split="val", task__augment__name="imagenet", **changes)
    cfg.data = {**data, "size": 16}
    cfg.batch_size = 8
    return cfg


@pytest.mark.slow
def test_images_on_disk_are_learned_from_and_a_finished_run_is_left_alone(tmp_path, caplog):
    classes = ("cat", "dog")
    folder_of_images(tmp_path / "data", {"train": classes, "val": classes})
    (tmp_path / "data/train/cat/train_cat_3.png").write_bytes(b"no image")
    (tmp_path / "data/val/cat/val_cat_0.png").write_bytes(b"no image")  # the very first
    cfg = on_disk(tmp_path / "data", evaluators__memorised__examples=2048)
    _, _, result = train.run(cfg, str(tmp_path / "run"))
    (file,) = result["unreadable"].values()
    assert "train_cat_3.png" in file
    (file,) = result["unreadable_eval"].values()
    assert "val_cat_0.png" in file
    assert caplog.text.count(f"cannot be read, left out of evaluation: {file}") == 1
    before = (tmp_path / "run/result.json").read_bytes()
    _, _, again = train.run(cfg, str(tmp_path / "run"))
    assert again == result
    assert (tmp_path / "run/result.json").read_bytes() == before
    (tmp_path / "run/result.json").unlink()  # killed just before it was written
    _, _, resumed = train.run(cfg, str(tmp_path / "run"))
    for key in ("unreadable", "unreadable_eval"):
        assert resumed[key] == result[key]


@pytest.mark.parametrize(
    ("val", "name", "message"),
    [
        (
            ("dog",),
            "imagenet",
            "same in both, in the same order; only config.split 'train' has cat",
        ),
        (("cat", "dog"), "flip_crop", "images on disk come as crops"),
    ],
)
def test_images_on_disk_that_cannot_be_used_are_told_before_anything(val, name, message, tmp_path):
    folder_of_images(tmp_path / "data", {"train": ("cat", "dog"), "val": val})
    cfg = on_disk(tmp_path / "data")
    cfg.task.augment.name = name
    with pytest.raises(ValueError, match=message):
        train.run(cfg, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
