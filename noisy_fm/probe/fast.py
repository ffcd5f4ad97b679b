"""What makes grids of heads fast on a CPU: same results to rounding.

`tools/bench.py fast` times each piece beside the plain form that it stands for.
"""

import jax
import jax.numpy as jnp

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
# On a CPU more lanes only make a longer program: three linear heads keep it busy, one MLP does,
# whose AdamW state of 26 MB at D = 512 then also stays in the cache from step to step.
CPU_LANES = {"linear": 3, "plain": 1, "residual": 1}


@jax.custom_vjp
def cross_entropy(scores, labels, mask):
    """Σ mask·(−log softmax(scores)[label]) / Σ mask of scores [m c], labels [m], mask [m].

    Its gradient is written out, mask·(softmax − one-hot)/Σ mask. `bench.py fast`: no faster than
    optax's. It stays until results may move in their last bit, as those of an MLP would.
    """
    return _cross_entropy(scores, labels, mask)[0]


def _cross_entropy(scores, labels, mask):
    scores = scores - scores.max(axis=1, keepdims=True)
    powers = jnp.exp(scores)
    totals = powers.sum(axis=1, keepdims=True)
    chosen = labels[:, None] == jnp.arange(scores.shape[1])
    weights = mask / mask.sum()
    losses = jnp.log(totals[:, 0]) - jnp.where(chosen, scores, 0).sum(axis=1)
    return (weights * losses).sum(), (powers, totals, chosen, weights)


def _cross_entropy_gradient(kept, cotangent):
    powers, totals, chosen, weights = kept
    weights = cotangent * weights[:, None]
    return powers * (weights / totals) - jnp.where(chosen, weights, 0), None, None


cross_entropy.defvjp(_cross_entropy, _cross_entropy_gradient)


def adamw(state: dict, gradient, learning_rate, weight_decay, step) -> dict:
    """{"params", "mean", "square"} after one step of AdamW, as `optax.adamw` (decoupled decay).

    The bias corrections multiply scalars, not arrays (`bench.py fast`: optax's takes 1 to 5 % more
    of a step). Rate, decay (on matrices, on vectors) and `step`, from 1, may be traced: lanes
    differ in them.
    """
    size = learning_rate / (1 - BETA1**step)
    correction = 1 / (1 - BETA2**step)
    tree = jax.tree.map
    mean = tree(lambda m, g: BETA1 * m + (1 - BETA1) * g, state["mean"], gradient)
    square = tree(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, state["square"], gradient)
    params = tree(
        lambda p, m, v: (
            p * (1 - learning_rate * weight_decay[0 if p.ndim > 1 else 1])
            - size * m / (jnp.sqrt(v * correction) + EPSILON)
        ),
        state["params"],
        mean,
        square,
    )
    return {"params": params, "mean": mean, "square": square}


def transposed(params: dict) -> dict:
    """The parameters with the narrowing matrices (D → C, 4D → D) transposed, [out, in].

    The gradient of a kernel that is held so is a product whose long side lies along the memory
    (`bench.py fast`: a linear head's step takes 8 to 20 % more without).
    """

    def turn(path, a):
        return a.T if path[-1].key in ("kernel", "kernel_out") else a

    return jax.tree_util.tree_map_with_path(turn, params)


def in_turn(step):
    """`step` of one lane for the states of all, written out one by one; as `jax.vmap` otherwise.

    A CPU runs small matrix products apart faster than one batched product, and works on several
    lanes at a time (`bench.py fast`: mapped, a linear head's step takes 1.1 times as long, NMTune's
    three times).
    """

    def move(states, *arrays):
        each = [step(state, *(a[lane] for a in arrays)) for lane, state in enumerate(states)]
        return [state for state, _ in each], jnp.stack([value for _, value in each])

    return move


def apart(state: dict) -> list[dict]:
    """The state of each lane, held `transposed`, of one whose leaves have lanes first."""
    lanes = len(state["params"]["bias"])
    return [_flip(jax.tree.map(lambda a, lane=lane: a[lane], state)) for lane in range(lanes)]


def together(states: list[dict]) -> dict:
    """What `apart` took apart."""
    return jax.tree.map(lambda *a: jnp.stack(a), *map(_flip, states))


def _flip(state: dict) -> dict:
    return {k: v if k == "statistics" else transposed(v) for k, v in state.items()}
