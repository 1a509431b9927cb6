"""Run an earlier notebook if the results that a later one needs are missing."""

from collections.abc import Mapping
from typing import Any

from utils.data.records import NAME, PREDICTING
from utils.files import ROOT, resolve, shown
from utils.params import declared

SHARED = ("data_dir", "output_dir", "label_fixes", "plugins", "n_folds", "seed", "device", "precision", "num_workers")
"""Parameters that an earlier notebook takes over from the one that needs it."""


def run_if_missing(
    notebook: str,
    parameters: Mapping[str, Any],
    model: str = "",
    fold: int | None = None,
    own: Mapping[str, Any] | None = None,
) -> None:
    """Execute `notebook` with its defaults unless its step is done for `model` ("": any) and `fold` (None: any).

    `parameters` are those of the calling notebook; the SHARED ones and `fold` are passed on, and all of `own`. A model
    that is asked for by name is never made here: FileNotFoundError lists the finished ones.
    """
    steps = resolve(parameters["output_dir"]) / notebook
    alike = [kind.notebook for kind in PREDICTING]  # whoever predicted
    places = [steps.with_name(name) for name in (alike if notebook in alike else [notebook])]
    done = f"{model or '*'}/fold{'*' if fold is None else fold}/{NAME}"
    if (steps / NAME).exists() or any(path for place in places for path in place.glob(done)):
        return
    if model:
        there = sorted({path.parents[1].name for path in steps.glob(f"*/fold*/{NAME}")})
        raise FileNotFoundError(
            f"no model {model!r} with fold {fold} in {shown(steps)}; finished models: {', '.join(there) or 'none'}. "
            f"Run notebooks/{notebook}.ipynb with -p model {model} -p fold {fold} first."
        )
    import papermill

    path = ROOT / "notebooks" / f"{notebook}.ipynb"
    given = {name: parameters[name] for name in declared(path) if name in SHARED and name in parameters}
    if fold is not None:
        given["fold"] = fold
    given |= own or {}
    executed = steps / f"{notebook}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    print(f"nothing in {shown(steps)} yet: running notebooks/{notebook}.ipynb first, see {shown(executed)}", flush=True)
    papermill.execute_notebook(path, executed, given, kernel_name="python3", progress_bar=False, cwd=ROOT)
