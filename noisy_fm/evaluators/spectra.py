"""What training does to the spectrum of features."""

from collections.abc import Sequence

import numpy as np

from noisy_fm import features, spectrum
from noisy_fm.evaluators.evaluator import Evaluator, Given, readable, sample


def spectra(
    given: Given,
    *,
    names: Sequence[str] = (),
    examples: int = 1024,
    center=False,
    normalize: bool = False,
) -> Evaluator | None:
    """Spectra of the features `names` as {"NAME/sve": …, "NAME/lsvr": …, …}; of none, nothing.

    Of the same examples of `eval_source` each time, at most `examples`: a spectrum depends on how
    many rows it is of. Maps and tokens [n … d] are averaged over positions. `center` and
    `normalize` as in `spectrum.Spectrum`; `spectrum.plot_track` draws the result, with
    prefix="spectrum/". Raises ValueError for a name that is no feature and for fewer than two rows.
    """
    if not names:
        return None
    source = given.eval_source
    if min(examples, len(source)) < 2:
        raise ValueError(
            f"a spectrum needs at least 2 rows; got {examples} (config.evaluators) of the "
            f"{len(source)} there are"
        )
    where = "config.evaluators.spectrum.names"
    features.check_names(given.task, given.variables, source, names, where=where)
    keep = ["mask", *(f"features/{name}" for name in names)]
    predict = features.predictor(given.task, keep=keep, columns=(), pooled=True, **given.layout)
    chosen = source.select(sample(np.arange(len(source)), examples))

    def outcomes(variables):
        _, found = readable(predict(variables, chosen))
        named = {name: found[f"features/{name}"] for name in names}
        return spectrum.track(named, center=center, normalize=normalize)

    return Evaluator(
        tuple(f"{name}/{metric}" for name in names for metric in spectrum.METRICS), outcomes
    )
