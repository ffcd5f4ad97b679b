"""A small labelled image set and model for the tests of training; not the thing under test."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from noisy_fm import evaluators, optim, sharding
from noisy_fm.data import ArraySource, loader
from noisy_fm.data import augment as augmentations
from noisy_fm.tasks.classify import classify
from noisy_fm.train import loop
from noisy_fm.train.state import init_state, make_step, plan_state

RULES = ((".*", "fsdp"),)
EVERYTHING = ((".*", 1.0),)


def source_of(n: int = 64, seed: int = 0) -> ArraySource:
    """`n` 8×8 images whose class is the quadrant that is bright."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n).astype(np.int32)
    ids = (1000 + np.arange(n)).astype(np.int64)
    images = rng.integers(0, 100, (n, 8, 8, 3)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        y, x = divmod(int(label), 2)
        image[4 * y : 4 * y + 4, 4 * x : 4 * x + 4] += 100
    return ArraySource(images, ids, ids, {"label": labels}, ("a", "b", "c", "d"))


class ToyNet(nn.Module):
    """Convolution, BatchNorm, and a layer wide enough to be sharded."""

    width: int = 256

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(16, (3, 3), strides=2, name="stem")(x)
        x = nn.relu(nn.BatchNorm(name="norm")(x, use_running_average=not train))
        x = nn.Dense(self.width, name="wide")(x.reshape(len(x), -1))
        x = nn.BatchNorm(name="norm2")(x, use_running_average=not train)
        return nn.Dense(4, name="head")(nn.relu(x)), {"pre_logits": x}


class Seeds:
    init = 0
    dropout = 1


def start(mesh, *, trainable=EVERYTHING, learning_rate=1e-2, augment="none", ema=False, model=None):
    """(task, tx, state) of a toy run on `mesh`."""
    task = classify(
        model or ToyNet(),
        4,
        augment=augmentations.AUGMENTATIONS[augment](),
        frozen=lambda m: optim.frozen(f"{m}/scale", trainable),
    )
    plan = plan_state(
        task,
        lambda multipliers: optax.adamw(learning_rate),
        source_of().read(np.zeros(1, int)),
        mesh=mesh,
        trainable=trainable,
        rules=RULES,
        seeds=Seeds,
        ema=ema,
    )
    return task, plan.tx, init_state(plan)


def fit(mesh, steps, *, source=None, state=None, batches=None, ema=0.0, microbatches=1, **options):
    """Trains the toy for `steps` and returns (state, losses a step)."""
    kinds = ("trainable", "learning_rate", "augment", "model")
    made = {k: options.pop(k) for k in kinds if k in options}
    task, tx, fresh = start(mesh, ema=ema > 0, **made)
    task = poisoned(task, options.pop("poison", ()))
    state = fresh if state is None else state
    losses = []
    source = source or source_of()
    if batches is None:
        batches = loader.train_batches(
            source, batch_size=16, seed=0, start=int(state.step), stop=steps
        )
    state = loop.fit(
        make_step(task, tx, state, ema=ema, microbatches=microbatches),
        state,
        batches,
        steps=steps,
        mesh=mesh,
        log_every=1,
        on_log=lambda step, values: losses.append(values["loss"]),
        **options,
    )
    return state, losses


def poisoned(task, steps):
    """`task` whose loss is NaN on the batches that begin with the examples of these steps."""
    batches = loader.train_batches(source_of(), batch_size=16, seed=0, stop=max(steps, default=0))
    first = jnp.array([b["id"][0] for i, b in enumerate(batches, 1) if i in steps], jnp.int32)

    def loss_fn(params, model_state, batch, key):
        loss, aux = task.loss_fn(params, model_state, batch, key)
        return jnp.where(jnp.isin(batch["id"][0], first), jnp.nan, loss), aux

    return task._replace(loss_fn=loss_fn) if steps else task


def given(task, variables, clean, source=None, eval_source=None, **layout):
    """What an evaluator is given, on one device."""
    layout = {"batch_size": 10, "mesh": one_device(), **layout}
    rest = source or clean.replace(), eval_source or clean
    return evaluators.Given(task, variables, clean, *rest, clean, clean.info, layout)


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])


def host(tree):
    """Every leaf as a NumPy array (typed keys as their data)."""

    def get(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf)

    return jax.tree.map(get, tree)
