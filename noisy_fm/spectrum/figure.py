"""A figure that a notebook shows as a cell's value although pyplot knows nothing of it."""

import io

from matplotlib import figure


class Figure(figure.Figure):
    """matplotlib's, with a PNG for IPython's display (which pyplot would otherwise register)."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()
