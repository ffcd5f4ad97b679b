"""Reference points without a training loop: ridge, L-BFGS logistic regression, kNN (float64)."""

import numpy as np
from scipy import optimize, special

from noisy_fm.probe.head import Head

BLOCK = 1024  # rows whose distances to all examples are held at a time


def fit_ridge(head: Head, f: np.ndarray, labels: np.ndarray, num_classes: int) -> dict:
    """Minimises ‖FW + b − Y‖² + α‖W‖² in closed form; Y is ±1 one-hot, α the weight decay.

    The intercept b is not penalised. Solved on the smaller side, D×D or M×M.
    """
    targets = np.where(np.arange(num_classes) == labels[:, None], 1.0, -1.0)
    f = f.astype(np.float64)
    mean, offset = f.mean(0), targets.mean(0)
    centred, targets = f - mean, targets - offset
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    # α = 0 on rank-deficient features: the least-norm solution.
    shrink = s / np.maximum(s**2 + head.weight_decay, np.finfo(float).tiny)
    shrink[s <= s[0] * max(f.shape) * np.finfo(float).eps] = 0.0
    kernel = vt.T @ (shrink[:, None] * (u.T @ targets))
    return {"kernel": kernel, "bias": offset - mean @ kernel}


def fit_logreg(head: Head, f: np.ndarray, labels: np.ndarray, num_classes: int) -> dict:
    """Minimises the mean cross-entropy + (wd/2)‖W‖² with L-BFGS; the bias is not penalised."""
    f = f.astype(np.float64)
    n, width = f.shape
    one_hot = np.arange(num_classes) == labels[:, None]

    def objective(flat):
        w = flat.reshape(width + 1, num_classes)
        scores = f @ w[:-1] + w[-1]
        log_p = scores - special.logsumexp(scores, axis=1, keepdims=True)
        residual = (np.exp(log_p) - one_hot) / n
        gradient = np.vstack([f.T @ residual + head.weight_decay * w[:-1], residual.sum(0)])
        value = -log_p[one_hot].mean() + head.weight_decay / 2 * np.sum(w[:-1] ** 2)
        return value, gradient.ravel()

    start = np.zeros((width + 1) * num_classes)
    options = {"maxiter": 1000, "maxcor": 20, "ftol": 1e-12, "gtol": 1e-7}
    found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    w = found.x.reshape(width + 1, num_classes)
    return {"kernel": w[:-1], "bias": w[-1]}


def fit_knn(head: Head, f: np.ndarray, labels: np.ndarray, num_classes: int) -> dict:
    """Keeps the examples; k is `head.neighbors`, at most their number."""
    return {"examples": f.astype(np.float32), "labels": labels, "num_classes": num_classes}


def knn_scores(parameters: dict, neighbors: int, f: np.ndarray):
    """Share [m c] of each class among the k nearest training examples (Euclidean distance)."""
    examples = parameters["examples"].astype(np.float64)
    one_hot = np.eye(parameters["num_classes"], dtype=np.float32)[parameters["labels"]]
    k = min(neighbors, len(examples))
    norms = np.sum(examples**2, axis=1)
    scores = []
    for first in range(0, len(f), BLOCK):
        distance = norms - 2 * f[first : first + BLOCK].astype(np.float64) @ examples.T
        nearest = np.argpartition(distance, k - 1, axis=1)[:, :k]
        scores.append(one_hot[nearest].mean(axis=1))
    return np.concatenate(scores)


FITS = {"ridge": fit_ridge, "logreg": fit_logreg, "knn": fit_knn}
