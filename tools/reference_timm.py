"""Writes tests/references/timm.npz: what timm and PyTorch compute, for the tests to compare with.

    python -m venv /tmp/reference
    /tmp/reference/bin/pip install numpy timm==1.0.31 torch
    /tmp/reference/bin/python tools/reference_timm.py

Everything is computed in float64 from inputs that are written beside the results.
"""

from pathlib import Path

import numpy as np
import timm
import torch
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import Lamb, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3

OUT = Path(__file__).parents[1] / "tests/references/timm.npz"
SHAPES = {"a/kernel": (4, 3), "b/kernel": (3, 3), "zero/kernel": (3, 2), "a/bias": (3,)}
STEPS, RATE = 12, 0.02

# name → (optimiser, its arguments, weight decay of the kernels, largest norm of the gradient)
OPTIMIZERS = {
    "lamb": (Lamb, {"max_grad_norm": None}, 0.02, 0.0),
    "lamb_clipped": (Lamb, {"max_grad_norm": 1.0}, 0.02, 1.0),
    "lamb_no_decay": (Lamb, {"max_grad_norm": None}, 0.0, 0.0),
    "lamb_always_adapt": (Lamb, {"max_grad_norm": None, "always_adapt": True}, 0.02, 0.0),
    "lamb_trust_clip": (Lamb, {"max_grad_norm": None, "trust_clip": True}, 0.02, 0.0),
    "adamw": (torch.optim.AdamW, {}, 0.05, 0.0),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, 0.01, 0.0),
}

# name → arguments; 10 epochs of 7 steps, of which 2 are warm-up
SCHEDULES = {
    "step_prefix": {"t_initial": 56, "warmup_prefix": True, "t_in_epochs": False, "warmup_t": 14},
    "step": {"t_initial": 70, "t_in_epochs": False, "warmup_t": 14},
    "epoch_prefix": {"t_initial": 8, "warmup_prefix": True, "warmup_t": 2},
    "epoch": {"t_initial": 10, "warmup_t": 2},
}


def optimizers(rng) -> dict[str, np.ndarray]:
    """Parameters after each of STEPS random gradients."""
    scale = {"a/kernel": 1.0, "b/kernel": 0.05, "zero/kernel": 0.0, "a/bias": 1.0}
    start = {path: scale[path] * rng.normal(size=shape) for path, shape in SHAPES.items()}
    gradients = {path: rng.normal(size=(STEPS, *shape)) for path, shape in SHAPES.items()}
    for gradient in gradients.values():
        gradient[::2] *= 0.1  # norms on both sides of 1
    gradients["b/kernel"][:2] = 0  # a zero step, where the trust ratio is not defined
    out = {f"optimizer/start/{path}": value for path, value in start.items()}
    out |= {f"optimizer/gradient/{path}": value for path, value in gradients.items()}
    for name, (kind, arguments, decay, _) in OPTIMIZERS.items():
        parameters = {path: torch.nn.Parameter(torch.tensor(start[path])) for path in SHAPES}
        groups = [
            {"params": [p for path, p in parameters.items() if "kernel" in path]},
            {"params": [parameters["a/bias"]], "weight_decay": 0.0},
        ]
        optimizer = kind(groups, lr=RATE, weight_decay=decay, **arguments)
        track = {path: [] for path in SHAPES}
        for step in range(STEPS):
            for path, parameter in parameters.items():
                parameter.grad = torch.tensor(gradients[path][step])
            optimizer.step()
            for path, parameter in parameters.items():
                track[path].append(parameter.detach().numpy().copy())
        out |= {f"optimizer/{name}/{path}": np.stack(values) for path, values in track.items()}
    return out


def schedules() -> dict[str, np.ndarray]:
    """The learning rate of each of 70 steps, as timm's train.py calls the schedulers."""
    out = {}
    for name, arguments in SCHEDULES.items():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        scheduler = CosineLRScheduler(optimizer, warmup_lr_init=0.01, lr_min=0.001, **arguments)
        rates = []
        for step in range(70):
            rates.append(optimizer.param_groups[0]["lr"])
            scheduler.step_update(step + 1)
            if (step + 1) % 7 == 0:
                scheduler.step((step + 1) // 7)
        out[f"schedule/{name}"] = np.array(rates)
    return out


def losses(rng) -> dict[str, np.ndarray]:
    """Mean losses of integer and soft targets."""
    logits, soft = 3 * rng.normal(size=(6, 5)), rng.dirichlet(np.ones(5), 6)
    labels = rng.integers(0, 5, 6)
    x, y, z = torch.tensor(logits), torch.tensor(soft), torch.tensor(labels)
    values = {
        "bce": BinaryCrossEntropy(smoothing=0.0)(x, z),
        "bce_smooth": BinaryCrossEntropy(smoothing=0.1)(x, z),
        "bce_soft": BinaryCrossEntropy(smoothing=0.1)(x, y),
        "bce_soft_threshold": BinaryCrossEntropy(smoothing=0.1, target_threshold=0.2)(x, y),
        "bce_threshold": BinaryCrossEntropy(smoothing=0.1, target_threshold=0.2)(x, z),
        "bce_sum": BinaryCrossEntropy(smoothing=0.1, sum_classes=True)(x, z),
        "bce_soft_sum": BinaryCrossEntropy(smoothing=0.1, sum_classes=True)(x, y),
        "softmax": torch.nn.CrossEntropyLoss()(x, z),
        "softmax_smooth": LabelSmoothingCrossEntropy(smoothing=0.1)(x, z),
        "softmax_soft": SoftTargetCrossEntropy()(x, y),
    }
    inputs = {"logits": logits, "soft": soft, "labels": labels}
    return {f"loss/{key}": np.asarray(value) for key, value in {**inputs, **values}.items()}


def averages(rng) -> dict[str, np.ndarray]:
    """The running average of a BatchNorm's parameters and statistics over 12 updates."""
    names = ("weight", "bias", "running_mean", "running_var")
    values = {name: rng.uniform(0.5, 1.5, (STEPS, 3)) for name in names}
    out = {f"ema/value/{name}": value for name, value in values.items()}
    for kind, warmup in (("plain", False), ("warmup", True)):
        module = torch.nn.BatchNorm1d(3, dtype=torch.float64)
        average = ModelEmaV3(module, decay=0.9, use_warmup=warmup)
        track = {name: [] for name in names}
        for step in range(STEPS):
            for name in names:
                module.state_dict()[name].copy_(torch.tensor(values[name][step]))
            average.update(module, step=step + 1)
            for name in names:
                track[name].append(average.module.state_dict()[name].numpy().copy())
        out |= {f"ema/{kind}/{name}": np.stack(value) for name, value in track.items()}
    return out


def architectures() -> dict[str, np.ndarray]:
    """Names, shapes and numbers of parameters, and which of them timm decays."""
    out = {}
    for ours, name, arguments in (
        ("resnet50", "resnet50", {}),
        ("vit_b16", "vit_base_patch16_224", {}),
        ("vit_b16_scaled", "vit_base_patch16_224", {"init_values": 1e-4}),
    ):
        model = timm.create_model(name, **arguments)
        skip = getattr(model, "no_weight_decay", set)()
        groups = param_groups_weight_decay(model, weight_decay=0.1, no_weight_decay_list=skip)
        decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
        state = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
        out[f"model/{ours}/names"] = np.array(list(state))
        out[f"model/{ours}/shapes"] = np.array([str(tuple(v.shape)) for v in state.values()])
        out[f"model/{ours}/count"] = np.array(sum(p.numel() for p in model.parameters()))
        out[f"model/{ours}/decayed"] = np.array(
            [name for name, p in model.named_parameters() if id(p) in decayed]
        )
    return out


def main() -> None:
    rng = np.random.default_rng(0)
    OUT.parent.mkdir(exist_ok=True)
    values = {**optimizers(rng), **schedules(), **losses(rng), **averages(rng), **architectures()}
    np.savez_compressed(OUT, version=np.array(f"timm {timm.__version__}"), **values)


if __name__ == "__main__":
    main()
