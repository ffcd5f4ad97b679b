"""What was exported is a model again, of the same outputs."""

import jax
import numpy as np
import pytest
import zoo

from noisy_fm import config as config_lib
from noisy_fm import load_model, tasks
from noisy_fm.data import decode
from noisy_fm.export import export
from noisy_fm.model import Model, Preprocess

RESNET = {"name": "resnet18", "width": 8, "stage_sizes": (1, 1, 1, 1)}
VIT = {"name": "vit_tiny", "patch": 8, "dim": 16, "depth": 1, "num_heads": 2, "pool": "token"}


def drawn(model: dict, size: int = 32) -> Model:
    """A model that is no run, of drawn numbers."""
    config = config_lib.train("classify")
    with config.unlocked():
        config.model, config.data.size = dict(model), size
        config.task.augment = {"name": "imagenet"}
    with config.ignore_type():
        config.task.normalize.update(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    info = {"label_names": ["a", "b", "c"], "encoded": True}
    kind = tasks.TASKS["classify"]
    module = kind.network(config, info)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, s: zoo.drawn(jax.tree_util.keystr(path) + "running_var" * ("var" in str(path)),
                                  s.shape),
        zoo.shapes_of(module, size),
    )  # fmt: skip
    fit = decode.Fit(size, size + 7, filter="bilinear")
    meta = {"config": config_lib.plain(config), "info": info, "step": 0, "weights": "drawn"}
    preprocess = Preprocess(fit, **config.task.normalize)
    return Model(module, variables, preprocess, "pre_logits", meta, kind.make(config, info))


@pytest.mark.parametrize(
    ("model", "to"), [(RESNET, "saved_npz"), (VIT, "saved_npz"), (VIT, "timm")], ids=str
)
def test_what_was_exported_is_read_again(tmp_path, model, to):
    ours = drawn(model)
    export(ours, to, tmp_path / "out")
    again = load_model(tmp_path / "out")
    assert again.label_names == ours.label_names
    assert again.preprocess == ours.preprocess
    images = [np.random.default_rng(i).integers(0, 256, (40, 60, 3), np.uint8) for i in range(2)]
    np.testing.assert_allclose(again.predict(images), ours.predict(images), atol=1e-6)
    for mine, theirs in zip(
        jax.tree.leaves(ours.variables), jax.tree.leaves(again.variables), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


def test_an_export_that_holds_no_arrays_is_refused(tmp_path):
    (tmp_path / "noisy_fm.json").write_text('{"to": "onnx"}')
    with pytest.raises(ValueError, match=r"is an export to 'onnx' .* which is not read again"):
        load_model(tmp_path)
