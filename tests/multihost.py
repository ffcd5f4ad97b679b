"""One of several processes that train the toy together; `python multihost.py PLAN.json` runs it.

The plan is a list of runs (`train_toy`'s arguments); process 0 prints a list of their results.
"""

import json
import os
import sys

import flax.linen as nn
import jax
import numpy as np
import toy

from noisy_fm import checkpoint, hosts, sharding
from noisy_fm.data import loader
from noisy_fm.models import layers
from noisy_fm.train import state

BATCH = 16
TENSOR_RULES = (("wide/", "column"), ("head/kernel", "row"), (".*", "fsdp"))


class DropNet(nn.Module):
    """All that draws or averages: convolution, BatchNorm, drop path, dropout, a wide layer."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(16, (3, 3), strides=2, use_bias=False, name="stem")(x)
        x = nn.relu(nn.BatchNorm(name="norm")(x, use_running_average=not train))
        y = nn.Conv(16, (3, 3), name="branch")(x)
        x = x + layers.DropPath(name="drop_path")(y, 0.3, train=train)
        x = nn.relu(nn.Dense(256, name="wide")(x.reshape(len(x), -1)))
        x = nn.Dropout(0.2, name="dropout")(x, deterministic=not train)
        return nn.Dense(4, name="head")(x), {"pre_logits": x}


def train_toy(axes, steps, *, order=None, restore=None, save=None) -> dict:
    """Trains on a mesh of `axes` over the devices in `order`; {losses, mean, params}.

    `restore` and `save` are checkpoint folders; `mean` is the running mean of the BatchNorm,
    `params` the mean square of every parameter.
    """
    devices = jax.devices()
    devices = devices[: int(np.prod(list(axes.values())))] if order is None else order_of(order)
    mesh = sharding.make_mesh(**{"data": 1, **axes}, devices=devices)
    toy.RULES = TENSOR_RULES if axes.get("tensor", 1) > 1 else ((".*", "fsdp"),)
    model = {"model": DropNet(), "augment": "flip_crop", "learning_rate": 2e-3}
    started = None
    if restore:
        saver = checkpoint.Checkpointer(restore)
        _, _, fresh = toy.start(mesh, **model)
        started, _ = saver.restore(state.abstract(fresh))
        saver.close()
    start = int(started.step) if started else 0
    rows = sharding.host_rows(mesh, BATCH)
    whole = loader.train_batches(toy.source_of(), batch_size=BATCH, seed=0, start=start, stop=steps)
    batches = ({name: value[rows] for name, value in batch.items()} for batch in whole)
    trained, losses = toy.fit(mesh, steps, state=started, batches=batches, **model)
    if save:
        saver = checkpoint.Checkpointer(save)
        saver.save(steps, trained, {"axes": axes})
        saver.close()
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    summary = jax.jit(
        lambda s: {
            "mean": s.model_state["batch_stats"]["norm"]["mean"],
            "params": {path: (value**2).mean() for path, value in s.params.items()},
        },
        out_shardings=everywhere,
    )(trained)
    return {"losses": losses, **jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), summary)}


def train_pairs(axes) -> dict:
    """Losses of image–text training on a mesh of `axes`."""
    import test_contrast

    return {"losses": test_contrast.trained(sharding.make_mesh(**axes))}


KINDS = {"toy": train_toy, "pairs": train_pairs}


def order_of(order):
    devices = jax.devices()
    return [devices[i] for i in order]


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_default_matmul_precision", "highest")
    hosts.connect(seconds=60)
    assert jax.process_count() == int(os.environ["JAX_NUM_PROCESSES"])
    said = [["é", "x" * host] for host in range(jax.process_count())]  # of different lengths
    assert hosts.gather(said[jax.process_index()]) == said
    assert hosts.all_agree(True)
    assert not hosts.all_agree(hosts.first())
    with open(sys.argv[1]) as file:
        results = [KINDS[run.pop("kind", "toy")](**run) for run in json.load(file)]
    if hosts.first():
        print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
