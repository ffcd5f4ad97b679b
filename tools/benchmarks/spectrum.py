"""All spectrum metrics of float32 features against scikit-learn's TruncatedSVD and numpy's SVD.

    python tools/bench.py spectrum [--d 512 2048] [--rows 50000] [--repeats 3]

Ours computes in float64 from float32 input. `TruncatedSVD(n_components=D)` is its default
randomized algorithm (ARPACK allows D−1 at most) and runs in the input's float32;
`numpy.linalg.svd(compute_uv=False)` is timed in float32, as given, and in float64, the only peer
whose answer is as exact as ours. At D = 2,048 the peers take minutes: one paired round there, and
the warm-up of `measure` beside it.
"""

import argparse

import numpy as np
from bench import Case


def run(measure, argv) -> list[Case]:
    from sklearn.decomposition import TruncatedSVD

    from noisy_fm import spectrum

    parser = argparse.ArgumentParser(prog="bench.py spectrum")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--d", type=int, nargs="+", default=[512, 2048])
    args = parser.parse_args(argv)
    cases = []
    for d in args.d:
        x = features(args.rows, d)
        exact = spectrum.from_singular_values(np.linalg.svd(x.astype(np.float64), compute_uv=False))
        error = abs(spectrum.summary(x)["sve"] / exact["sve"] - 1)
        peers = {
            "sklearn TruncatedSVD": lambda x=x, d=d: TruncatedSVD(n_components=d).fit(x),
            "numpy svd float32": lambda x=x: np.linalg.svd(x, compute_uv=False),
            "numpy svd float64": lambda x=x: np.linalg.svd(x.astype(np.float64), compute_uv=False),
        }
        cases.append(
            measure(
                f"summary {args.rows} x {d}",
                lambda x=x: spectrum.summary(x),
                peers,
                target={"sklearn TruncatedSVD": 10, "numpy svd float32": 2},
                note=f"SVE off LAPACK float64 by {error:.1e}",
                **({"repeats": 1} if d >= 2048 else {}),
            )
        )
    return cases


def features(rows: int, d: int) -> np.ndarray:
    """Rows with a power-law spectrum in a random basis and a mean, like pooled features."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0].astype(np.float32)
    decay = np.arange(1, d + 1, dtype=np.float32) ** -0.7
    return (rng.standard_normal((rows, d), np.float32) * decay) @ basis + np.float32(0.05)
