import ast
import functools
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from noisy_fm import config, models
from noisy_fm.models import fast
from noisy_fm.models.fast import pointwise, product
from noisy_fm.models.layers import DropPath, drop_rates
from noisy_fm.models.resnet import BasicBlock, Bottleneck
from noisy_fm.models.transformer import Attention, Block
from noisy_fm.models.vit import sincos2d

TIMM = np.load(Path(__file__).parent / "references/timm.npz")
# Small enough to run in a test, one a family.
TINY = {
    "resnet10_narrow": {"width": 4, "stage_sizes": (1, 2)},
    "resnet50": {"width": 4, "stage_sizes": (1, 1), "stem": "half"},
    "vit_tiny": {"dim": 16, "depth": 2, "num_heads": 2, "patch": 8},
    "vit_ti16": {"dim": 16, "depth": 2, "num_heads": 2, "patch": 8, "layer_scale": 0.1},
}
SIZE = 16


def random_images(n=4, size=SIZE, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((n, size, size, 3)), jnp.float32)


@functools.cache
def make(name, **overrides):
    """A tiny model and variables in which no parameter is at a special value."""
    model = models.create(name, 5, **{**TINY[name], **overrides})
    shapes = jax.eval_shape(model.init, jax.random.key(0), random_images())
    rng = np.random.default_rng(1)

    def some_values(path, leaf):
        spread = 1 / math.sqrt(math.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1
        around_one = path[-1].key in ("scale", "var")
        return jnp.asarray(around_one + spread * rng.uniform(-1, 1, leaf.shape), leaf.dtype)

    return model, jax.tree.map_with_path(some_values, shapes)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, variables, images):
    return model.apply(variables, images)


@functools.partial(jax.jit, static_argnums=0)
def train(model, variables, images, seed=0):
    keys = {"dropout": jax.random.key(seed)}
    return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=keys)


def shapes_of(name, size, num_classes=1000, **overrides):
    model = models.create(name, num_classes, **overrides)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return variables, jax.eval_shape(model.apply, variables, images)


# torchvision's and timm's counts for the same architectures.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("vit_ti16", 5_717_416),
        ("vit_s16", 22_050_664),
        ("vit_b16", 86_567_656),
    ],
)
def test_parameter_counts(name, count):
    variables, (logits, _) = shapes_of(name, 224)
    leaves = jax.tree.leaves(variables["params"])
    assert sum(math.prod(x.shape) for x in leaves) == count
    assert {x.dtype for x in leaves} == {jnp.dtype("float32")}
    assert logits.shape == (2, 1000)


LARGER = (
    *("resnet34", "resnet101", "resnet152"),
    *("clip_vit_b32", "clip_vit_b16", "clip_vit_l14"),
    *("vit_b16", "deit3_s16", "dinov2_s14_reg", "swin_t"),
)
# `test_zoo_conv` and `test_zoo_transformers` have a small one of each.
OF_THE_ZOO = re.compile(
    "tf_|efficientnet_b|convnext|wide|resnetv2|swin_[sbl]|(vit|deit3|dinov2)_[smblh]\\d"
)
NAMED = [name for name in models.MODELS if name in LARGER or not OF_THE_ZOO.match(name)]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGER)) for name in NAMED],
)
def test_every_model_has_named_features(name):
    size = (
        224
        if "vit_tiny" not in name
        and (re.match("vit|deit3|dinov2|swin|clip", name) or ("resnet" in name and "_" not in name))
        else 32
    )
    _, (logits, features) = shapes_of(name, size, 7)
    assert logits.shape == (2, 7)
    assert features["pre_logits"].shape[0] == 2
    assert features["pre_logits"].ndim == 2
    _, (pooled, features) = shapes_of(name, size, 0)
    assert pooled.shape == features["pre_logits"].shape


def test_resnet_features_have_the_published_shapes():
    _, (_, features) = shapes_of("resnet50", 224)
    assert {k: v.shape[1:] for k, v in features.items() if "/" not in k} == {
        "stem": (56, 56, 64),
        "layer1": (56, 56, 256),
        "layer2": (28, 28, 512),
        "layer3": (14, 14, 1024),
        "layer4": (7, 7, 2048),
        "pre_logits": (2048,),
    }
    assert sum(k.startswith("layer3/block") for k in features) == 6


def test_vit_features_have_the_published_shapes():
    _, (_, features) = shapes_of("vit_b16", 224)
    assert features["pre_logits"].shape == (2, 768)
    assert features.keys() == {"embed", "pre_logits", *(f"block{i}" for i in range(12))}
    assert features["block11"].shape == features["embed"].shape == (2, 197, 768)
    _, (_, features) = shapes_of("vit_b16", 64, pool="gap")
    assert features["block0"].shape == (2, 16, 768)


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 8), ("half", 16), ("cifar", 32)])
def test_stems_reduce_the_image_as_they_say(stem, side):
    variables, (_, features) = shapes_of("resnet18", 32, stem=stem)
    assert features["stem"].shape == (2, side, side, 64)
    kernel = variables["params"]["stem"]["conv"]["kernel"].shape[:2]
    assert kernel == ((7, 7) if stem == "imagenet" else (3, 3))


# (regex, replacement) in order: our paths in timm's words.
TIMM_NAMES = {
    "resnet50": (
        (r"^stem/conv", "conv1"),
        (r"^stem/norm", "bn1"),
        (r"/block(\d+)/", r"/\1/"),
        (r"downsample/conv", "downsample/0"),
        (r"downsample/norm", "downsample/1"),
        (r"/norm(\d)/", r"/bn\1/"),
        (r"^head/", "fc/"),
    ),
    "vit_b16": ((r"^block(\d+)/", r"blocks/\1/"), (r"^patch_embed/", "patch_embed/proj/")),
}
LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def in_timms_words(path, shape, rules):
    """(timm's name, its shape there: PyTorch keeps the outputs first)."""
    for regex, replacement in rules:
        path = re.sub(regex, replacement, path)
    *modules, leaf = path.split("/")
    if leaf == "kernel":
        shape = (shape[-1], shape[-2], *shape[:-2])
    return ".".join([*modules, LEAVES.get(leaf, leaf)]), shape


@pytest.mark.parametrize(
    ("name", "reference", "overrides"),
    [
        ("resnet50", "resnet50", {}),
        ("vit_b16", "vit_b16", {}),
        ("vit_b16", "vit_b16_scaled", {"layer_scale": 1e-4, "scan": True, "remat": "full"}),
    ],
)
def test_names_shapes_and_decay_are_those_of_timm(name, reference, overrides):
    timm = {key: TIMM[f"model/{reference}/{key}"] for key in ("names", "shapes", "decayed")}
    variables, _ = shapes_of(name, 224, **overrides)
    flat = {
        "/".join(k.key for k in path[1:]): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]
    }
    ours = dict(in_timms_words(path, shape, TIMM_NAMES[name]) for path, shape in flat.items())
    assert ours == {
        key: ast.literal_eval(shape)
        for key, shape in zip(timm["names"], timm["shapes"], strict=True)
    }
    decayed = {
        in_timms_words(path, shape, TIMM_NAMES[name])[0]
        for path, shape in flat.items()
        if re.search(config.train().decay, path)
    }
    assert decayed == set(timm["decayed"])
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert count == TIMM[f"model/{reference}/count"]


@functools.cache
def value_and_gradient(name, seed=3, **overrides):
    """Logits in training, the gradient of their squares, and BatchNorm's new statistics."""
    model, _ = make(name, **overrides)
    _, variables = make(name)

    @jax.jit
    def run(params, state):
        def loss(params):
            (logits, _), new = model.apply(
                {"params": params, **state},
                random_images(),
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(seed)},
            )
            return jnp.sum(logits**2), (logits, new)

        return jax.grad(loss, has_aux=True)(params)

    return run(variables["params"], {k: v for k, v in variables.items() if k != "params"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("vit_ti16", {"scan": True}),
        ("vit_ti16", {"scan": True, "remat": "full"}),
        ("vit_ti16", {"remat": "dots_with_no_batch_dims_saveable"}),
        ("resnet50", {"remat": "dots"}),
    ],
)
def test_loops_and_rematerialisation_change_nothing_but_the_program(name, overrides):
    wanted = value_and_gradient(name, drop_path=0.4)
    got = value_and_gradient(name, drop_path=0.4, **overrides)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), got, wanted)


def test_a_scanned_model_is_one_loop_and_has_the_same_parameters():
    model, variables = make("vit_ti16", scan=True, depth=5)
    loop, same = make("vit_ti16", depth=5)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, same)
    images = random_images()

    def loops(model):
        lowered = jax.jit(model.apply).lower(variables, images).as_text()
        return lowered.count("stablehlo.while"), len(lowered)

    assert loops(model)[0] == loops(loop)[0] + 1
    assert loops(model)[1] < 0.7 * loops(loop)[1]
    got, wanted = (forward(m, variables, images)[1] for m in (model, loop))
    assert got.keys() == wanted.keys()
    for key in wanted:
        np.testing.assert_allclose(got[key], wanted[key], rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", ["resnet50", "vit_ti16"])
@pytest.mark.parametrize("scan", [False, True])
def test_rematerialisation_saves_what_its_name_says(name, scan):
    if "resnet" in name and scan:
        pytest.skip("a ResNet's blocks are not alike")

    def saved(remat):
        overrides = {"stage_sizes": (4, 4)} if "resnet" in name else {"depth": 6, "scan": scan}
        model, variables = make(name, remat=remat, **overrides)

        def loss(params):
            state = {k: v for k, v in variables.items() if k != "params"}
            logits = model.apply({"params": params, **state}, random_images(), train=False)[0]
            return jnp.sum(logits**2)

        residuals = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], variables["params"])
        return sum(x.size for x in jax.tree.leaves(residuals))

    assert saved("full") < saved("dots") < saved("none")


@pytest.mark.parametrize("name", TINY)
def test_examples_do_not_leak_into_each_other(name):
    model, variables = make(name)
    images = random_images()

    def logits_of_second(images):
        return model.apply(variables, images, train=False)[0][1].sum()

    gradient = jax.jit(jax.grad(logits_of_second))(images)
    assert float(jnp.abs(gradient[1]).max()) > 0
    assert float(jnp.abs(gradient[jnp.array([0, 2, 3])]).max()) == 0
    together = forward(model, variables, images)[0]
    alone = jnp.concatenate([forward(model, variables, images[i : i + 1])[0] for i in range(4)])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet10_narrow", "resnet50"])
def test_batch_statistics_change_only_in_training(name):
    model, variables = make(name)
    images = random_images()
    _, after = model.apply(variables, images, train=False, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], variables["batch_stats"])
    _, after = train(model, variables, images)
    changed = jax.tree.map(
        lambda a, b: bool((a != b).any()), after["batch_stats"], variables["batch_stats"]
    )
    assert all(jax.tree.leaves(changed))
    # The stem's running mean from NumPy: 0.9 of the old and 0.1 of the batch's.
    kernel = np.asarray(variables["params"]["stem"]["conv"]["kernel"], np.float64)
    stride = 2 if TINY[name].get("stem") == "half" else 1
    mean = conv_oracle(np.asarray(images, np.float64), kernel, stride).mean((0, 1, 2))
    old = variables["batch_stats"]["stem"]["norm"]["mean"]
    np.testing.assert_allclose(
        after["batch_stats"]["stem"]["norm"]["mean"], 0.9 * old + 0.1 * mean, rtol=1e-4, atol=1e-6
    )


def conv_oracle(x, kernel, stride):
    """A padded convolution as nested sums, float64."""
    k = kernel.shape[0]
    pad = (k - 1) // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    side = (x.shape[1] - k) // stride + 1
    y = np.zeros((x.shape[0], side, side, kernel.shape[-1]))
    for i in range(k):
        for j in range(k):
            patch = x[:, i : i + stride * side : stride, j : j + stride * side : stride][
                :, :side, :side
            ]
            y += patch @ kernel[i, j]
    return y


def norm_oracle(x, params, stats):
    return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("stride", [1, 2])
def test_residual_blocks_are_those_of_the_paper(block, stride):
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 6))
    module = block(4, stride, 0.0, False, jnp.float32)
    variables = module.init(jax.random.key(1), jnp.asarray(x, jnp.float32), False)
    rng = np.random.default_rng(2)
    variables = jax.tree.map(lambda a: a + rng.uniform(0.1, 0.5, a.shape), variables)
    p, s = jax.tree.map(np.float64, (variables["params"], variables["batch_stats"]))

    y, last = x, 3 if block is Bottleneck else 2
    strided = 2 if block is Bottleneck else 1
    for i in range(1, last + 1):
        y = conv_oracle(y, p[f"conv{i}"]["kernel"], stride if i == strided else 1)
        y = norm_oracle(y, p[f"norm{i}"], s[f"norm{i}"])
        y = np.maximum(y, 0) if i < last else y
    shortcut = conv_oracle(x, p["downsample"]["conv"]["kernel"], stride)
    shortcut = norm_oracle(shortcut, p["downsample"]["norm"], s["downsample"]["norm"])
    ours = module.apply(variables, jnp.asarray(x, jnp.float32), False)
    np.testing.assert_allclose(ours, np.maximum(y + shortcut, 0), rtol=1e-4, atol=1e-5)


def test_attention_block_is_that_of_the_paper():
    x = np.random.default_rng(0).standard_normal((2, 5, 8)) + 30  # a large mean, for LayerNorm
    module = Block(2, 4.0, 0.5)
    variables = module.init(jax.random.key(1), jnp.asarray(x, jnp.float32), 0.0, train=False)
    rng = np.random.default_rng(2)
    variables = jax.tree.map(lambda a: a + rng.normal(0, 0.3, a.shape), variables)
    p = jax.tree.map(np.float64, variables["params"])

    def norm(x, p):
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        return centred / np.sqrt(variance + 1e-6) * p["scale"] + p["bias"]

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    qkv = dense(norm(x, p["norm1"]), p["attn"]["qkv"]).reshape(2, 5, 3, 2, 4)
    q, k, v = np.moveaxis(qkv, 2, 0)
    weights = scipy.special.softmax(np.einsum("nqhd,nkhd->nhqk", q, k) / 2, axis=-1)
    attended = np.einsum("nhqk,nkhd->nqhd", weights, v).reshape(2, 5, 8)
    y = x + dense(attended, p["attn"]["proj"]) * p["ls1"]["gamma"]
    hidden = dense(norm(y, p["norm2"]), p["mlp"]["fc1"])
    hidden = hidden * (1 + scipy.special.erf(hidden / math.sqrt(2))) / 2
    y = y + dense(hidden, p["mlp"]["fc2"]) * p["ls2"]["gamma"]
    ours = module.apply(variables, jnp.asarray(x, jnp.float32), 0.0, train=False)
    np.testing.assert_allclose(ours, y, rtol=1e-4)


def test_attention_attends_over_all_tokens_and_no_order():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 6, 8)), jnp.float32)
    module = Attention(2)
    variables = module.init(jax.random.key(0), x)
    order = np.array([3, 1, 5, 0, 2, 4])
    np.testing.assert_allclose(
        module.apply(variables, x)[:, order], module.apply(variables, x[:, order]), atol=1e-6
    )
    jacobian = jax.jacobian(lambda x: module.apply(variables, x))(x)[0, :, :, 0]
    assert (np.abs(jacobian).max((1, 3)) > 0).all()


def test_pooling_reads_what_it_says():
    images = random_images()
    for name, pool in (("vit_ti16", "token"), ("vit_tiny", "gap")):
        model, variables = make(name)
        assert model.pool == pool
        _, features = forward(model, variables, images)
        tokens = np.float64(features["block1"])
        pooled = tokens[:, 0] if pool == "token" else tokens.mean(1)
        p = variables["params"]["norm" if pool == "token" else "fc_norm"]
        centred = pooled - pooled.mean(-1, keepdims=True)
        wanted = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        wanted = wanted * p["scale"] + p["bias"]
        np.testing.assert_allclose(features["pre_logits"], wanted, rtol=1e-3, atol=1e-4)
    model, variables = make("resnet10_narrow")
    logits, features = forward(model, variables, images)
    np.testing.assert_allclose(
        features["pre_logits"], np.mean(features["layer2"], (1, 2)), rtol=1e-5
    )
    head = variables["params"]["head"]
    np.testing.assert_allclose(
        logits, features["pre_logits"] @ head["kernel"] + head["bias"], rtol=1e-5
    )


def test_the_product_and_its_gradients_are_numpys():
    random = np.random.default_rng(0)
    x, kernel, g = (random.normal(size=s) for s in [(3, 5, 7, 4), (4, 6), (3, 5, 7, 6)])
    value, vjp = jax.vjp(product, *(a.astype(np.float32) for a in (x, kernel)))
    expected = x @ kernel, g @ kernel.T, x.reshape(-1, 4).T @ g.reshape(-1, 6)
    found = value, *vjp(g.astype(np.float32))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    found = pointwise(x, kernel[None, None]), *jax.vjp(pointwise, x, kernel[None, None])[1](g)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.reshape(theirs.shape), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_gradient_repeats_less_than_by_the_rule_of_jax(monkeypatch):
    """Additions of the gradients of later blocks, which XLA on a CPU makes part of each copy."""
    model = models.create("vit_tiny", 4, depth=8)
    image = jnp.zeros((2, 16, 16, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), image)

    def additions():
        gradient = jax.jit(jax.grad(lambda v, x: model.apply(v, x)[0].sum()))
        text = gradient.lower(variables, image).compile().as_text()
        return len(re.findall(r"= f32\[\S* add\(", text))

    ours = additions()
    monkeypatch.setattr(fast, "dot_general", jax.lax.dot_general)
    assert ours < 0.8 * additions()


def test_positions_distinguish_patches():
    table = sincos2d(3, 5, 16)
    assert table.shape == (15, 16)
    assert len(np.unique(table.round(5), axis=0)) == 15
    grid = table.reshape(3, 5, 16)
    # Columns share their x part, rows their y part; the first frequency is 1 in both.
    np.testing.assert_array_equal(grid[0, :, :8], grid[2, :, :8])
    np.testing.assert_array_equal(grid[:, 0, 8:], grid[:, 4, 8:])
    np.testing.assert_allclose(grid[0, :, 0], np.sin(np.arange(5)), rtol=1e-6)
    np.testing.assert_allclose(grid[:, 0, 12], np.cos(np.arange(3)), rtol=1e-6)
    images = random_images(2)
    rolled = jnp.roll(images, 8, axis=2)  # exchanges the patches of a row
    for position in ("learned", "sincos2d"):
        model, variables = make("vit_tiny", position=position)
        assert ("pos_embed" in variables["params"]) == (position == "learned")
        logits = forward(model, variables, images)[0]
        assert float(jnp.abs(logits - forward(model, variables, rolled)[0]).max()) > 1e-4
    model, variables = make("vit_ti16", position="sincos2d")
    assert forward(model, variables, images)[1]["embed"].shape == (2, 5, 16)


def test_drop_path_keeps_the_expectation_and_drops_whole_examples():
    x = jnp.ones((4000, 2, 3))
    layer = DropPath()
    y = np.asarray(layer.apply({}, x, 0.3, train=True, rngs={"dropout": jax.random.key(0)}))
    assert (y == y[:, :1, :1]).all()
    assert set(np.unique(y.round(5))) == {0.0, np.float32(1 / 0.7).round(5)}
    assert abs(y.mean() - 1) < 5 * math.sqrt(0.3 / 0.7 / 4000)
    np.testing.assert_array_equal(layer.apply({}, x, 0.3, train=False), x)
    np.testing.assert_array_equal(layer.apply({}, x, 0.0, train=True), x)
    assert drop_rates(0.2, 5) == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert drop_rates(0.2, 1) == [0.0]


def test_every_block_of_a_vit_drops_alike_by_the_uniform_rule():
    """The first block passes an example on unchanged where both of its branches are dropped."""
    images = jnp.tile(random_images(1), (400, 1, 1, 1))
    unchanged = {}
    for rule in ("linear", "uniform"):
        model, variables = make("vit_tiny", drop_path=0.5, drop_rule=rule)
        rngs = {"dropout": jax.random.key(0)}
        features = model.apply(variables, images, train=True, rngs=rngs)[1]
        same = (features["block0"] == features["embed"]).all(axis=(1, 2))
        unchanged[rule] = int(same.sum())
    assert unchanged["linear"] == 0
    assert abs(unchanged["uniform"] - 100) < 4 * math.sqrt(400 * 0.25 * 0.75)
    with pytest.raises(ValueError, match="drop_rule is 'constant'; expected one of linear, unif"):
        models.create("vit_tiny", 5, drop_rule="constant")


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_drop_path_acts_in_training_only(name):
    model, variables = make(name, drop_path=0.5)
    plain, _ = make(name)
    images = random_images()
    np.testing.assert_array_equal(
        forward(model, variables, images)[0], forward(plain, variables, images)[0]
    )

    def logits(model, seed):
        return train(model, variables, images, seed)[0][0]

    assert (logits(model, 0) != logits(model, 1)).any()
    np.testing.assert_array_equal(logits(model, 0), logits(model, 0))
    np.testing.assert_array_equal(logits(plain, 0), logits(plain, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_bfloat16_compute_keeps_float32_parameters(name):
    model, variables = make(name)
    half, fresh = models.create(name, 5, dtype=jnp.bfloat16, **TINY[name]), random_images()
    initial = jax.eval_shape(half.init, jax.random.key(0), fresh)
    assert {x.dtype for x in jax.tree.leaves(initial)} == {jnp.dtype("float32")}
    (wanted, exact), (logits, features) = (forward(m, variables, fresh) for m in (model, half))
    inner = "layer2" if "resnet" in name else "block1"
    assert features[inner].dtype == jnp.bfloat16
    assert exact[inner].dtype == jnp.float32
    assert logits.dtype == features["pre_logits"].dtype == jnp.float32
    assert (logits != wanted).any()
    np.testing.assert_allclose(logits, wanted, atol=0.04 * float(jnp.abs(wanted).max()))
    _, after = train(half, variables, fresh)
    assert {x.dtype for x in jax.tree.leaves(after)} <= {jnp.dtype("float32")}


def test_layer_scale_and_zero_init_start_blocks_as_identities():
    x = jnp.abs(jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 4, 8)), jnp.float32))
    tokens = x.reshape(2, 16, 8)

    def first_output(module, x, *rate):
        init = functools.partial(module.init_with_output, train=False)
        return jax.jit(init)(jax.random.key(0), x, *rate)[0]

    with_scale = first_output(Block(2, 4.0, 1e-6), tokens, 0.0)
    assert 0 < float(jnp.abs(with_scale - tokens).max()) < 1e-5
    plain = Block(2, 4.0, 0.0)
    shapes = jax.eval_shape(
        functools.partial(plain.init, train=False), jax.random.key(0), tokens, 0.0
    )
    assert shapes["params"].keys() == {"norm1", "attn", "norm2", "mlp"}

    np.testing.assert_array_equal(first_output(BasicBlock(8, 1, 0.0, True, jnp.float32), x), x)
    np.testing.assert_array_equal(first_output(Bottleneck(2, 1, 0.0, True, jnp.float32), x), x)
    ones = first_output(BasicBlock(8, 1, 0.0, False, jnp.float32), x)
    assert float(jnp.abs(ones - x).max()) > 0.1


def test_initial_scale_is_that_of_he():
    module = BasicBlock(64, 1, 0.0, True, jnp.float32)
    init = jax.jit(functools.partial(module.init, train=False))
    variables = init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))
    kernel = variables["params"]["conv1"]["kernel"]
    assert float(kernel.std()) == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda: models.create("resnet5", 10),
            r"unknown model 'resnet5'; did you mean 'resnet50'\?",
        ),
        (
            lambda: models.create("zzz", 10),
            r"unknown model 'zzz'; known: .*resnet101, resnet10_half, ",
        ),
        (
            lambda: models.create("vit_tiny", 10, patch_size=4),
            r"unknown argument of vit_tiny 'patch_size'; did you mean 'patch'\? known: ",
        ),
        (lambda: models.create("resnet18", 10, dim=4), "unknown argument of resnet18 'dim'; "),
        (
            lambda: models.create("resnet18", 10, parent=None),
            "unknown argument of resnet18 'parent'",
        ),
        (lambda: models.create("resnet18", -1), "num_classes is -1; expected a whole number"),
        (lambda: models.create("resnet18", 1.5), "num_classes is 1.5; expected"),
        (lambda: models.create("resnet18", 10, stem="cifer"), "stem is 'cifer'; expected one of"),
        (lambda: models.create("resnet18", 10, block="x"), "block is 'x'; expected one of basic"),
        (lambda: models.create("resnet18", 10, drop_path=1.0), "drop_path is 1.0; expected a rate"),
        (
            lambda: models.create("resnet18", 10, remat="dot"),
            r"unknown remat 'dot'; did you mean 'dots'\?",
        ),
        (lambda: models.create("vit_tiny", 10, remat="all"), "unknown remat 'all'; .*known: none"),
        (lambda: models.create("vit_tiny", 10, pool="max"), "pool is 'max'; expected one of token"),
        (lambda: models.create("vit_tiny", 10, position="x"), "position is 'x'; expected one of"),
        (
            lambda: models.create("vit_tiny", 10, num_heads=3),
            "dim 128 is not a multiple of num_heads",
        ),
        (
            lambda: models.create("vit_tiny", 10).init(
                jax.random.key(0), jnp.zeros((1, 30, 32, 3))
            ),
            "images are 30×32; expected multiples of the patch size 4",
        ),
        (
            lambda: models.create("resnet20", 10).init(
                jax.random.key(0), jnp.zeros((1, 32, 32, 3), jnp.uint8)
            ),
            "images are uint8 of shape",
        ),
        (
            lambda: models.create("resnet20", 10).init(jax.random.key(0), jnp.zeros((32, 32, 3))),
            "expected normalised floats",
        ),
    ],
)
def test_mistakes_are_one_line(call, line):
    with pytest.raises(ValueError, match=line) as error:
        call()
    assert not re.search("\n", str(error.value))


def test_other_image_sizes_are_refused_by_learned_positions_only():
    model, variables = make("vit_tiny")
    with pytest.raises(ValueError, match="images make 16 tokens, the position embedding has 4"):
        forward(model, variables, random_images(size=32))
    model, variables = make("vit_tiny", position="sincos2d")
    assert forward(model, variables, random_images(size=32))[0].shape == (4, 5)
    model, variables = make("resnet10_narrow")
    assert forward(model, variables, random_images(size=32))[0].shape == (4, 5)
