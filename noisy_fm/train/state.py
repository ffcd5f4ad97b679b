"""What a training step changes, and the step itself: pure, jitted, laid out by rules."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics

from noisy_fm import optim, sharding, tasks


class TrainState(flax.struct.PyTreeNode):
    """All that a training step changes, and so all that a checkpoint must hold.

    `params`, `frozen` and `ema["params"]` are flat {path: array}; `ema` is None unless a running
    average of parameters and BatchNorm statistics is kept. `metrics` accumulates since the last
    log line; `skipped` counts the steps whose loss or update was not finite.
    """

    step: jax.Array
    key: jax.Array
    params: dict[str, jax.Array]
    frozen: dict[str, jax.Array]
    model_state: Any
    opt_state: Any
    metrics: clu_metrics.Collection
    skipped: jax.Array
    ema: dict[str, Any] | None = None

    @property
    def variables(self) -> tuple[Any, Any]:
        """(nested params, model_state) to use the model with: averaged, if an average is kept."""
        if self.ema is None:
            return optim.join(self.params, self.frozen), self.model_state
        return optim.join(self.ema["params"], self.frozen), self.ema["model_state"]


class StatePlan(NamedTuple):
    """The shapes and shardings of a fresh state, the function that makes it, and its optimiser."""

    shapes: TrainState
    init: Callable[[], TrainState]
    tx: optax.GradientTransformation


def plan_state(
    task: tasks.Task,
    make_tx: Callable,
    example: Mapping,
    *,
    mesh,
    trainable,
    rules,
    seeds,
    ema=False,
) -> StatePlan:
    """How a fresh state looks on `mesh` by `rules`; nothing is computed, no device is touched.

    `make_tx(multipliers)` gives the optimiser for the trainable `{path: multiplier}`; `example` is
    a batch of one, or its shapes; `mesh` may be of devices that are not there.
    """
    seed_init, seed_steps = seeds.init, seeds.dropout
    canonical = jax.dtypes.canonicalize_dtype
    sizes = {name: (value.shape, canonical(value.dtype)) for name, value in example.items()}

    def init_model():
        zeros = {name: jnp.zeros(*size) for name, size in sizes.items()}
        return task.init_fn(jax.random.key(seed_init), zeros)

    tx = make_tx(optim.split(jax.eval_shape(init_model)[0], trainable)[2])

    def init():
        params, model_state = init_model()
        learned, frozen, _ = optim.split(params, trainable)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=jax.random.key(seed_steps),
            params=learned,
            frozen=frozen,
            model_state=model_state,
            opt_state=tx.init(learned),
            metrics=task.metrics.empty(),
            skipped=jnp.zeros((), jnp.int32),
            # Copies: a donated state must not hold one array twice.
            ema=jax.tree.map(jnp.copy, {"params": learned, "model_state": model_state})
            if ema
            else None,
        )

    fresh = jax.eval_shape(init)
    layout = sharding.infer(fresh, mesh, rules)
    planned = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        fresh,
        layout,
    )
    return StatePlan(planned, init, tx)


def init_state(plan: StatePlan) -> TrainState:
    """The fresh state, made where it will live; its values do not depend on the layout."""
    layout = shardings(plan.shapes)
    on_cpu = layout.step.mesh.devices.flat[0].platform == "cpu"
    # It runs once: on CPUs LLVM would optimise it for longer than it could ever save.
    options = {"xla_backend_optimization_level": 1} if on_cpu else None
    return jax.jit(plan.init, out_shardings=layout, compiler_options=options)()


def make_step(
    task: tasks.Task,
    tx: optax.GradientTransformation,
    state: TrainState,
    *,
    microbatches: int = 1,
    ema: float = 0.0,
) -> Callable:
    """The jitted (state, batch) → (state, loss), laid out like `state`, whose memory it reuses.

    A loss or an update that is not finite changes nothing but the step and the count of skipped
    ones; the loss is then NaN. `microbatches` splits the batch and adds up the gradients; `ema` is
    the decay of the running average.
    """

    layout = {**state.params, **state.frozen}

    def whole(params):
        return optim.join(sharding.gather({**params, **state.frozen}, layout), {})

    def loss_fn(params, model_state, batch, key):
        return task.loss_fn(whole(params), model_state, batch, key)

    accumulate = optim.accumulate
    if task.parts:
        embed_fn, combine_fn = task.parts
        accumulate = functools.partial(
            optim.accumulate_embeddings,
            embed_fn=lambda params, *rest: embed_fn(whole(params), *rest),
            combine_fn=lambda params, *rest: combine_fn(whole(params), *rest),
        )

    def step(state: TrainState, batch: dict) -> tuple[TrainState, jax.Array]:
        key_batch, key_model = jax.random.split(jax.random.fold_in(state.key, state.step))
        (loss, (model_state, outputs)), grads = accumulate(
            loss_fn,
            state.params,
            state.model_state,
            task.prepare_fn(batch, key_batch),  # before the split: it does not depend on it
            key_model,
            microbatches=microbatches,
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        healthy = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(updates))
        new = state.replace(
            params=limited(optax.apply_updates(state.params, updates), task.limits),
            model_state=model_state,
            opt_state=opt_state,
            metrics=state.metrics.merge(task.metrics.single_from_model_output(**outputs)),
        )
        if state.ema is not None:
            now = {"params": new.params, "model_state": new.model_state}
            updates_made = state.step + 1 - state.skipped
            new = new.replace(ema=optim.ema_update(state.ema, now, ema, updates_made))
        # The key does not change, and selects cannot take one.
        old, new = state.replace(key=None), new.replace(key=None)
        new = jax.tree.map(lambda a, b: jnp.where(healthy, a, b), new, old)
        new = new.replace(
            key=state.key, step=state.step + 1, skipped=state.skipped + jnp.where(healthy, 0, 1)
        )
        return new, jnp.where(healthy, loss, jnp.nan)

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings(state), None))


def limited(params: dict, limits: Sequence[tuple[str, float, float]]) -> dict:
    """The parameters, those with a path in `limits` between their lowest and highest value."""
    clipped = {path: jnp.clip(params[path], *ends) for path, *ends in limits if path in params}
    return {**params, **clipped}


def shardings(tree):
    """Where each leaf of a tree of arrays (or of their descriptions) lives."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def abstract(tree):
    """Shapes, dtypes and shardings of a tree of arrays, as a restore target."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )
