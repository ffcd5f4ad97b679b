"""What the paper gives in numbers of what a study measures too (arXiv 2403.06869).

Of accuracy after tuning and of spectra against γ it has figures only, so they are not here.
"""

import pandas as pd

RATES = (0.0, 0.05, 0.10, 0.20, 0.30)  # the rows of Table 1, but "Public"
# Table 1, by column: ImageNet-1K validation accuracy in %, zero-shot for CLIP.
TABLE_1 = {
    "ResNet-50 (IN-1K)": (79.96, 79.18, 78.61, 76.27, 73.11),
    "ResNet-50 (CLIP)": (32.64, 30.86, 29.54, 27.72, 26.53),
    "ViT-B/16 (IN-1K)": (78.70, 78.13, 77.19, 74.67, 68.12),
    "ViT-B/16 (CLIP)": (45.43, 44.10, 43.22, 40.48, 38.57),
}


def pretraining_changes(highest: float) -> pd.DataFrame:
    """label, noise_rate, value: accuracy less that at γ = 0, in shares, up to γ = `highest`."""
    rows = [
        {"label": label, "noise_rate": rate, "value": (value - values[0]) / 100}
        for label, values in TABLE_1.items()
        for rate, value in zip(RATES, values, strict=True)
        if rate <= highest
    ]
    return pd.DataFrame(rows)
