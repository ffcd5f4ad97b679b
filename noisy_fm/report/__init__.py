"""Records in, one self-contained HTML page with its figures and tables out."""

from noisy_fm.report.page import build

__all__ = ["build"]
