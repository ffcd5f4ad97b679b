"""Lanes: heads one after another in each, all lanes a step at a time in one compiled loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from noisy_fm.probe import fast
from noisy_fm.probe.step import cosine, train_step

CHUNK = 512  # steps handed to the device at a time


class Lanes:
    """Where every lane stands: its queue of heads, and the step within the current one."""

    def __init__(self, plans, queues, batch: int):
        self.plans, self.queues, self.batch = plans, [list(q) for q in queues], batch
        self.step = [0] * len(queues)
        self.most = CHUNK
        self.losses: dict[int, list[tuple]] = {}
        self.rates = [cosine(p.head.learning_rate, p.steps) for p in plans]

    def active(self) -> list[int]:
        return [lane for lane, queue in enumerate(self.queues) if queue]

    def seed(self, lane: int) -> np.uint32:
        # Unsigned: JAX takes a plain int for a signed one, and half of the seeds do not fit.
        return np.uint32(self.plans[self.queues[lane][0]].head.seed if self.queues[lane] else 0)

    def chunk(self) -> int:
        """Steps until the next head is done, at most `most`."""
        left = [self.plans[self.queues[i][0]].steps - self.step[i] for i in self.active()]
        return min(self.most, *left)

    def arrays(self, steps: int) -> dict[str, np.ndarray]:
        """What each lane needs for the next steps, lane first; idle lanes step on nothing."""
        lanes = len(self.queues)
        a = {
            "rows": np.zeros((lanes, self.most, self.batch), np.int32),
            "labels": np.zeros((lanes, self.most, self.batch), np.int32),
            "masks": np.zeros((lanes, self.most, self.batch), np.float32),
            "shares": np.ones((lanes, self.most), np.float32),
            "momenta": np.zeros((lanes, self.most), np.float32),
            "rates": np.zeros((lanes, self.most), np.float32),
            "steps": np.ones((lanes, self.most), np.float32),
            "weights": np.zeros((lanes, 3), np.float32),
            "decay": np.zeros((lanes, 2), np.float32),
        }
        a["masks"][:, :, 0] = 1  # a batch of no rows would be 0/0
        for lane in self.active():
            job, first = self.queues[lane][0], self.step[lane]
            p, head, here = self.plans[job], self.plans[job].head, (lane, slice(0, steps))
            a["rows"][here], a["labels"][here], _ = p.batches(first, first + steps)
            for name, values in p.weighing(first, first + steps).items():
                a[name][here] = values
            a["rates"][here] = self.rates[job][first : first + steps]
            a["steps"][here] = np.arange(first + 1, first + steps + 1)
            a["weights"][lane] = head.weights
            a["decay"][lane] = head.weight_decay
            a["decay"][lane, 1] *= head.preset == "release"
        return a

    def move(self, steps: int, losses: jax.Array) -> list[tuple[int, int]]:
        """Moves on; returns (lane, head) of those that are done."""
        finished = []
        for lane in self.active():
            job = self.queues[lane][0]
            self.losses.setdefault(job, []).append((losses, lane, steps))
            self.step[lane] += steps
            if self.step[lane] == self.plans[job].steps:
                finished.append((lane, job))
        for lane, _ in finished:
            self.queues[lane].pop(0)
            self.step[lane] = 0
        return finished

    def losses_by_epoch(self, job: int) -> np.ndarray:
        """Mean cross-entropy over the examples of each epoch of a head that is done."""
        parts = [np.asarray(a)[lane, :steps] for a, lane, steps in self.losses.pop(job)]
        return self.plans[job].epoch_losses(np.concatenate(parts))


@functools.partial(jax.jit, static_argnames=("preset", "unrolled"), donate_argnums=0)
def advance(state, f, arrays, steps, *, preset, unrolled):
    """`steps` training steps of all lanes; f [n v d]; returns (state, losses [lanes, steps]).

    `unrolled` is for CPUs: see `fast.in_turn` and `fast.transposed`.
    """
    read = fast.transposed if unrolled else lambda params: params

    def one(state, rows, *rest):  # a gather for each lane: one of all would be cut up by copies
        return train_step(state, f[rows].astype(jnp.float32), *rest, preset=preset, read=read)

    move = fast.in_turn(one) if unrolled else jax.vmap(one)

    def step(i, carry):
        state, losses = carry
        now = [arrays[name][:, i] for name in ("rows", "labels", "masks", "shares", "momenta")]
        now += [arrays[name] for name in ("weights", "decay")]
        now += [arrays[name][:, i] for name in ("rates", "steps")]
        state, loss = move(state, *now)
        return state, losses.at[:, i].set(loss)

    losses = jnp.zeros(arrays["rates"].shape)
    state = fast.apart(state) if unrolled else state
    state, losses = jax.lax.fori_loop(0, steps, step, (state, losses))
    return fast.together(state) if unrolled else state, losses


@functools.partial(jax.jit, donate_argnums=0)
def replace(state, new, lane):
    return jax.tree.map(lambda a, b: a.at[lane].set(b), state, new)
