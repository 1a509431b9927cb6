"""Choose which images of a sample get a wrong label or an artefact, and of which kind."""

from collections.abc import Sequence

import numpy as np

from utils.sample import artefacts, label_errors


def plan_flaws(
    train: Sequence[str], test: Sequence[str], seed: int, label_errors_in: int = 0, artefacts_in: float = 0.0
) -> dict[str, dict]:
    """What is wrong with images, by name: {"label_error": a kind, "artefact": a kind}, each only where there is one.

    train, test: image names. label_errors_in: number of training images; artefacts_in: share of all images (0 to 1).
    """
    rng = np.random.default_rng([seed, 1002])
    wrong = rng.permutation(train)[:label_errors_in]
    odd = rng.permutation([*train, *test])[: round(artefacts_in * (len(train) + len(test)))]
    flaws: dict[str, dict] = {}
    for what, names, kinds in (("label_error", wrong, label_errors.KINDS), ("artefact", odd, artefacts.KINDS)):
        for number, name in enumerate(names.tolist()):
            flaws.setdefault(name, {})[what] = kinds[number % len(kinds)]
    return flaws
