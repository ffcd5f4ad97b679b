"""Image–text training: losses, microbatches, captions, devices, resuming, what is measured."""

import dataclasses
import functools
import json
import math
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from scipy.special import log_softmax, logsumexp

from noisy_fm import config as config_lib
from noisy_fm import (
    data,
    evaluate,
    evaluators,
    load_model,
    losses,
    models,
    optim,
    sharding,
    tasks,
    train,
    zeroshot,
)
from noisy_fm.evaluators.contrast import class_names
from noisy_fm.models.resnet import ResNet
from noisy_fm.tasks import contrast
from noisy_fm.texts import clip_tokenizer
from noisy_fm.train.state import init_state, make_step, plan_state


def towers(**fields) -> models.Clip:
    image = ResNet(0, (1,), width=8, stem="half")
    text = models.TextTransformer(dim=16, depth=1, num_heads=2, context=12)
    return models.Clip(image, text, 16, **fields)


def pairs(count: int = 48):
    source = data.load("emoji_domains", domain="noto", split="train", labels="category")
    return source.select(np.arange(count) * 3)


def tiny(**changes):
    """A training config of two tiny towers."""
    config = config_lib.train("contrast")
    config.model = {
        "name": "resnet10_half",
        "width": 4,
        "embed_dim": 16,
        "text": {"dim": 16, "depth": 1, "num_heads": 2, "context": 12},
    }
    config.data.domain, config.data.labels = ("noto",), "category"
    config.data.captions = "{name}, {category}"
    config.split, config.eval_split = "train", "test"
    config.noise = {"kind": "captions", "rate": 0.3}
    config.task.hide = 0.4
    config.batch_size, config.epochs, config.writers = 16, 1.0, ()
    config.evaluators.memorised.examples = 20
    return config_lib.updated(config, changes)


def embeddings(n: int = 40, e: int = 8):
    drawn = np.random.default_rng(0)
    x, y = (drawn.normal(size=(n, e)) for _ in range(2))
    return zeroshot.normalized(x).astype(np.float32), zeroshot.normalized(y).astype(np.float32)


@pytest.mark.parametrize("chunk", [0, 7, 16, 40])
def test_the_contrastive_loss_is_the_mean_of_two_cross_entropies(chunk):
    x, y = embeddings()
    logits = 20.0 * x.astype(float) @ y.T.astype(float)
    expected = -(np.diag(log_softmax(logits, 1)) + np.diag(log_softmax(logits, 0))) / 2
    found, correct = losses.contrastive(x, y, scale=20.0, chunk=chunk)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(correct, logits.argmax(1) == np.arange(40))
    kept = np.arange(40) % 3 > 0
    some, _ = losses.contrastive(x[kept], y[kept], scale=20.0)
    masked, _ = losses.contrastive(x, y, scale=20.0, mask=kept, chunk=chunk)
    np.testing.assert_allclose(masked[kept], some, atol=1e-5)


@pytest.mark.parametrize("chunk", [0, 7])
def test_the_sigmoid_loss_is_a_sum_over_pairs(chunk):
    x, y = embeddings()
    logits = 5.0 * x.astype(float) @ y.T.astype(float) - 3
    signs = 2 * np.eye(40) - 1
    expected = logsumexp(np.stack([np.zeros_like(logits), -signs * logits]), axis=0).sum(1)
    found, _ = losses.sigmoid_contrastive(x, y, scale=5.0, bias=-3.0, chunk=chunk)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", ["contrastive", "sigmoid_contrastive"])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_the_loss_and_its_gradient_are_the_same_on_any_number_of_devices(loss, devices):
    x, y = embeddings(32)
    known = {"bias": -2.0} if loss.startswith("sigmoid") else {}

    def value(x, y, scale, **how):
        return getattr(losses, loss)(x, y, scale=scale, **known, **how)[0].mean()

    def split(x, y, scale):
        return value(x, y, scale, chunk=8, gather=contrast.whole)

    expected = jax.value_and_grad(value, (0, 1, 2))(x, y, 10.0)
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    rows = jax.sharding.NamedSharding(mesh, sharding.BATCH)
    given = [jax.device_put(one, rows) for one in (x, y)]
    with jax.set_mesh(mesh):
        found = jax.jit(jax.value_and_grad(split, (0, 1, 2)))(*given, 10.0)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_no_device_holds_the_logits_of_all_pairs():
    """At 4,096 pairs all logits are 64 MiB a copy; eight devices' shares of chunks are 0.5 MiB."""
    mesh = sharding.make_mesh(devices=jax.devices())
    rows = jax.sharding.NamedSharding(mesh, sharding.BATCH)
    one = jax.ShapeDtypeStruct((4096, 32), jnp.float32, sharding=rows)

    def memory(chunk):
        def value(x, y):
            known = {"scale": 10.0, "chunk": chunk, "gather": contrast.whole}
            return losses.contrastive(x, y, **known)[0].mean()

        with jax.set_mesh(mesh):
            compiled = jax.jit(jax.grad(value, (0, 1))).lower(one, one).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(256) < 2**22 < memory(0)


@pytest.mark.parametrize("loss", ["softmax", pytest.param("sigmoid", marks=pytest.mark.slow)])
def test_a_batch_taken_in_parts_has_the_whole_batchs_gradient(loss):
    model = towers(logit_bias=loss == "sigmoid")
    # A tower without BatchNorm, which would normalise by the part.
    model = dataclasses.replace(
        model, image=models.ViT(0, patch=8, dim=16, depth=1, num_heads=2, pool="gap")
    )
    task = contrast.contrast(model, tokenizer=clip_tokenizer(12), loss=loss, chunk=5)
    source = pairs(24)
    batch = task.collate(source.read(np.arange(24), columns=("caption",)))
    batch = {"image": jnp.asarray(batch["image"]), "tokens": jnp.asarray(batch["tokens"])}
    params, state = jax.jit(task.init_fn)(jax.random.key(0), batch)
    key = jax.random.key(1)
    whole = jax.jit(jax.value_and_grad(task.loss_fn, has_aux=True))(params, state, batch, key)
    in_parts = functools.partial(
        optim.accumulate_embeddings, task.loss_fn, microbatches=4,
        embed_fn=task.parts.embed_fn, combine_fn=task.parts.combine_fn,
    )  # fmt: skip
    parts = jax.jit(in_parts)(params, state, batch, key)
    np.testing.assert_allclose(parts[0][0], whole[0][0], rtol=1e-6)
    np.testing.assert_allclose(parts[0][1][1]["loss"], whole[0][1][1]["loss"], rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(parts[1]), jax.tree.leaves(whole[1]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def trained(mesh, *, microbatches: int = 1, loss: str = "softmax", steps: int = 4):
    """Losses of some steps on a mesh."""
    task = contrast.contrast(
        towers(), tokenizer=clip_tokenizer(12), loss=loss, chunk=6, hide=0.3,
    )  # fmt: skip
    source = pairs()
    example = task.collate(source.read(np.zeros(1, int), columns=("caption",)))
    plan = plan_state(
        task, lambda multipliers: optax.adamw(1e-2), example, mesh=mesh, trainable=((".*", 1.0),),
        rules=((".*", "fsdp"),), seeds=toy.Seeds,
    )  # fmt: skip
    state, found = init_state(plan), []
    step = make_step(task, plan.tx, state, microbatches=microbatches)
    own = sharding.host_rows(mesh, 16)
    with jax.set_mesh(mesh):
        for i in range(steps):
            rows = own + 16 * (i % 3)
            batch = task.collate(source.read(rows, columns=("caption",)))
            state, value = step(state, sharding.to_global(batch, mesh))
            found.append(float(value))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 4}, {"data": 8}], ids=str)
def test_training_is_the_same_on_one_device_and_on_eight(axes):
    one = trained(toy.one_device())
    np.testing.assert_allclose(trained(sharding.make_mesh(**axes)), one, rtol=1e-4)
    assert one[3] < one[0]


def test_the_scale_stays_below_a_hundred():
    state = train.state.limited({"logit_scale": jnp.float32(9.0), "x": jnp.float32(9.0)},
                                (("logit_scale", -math.inf, math.log(100)),))  # fmt: skip
    assert float(state["logit_scale"]) == pytest.approx(math.log(100))
    assert float(state["x"]) == 9.0


def test_parts_of_captions_are_hidden_and_one_always_stays():
    tokenizer = clip_tokenizer(20)
    texts = ["grinning face, face-smiling, Smileys & Emotion", "x", "a, b", "", ", , x"]
    tokens = jnp.asarray(tokenizer(texts))
    np.testing.assert_array_equal(
        contrast.hidden(tokens, jax.random.key(0), rate=0.0, tokenizer=tokenizer)[:4], tokens[:4]
    )
    seen = set()
    for i in range(60):
        found = contrast.hidden(tokens, jax.random.key(i), rate=0.7, tokenizer=tokenizer)
        rows = [tokenizer.decode(row) for row in np.asarray(found)]
        assert (rows[1], rows[3]) == ("x ", "")
        assert rows[2].strip() in ("a", "b", "a , b")
        assert (np.asarray(found) == tokenizer.end).sum() == len(texts)
        seen.add(rows[0].strip())
    parts = ["grinning face", "face - smiling", "smileys & emotion"]
    kept = [[p for i, p in enumerate(parts) if bits >> i & 1] for bits in range(1, 8)]
    assert seen == {" , ".join(some) for some in kept}


def test_an_empty_caption_has_an_embedding_and_a_finite_gradient():
    task = contrast.contrast(towers(), tokenizer=clip_tokenizer(12))
    source = pairs(8).replace(caption=np.array([""] * 4 + ["a", "b", "c", "d"]))
    batch = task.collate(source.read(np.arange(8), columns=("caption",)))
    batch = {name: jnp.asarray(batch[name]) for name in ("image", "tokens")}
    params, state = jax.jit(task.init_fn)(jax.random.key(0), batch)
    (value, _), gradient = jax.jit(jax.value_and_grad(task.loss_fn, has_aux=True))(
        params, state, batch, jax.random.key(0)
    )
    assert np.isfinite(value)
    assert all(np.isfinite(one).all() for one in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    config = tiny(epochs=2.0, checkpoint_every=5, **{"data.domain": ("noto", "twemoji")})
    whole, _, _ = train.run(config, str(tmp_path / "whole"))
    line = [
        sys.executable, "-c",
        "import sys, json; sys.path.insert(0, 'tests'); import conftest, test_contrast;"
        "from noisy_fm import train; from noisy_fm.train import loop\n"
        "save = loop.Clock.saved\n"
        "def killed(self, count=[]):\n"
        "    count.append(1)\n"
        "    save(self)\n"
        "    if len(count) == 2:\n"
        "        import time, os, signal; time.sleep(1); os.kill(os.getpid(), signal.SIGKILL)\n"
        "loop.Clock.saved = killed\n"
        "c = test_contrast.tiny(epochs=2.0, checkpoint_every=5, "
        "**{'data.domain': ('noto', 'twemoji')})\n"
        f"train.run(c, {str(tmp_path / 'cut')!r})",
    ]  # fmt: skip
    ended = subprocess.run(line, capture_output=True, text=True, env={**os.environ}, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]
    again, _, _ = train.run(config, str(tmp_path / "cut"))
    for ours, theirs in zip(
        jax.tree.leaves(toy.host(again)), jax.tree.leaves(toy.host(whole)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert json.loads((tmp_path / "cut" / "result.json").read_text())["resumed_at"] > 0


@pytest.mark.slow
def test_a_runs_model_knows_texts(tmp_path):
    _, made, result = train.run(tiny(eval_every=-1), str(tmp_path))
    assert set(result["eval"]) >= {"loss", "matched", "memorised", "resisted"}
    check_model(load_model(tmp_path), made)
    check_command(tmp_path, made, result)


def check_command(run, made, result):
    """`noisy_fm evaluate` gives what the run's evaluation gave, and None for an empty class."""
    common = [f"--model={run}", "--data=emoji_domains", "--data.domain=noto"]
    out = run / "found.json"
    evaluate.main([*common, "--data.labels=category", "--kind=validation", f"--out={out}",
                   "--data.captions={name}, {category}", "--batch-size=16"])  # fmt: skip
    found = json.loads(out.read_text())
    assert found["metrics"]["matched"]["value"] == pytest.approx(result["eval"]["matched"])
    assert found["metrics"]["matched"]["n"] == len(made.eval_source)
    evaluate.main([*common, "--data.labels=subcategory", "--prompts=name", f"--out={out}"])
    found = json.loads(out.read_text())
    classes = found["per_class"]
    source = data.load("emoji_domains", domain="noto", split="test", labels="subcategory")
    counts = np.bincount(source.labels, minlength=len(classes))
    assert [one is None for one in classes.values()] == (counts == 0).tolist()
    hits = sum(n * one for n, one in zip(counts, classes.values(), strict=True) if n)
    assert found["metrics"]["zero_shot"]["value"] == pytest.approx(hits / len(source))
    for wrong, words in (
        (["--within=category"], "--within is not read by --kind=zero_shot, which the model"),
        (["--prompts=a photo"], "prompts"),
        (["--names=imagenet", "--data.labels=category"], "are not ImageNet-1K's"),
        (["--kind=retrieval", "--within=colour"], "colour"),
        (["--data.crop=0.5"], "crop"),
    ):
        with pytest.raises(SystemExit) as ended:
            evaluate.main([*common, *wrong])
        assert ended.value.code == 2, words


def check_model(model, made):
    images = made.eval_source.images[:6]
    texts = model.encode_texts(["a cat", "two dogs"])
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)
    chances = model.zero_shot(images, ["cat", "dog", "tree"], prompts=("a {}", "some {}"))
    np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-5)
    silent = model._replace(task=model.task._replace(texts=lambda *given: pytest.fail("encoded")))
    again = silent.zero_shot(images, ["cat", "dog", "tree"], prompts=("a {}", "some {}"))
    np.testing.assert_array_equal(again, chances)
    named = model.features(images, feature="normalized")
    each = [model.encode_texts([f"a {n}", f"some {n}"]).mean(0) for n in ("cat", "dog", "tree")]
    weights = zeroshot.normalized(np.stack(each))
    scale = np.exp(model.variables["params"]["logit_scale"])
    expected = np.exp(log_softmax(scale * named @ weights.T, axis=1))
    np.testing.assert_allclose(chances, expected, rtol=1e-4)
    assert model.features(images).shape == (6, 32)
    with pytest.raises(ValueError, match="zero_shot"):
        model.predict(images)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"noise": {"kind": "symmetric", "rate": 0.1}}, "learns no other column"),
        ({"task.hide": 1.0}, "config.task.hide"),
        ({"task.loss": "hinge"}, "config.task.loss"),
        ({"batch_size": 1}, "batch_size is 1; expected 2 or more"),
        ({"batch_size": 12, "microbatches": 5}, "multiple of"),
        ({"model.text.vocabulary": 10}, "CLIP's tokenizer has 49408"),
        ({"model.text.depht": 1}, "depht"),
        ({"model.embed_dim": 0}, "embed_dim of resnet10_half"),
        ({"model.logit_bias": True}, "logit_bias"),
        ({"data": {**config_lib.train().data.to_dict(), "name": "digits", "labels": ""}},
         "has no captions"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(changes, words):
    config = tiny()
    for key, value in changes.items():
        config = config_lib.updated(config, {}) if isinstance(value, dict) else config
        group, _, name = key.rpartition(".")
        place = config
        for part in filter(None, group.split(".")):
            place = place[part]
        with place.unlocked():
            place[name] = value
    if config.data.name == "digits":
        config.split = "train"
    with pytest.raises(ValueError, match=words) as error:
        train.setup(config)
    assert "\n" not in str(error.value)


def test_one_caption_for_all_is_refused():
    source = pairs(10)
    same = source.replace(caption=np.array(["a cat"] * 10))
    with pytest.raises(ValueError, match="one caption for all images, 'a cat'"):
        contrast.check_data(same, source, where=("config.split", "config.eval_split"))


def test_tasks_without_parts_refuse_microbatches():
    task = tasks.TASKS["contrast"].make(tiny(), {"encoded": False, "label_names": []})
    assert not task.splits
    train.build.check_parts(config_lib.updated(tiny(), {"microbatches": 2}), task)
    with pytest.raises(ValueError, match="compares all examples of a batch"):
        train.build.check_parts(
            config_lib.updated(tiny(), {"microbatches": 2}), task._replace(parts=None)
        )


def test_ranks_count_what_is_before_the_first_right_one():
    queries = np.eye(4, dtype=np.float32)
    gallery = np.array([[9, 1, 0, 0], [8, 0, 2, 0], [7, 5, 0, 0]], np.float32)
    ours, theirs = np.array([2, 0, 1, 3]), np.array([0, 1, 2])
    found = zeroshot.ranks(queries, gallery, zeroshot.by_group(ours, theirs), rows=3)
    # The last query has nothing right; the others' right ones are rows 2, 0, 1.
    assert found.tolist() == [2, 1, 0, -1]
    hits = zeroshot.recall(found, (1, 2))
    np.testing.assert_array_equal(hits[1], [0, 0, 1, np.nan])
    np.testing.assert_array_equal(hits[2], [0, 1, 1, np.nan])
    constant = np.ones((3, 4), np.float32)
    assert (zeroshot.ranks(queries, constant, zeroshot.by_group(ours, theirs))[:3] == 2).all()


def test_evaluators_of_pairs_measure_what_the_arrays_say():
    """Embeddings that are one-hot by caption, but for one image that has another's."""
    source = data.load("emoji_domains", domain="noto", split="test", labels="category")
    source = source.select(np.arange(40) * 2)
    names = sorted(set(source.columns["caption"].tolist()))
    place = np.array([names.index(one) for one in source.columns["caption"]])
    place[3] = (place[3] + 1) % len(names)
    ids = jnp.asarray(source.ids.astype(np.int32))

    def predict_fn(params, model_state, batch):
        row = jnp.argmax(batch["id"][:, None] == ids, axis=1)
        return {"features": {"normalized": jax.nn.one_hot(jnp.asarray(place)[row], len(names))}}

    def texts(variables, some):
        return np.eye(len(names), dtype=np.float32)[[names.index(one) for one in some]]

    task = tasks.TASKS["contrast"].make(tiny(), {"encoded": False, "label_names": []})
    task = task._replace(predict_fn=predict_fn, texts=texts)
    given = toy.given(task, ({"logit_scale": jnp.float32(0)}, {}), source)
    for within in ("", "category"):
        found = evaluators.EVALUATORS["retrieval"](given, ks=(1,), within=within)
        measured = found.measure(given.variables)
        assert measured["to_text/R@1"] == pytest.approx(39 / 40)
        assert set(measured) == set(found.names)
        outcome = found.outcomes(given.variables)["to_text/R@1"]
        assert outcome.ids[outcome.values == 0].tolist() == [source.ids[3]]
    some = source.replace(caption=np.array(["brand new"] + ["x"] * 39))
    known = given._replace(trained=some)
    with pytest.raises(ValueError, match="no caption has only words"):
        evaluators.EVALUATORS["retrieval"](known, seen_words=True)
    with pytest.raises(ValueError, match=r"within 'colour'.*category"):
        evaluators.EVALUATORS["retrieval"](given, within="colour")
    classes = source.info["label_names"]
    named = task._replace(
        texts=lambda variables, some: np.eye(8, len(names), dtype=np.float32)[
            [classes.index(one) for one in some]
        ]
    )
    by_label = jnp.asarray(source.labels)

    def told(params, model_state, batch):
        row = jnp.argmax(batch["id"][:, None] == ids, axis=1)
        return {"features": {"normalized": jax.nn.one_hot(by_label[row], len(names))}}

    zero = evaluators.EVALUATORS["zero_shot"](
        given._replace(task=named._replace(predict_fn=told)), prompts="name"
    )
    measured = zero.measure(given.variables)
    assert (measured["zero_shot"], measured["top5"]) == (1.0, 1.0)
    chance = np.e / (np.e + 7)
    assert measured["calibration"] == pytest.approx(1 - chance, abs=1e-6)
    classifier = task._replace(texts=None)
    with pytest.raises(ValueError, match="needs a task with texts"):
        evaluators.EVALUATORS["zero_shot"](given._replace(task=classifier))
    with pytest.raises(ValueError, match="are not ImageNet-1K"):
        evaluators.EVALUATORS["zero_shot"](given, names="imagenet")


def test_retrieval_agrees_with_scikit_learn():
    from sklearn.metrics import top_k_accuracy_score

    x, y = embeddings(60)
    own = np.arange(60)
    found = zeroshot.ranks(x, y, zeroshot.by_group(own, own), rows=7)
    for k in (1, 5, 10):
        hits = zeroshot.recall(found, (k,))[k].mean()
        expected = top_k_accuracy_score(own, x @ y.T, k=k, labels=own)
        assert hits == pytest.approx(expected)


def test_classes_may_be_some_or_of_groups():
    images, weights = embeddings(30)
    weights = weights[:6]
    plain = zeroshot.logits(images, weights, scale=3.0)
    np.testing.assert_allclose(plain, 3 * images @ weights.T, rtol=1e-5)
    np.testing.assert_array_equal(zeroshot.logits(images, weights, classes=[4, 1], scale=3.0),
                                  plain[:, [4, 1]])  # fmt: skip
    grouped = zeroshot.logits(images, weights, groups=[0, 0, 1, -1, 1, 0], scale=3.0)
    np.testing.assert_array_equal(grouped[:, 0], plain[:, [0, 1, 5]].max(1))
    for wrong in ({"classes": [6]}, {"classes": []}, {"groups": [0]}, {"groups": [0] * 5 + [2]},
                  {"classes": [0], "groups": [0] * 6}):  # fmt: skip
        with pytest.raises(ValueError, match="expected"):
            zeroshot.logits(images, weights, **wrong)


def test_calibration_error_of_perfect_and_of_overconfident_scores():
    labels = np.array([0] * 8 + [1] * 2)
    honest = np.log(np.tile([0.8, 0.2], (10, 1)))
    assert zeroshot.calibration_error(honest, labels) == pytest.approx(0, abs=1e-9)
    sure = np.tile([50.0, 0.0], (10, 1))
    assert zeroshot.calibration_error(sure, labels) == pytest.approx(0.2)
    np.testing.assert_array_equal(
        zeroshot.per_class(np.array([1, 0, 1.0]), np.array([0, 0, 2]), 4), [0.5, np.nan, 1, np.nan]
    )


def test_prompts_by_name_and_ones_own():
    assert len(zeroshot.prompts("imagenet")) == 80
    assert zeroshot.prompts("simple") == ("a photo of a {}.",)
    assert zeroshot.prompts("an {}") == ("an {}",)
    assert len(zeroshot.imagenet_names()) == 1000
    for wrong in (["no place"], ["{} and {}"], []):
        with pytest.raises(ValueError, match="expected"):
            zeroshot.prompts(wrong)
    with pytest.raises(ValueError, match="prompts"):
        zeroshot.prompts("simpel")
    with pytest.raises(ValueError, match="class 1 is called"):
        zeroshot.classifier(lambda texts: np.ones((len(texts), 2)), ["a", " "], ["{}"])
    for wrong in ("cat", [], [0, 1]):
        with pytest.raises(ValueError, match="expected a"):
            zeroshot.classifier(lambda texts: np.ones((len(texts), 2)), wrong, ["{}"])


def test_ties_go_to_the_first_class_and_nan_hits_nothing():
    scores, labels = np.array([[1.0, 1, 0], [1, 1, 0], [np.nan] * 3]), np.array([0, 1, 0])
    assert zeroshot.outcomes(scores, labels)["accuracy"].tolist() == [1, 0, 0]
    lost = np.full((3, 4), np.nan, np.float32)
    assert (zeroshot.ranks(lost, lost, zeroshot.by_group(labels, labels)) > 0).all()


def test_collapsed_embeddings_match_nothing():
    same = jnp.ones((8, 4)) / 2
    for loss, known in ((losses.contrastive, {}), (losses.sigmoid_contrastive, {"bias": 0.0})):
        assert not loss(same, same, scale=10.0, **known)[1].any()
        assert not loss(same, same, scale=10.0, chunk=3, **known)[1].any()


def test_the_tokenizer_pickles_and_refuses_what_is_no_text():
    import pickle

    tokenizer = clip_tokenizer(12)
    again = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(again(["a cat"]), tokenizer(["a cat"]))
    assert tokenizer([]).shape == (0, 12)
    assert tokenizer(["a photo of a cat"])[0].tolist()[:7] == [
        49406, 320, 1125, 539, 320, 2368, 49407,
    ]  # fmt: skip
    for wrong in ("a cat", [None], [float("nan")], [b"cat"]):
        with pytest.raises(TypeError, match="expected"):
            tokenizer(wrong)


def test_folders_of_some_of_imagenets_classes_are_named_as_they_are():
    """As ImageNet-R has them: 200 of the thousand, by WordNet's numbers."""
    names = class_names(("n01484850", "n01443537"), "imagenet")
    assert names == ("great white shark", "goldfish")
    with pytest.raises(ValueError, match="are not ImageNet-1K's in its order"):
        class_names(("n01484850", "n00000001"), "imagenet")
