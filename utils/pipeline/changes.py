"""Write to a run's folder what its steps depend on: list of data files, notebooks, parameters."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import yaml

from utils.data.competition import image_files
from utils.data.records import NAME
from utils.files import ROOT, read_json, resolve, write_if_changed, write_json
from utils.params import WITHOUT_EFFECT
from utils.pipeline.hours import MEASURED_BY
from utils.pipeline.profile import Profile
from utils.pipeline.run_notebook import set_aside
from utils.pipeline.steps import ROWS, TRAIN, Step, submitting
from utils.pipeline.up_to_date import MADE_FROM, inputs


class RunError(Exception):
    """The run can't start or did not finish; the message says why and what to do."""


def fingerprint(data_dir: str | Path) -> dict[str, list[int]]:
    """Size (bytes) and modification time (ns) of every file the pipeline reads in a data folder, by relative path."""
    data_dir = Path(data_dir)
    named = [data_dir / name for name in ("meta_data.xlsx", "classes.txt", "solution.csv")]
    images = [path for split in ("train", "test") for path in image_files(data_dir / split / "DCM")]
    files = [*images, *data_dir.glob("train/outputs_json/*/*.json"), *(path for path in named if path.exists())]
    status = {p.relative_to(data_dir).as_posix(): p.stat() for p in sorted(files)}
    return {name: [s.st_size, s.st_mtime_ns] for name, s in status.items()}


def prepare_run(run: Path, profile: Profile, planned: list[Step], data_dir: str, force: bool = False) -> None:
    """Write run.json, notebooks/ and parameters/ to the run's folder, each file only if it changed.

    What no longer belongs to the run moves to `<run>/previous/`: steps that are not planned any more, and folds.csv if
    the training images, `n_folds` or `seed` changed. `force` marks every step as not done and deletes the cache.
    """
    _set_aside_others(run, {step.name for step in planned})
    if force:
        shutil.rmtree(run / "cache", ignore_errors=True)
    for step in planned:
        _write_parameters(run, step)
        write_if_changed(run / step.notebook, _sources(ROOT / step.notebook))
        for name in (NAME, MADE_FROM) if force else ():
            (run / step.name / name).unlink(missing_ok=True)

    record = read_json(run / "data.json")
    without = {name.rpartition(".")[0] for name in record.get("skipped", ())}
    without |= {f"train/DCM/{fix['image']}" for fix in record.get("label_fixes", ()) if fix.get("drop")}
    images = sorted(n for n in record if n.startswith("train/DCM/") and n.rpartition(".")[0] not in without)
    given = {name: value for step in planned for name, value in step.parameters.items()}
    split = [given.get(name) for name in ("n_folds", "seed")]
    folds_of = hashlib.sha256(repr([images, split]).encode()).hexdigest()
    before = read_json(run / "run.json", {})
    if before.get("folds_of", folds_of) != folds_of and (run / "folds.csv").exists():
        set_aside(run, "folds.csv")
    about = {
        "data_dir": data_dir,
        "models": profile.all_models,
        "voters": submitting(planned).parameters.get("models", []),
        "after": {
            step.name.split("/")[1]: [earlier.rpartition("/")[0] for earlier in step.after]
            for step in planned
            if step.row is TRAIN and step.after
        },
        "folds": profile.folds,
        "threads": profile.threads,
        "rows": {step.row.section: {"notebook": step.row.notebook, "priority": step.row.priority} for step in planned},
        "steps": {step.name: {"inputs": inputs(step)} for step in planned},
        "submission": submitting(planned).parameters.get("submission", ""),
        "folds_of": folds_of,
    }
    write_json(run / "run.json", about)


def prepare_partial(run: Path, ensemble: Step, missing: dict[str, str]) -> None:
    """Let the ensemble vote without the fold models in `missing` (such as unet/fold0: why), with equal weights.

    Changes its parameters and run.json in the run's folder. The next start writes them anew, without anything missing,
    which makes the partial submission out of date.
    """
    voting = [name for name in ensemble.after if name.partition("/")[2] not in missing]
    there = {name.split("/")[1] for name in voting}
    models = [model for model in ensemble.parameters["models"] if model in there]
    equal = {"models": models, "weights": [], "tune_weights": False, "missing": missing}
    partial = ensemble.model_copy(update={"parameters": ensemble.parameters | equal, "after": voting})
    _write_parameters(run, partial)
    about = read_json(run / "run.json")
    about["steps"][ensemble.name] = {"inputs": inputs(partial)}
    write_json(run / "run.json", about)


def _write_parameters(run: Path, step: Step) -> None:
    """Write a step's parameters: those that shape its result to one file, the others beside it."""
    notes = [f"# after {', '.join(step.after)}\n"] if step.after else []
    notes += [f"# plugin {path} {digest}\n" for path, digest in step.plugins.items()]
    notes += [f"# {name} holds {digest}\n" for name, digest in _outside(step).items()]
    others = {name: step.parameters[name] for name in step.parameters if name in WITHOUT_EFFECT}
    shaping = {name: step.parameters[name] for name in step.parameters if name not in others}
    write_if_changed(run / "parameters" / f"{step.name}.yaml", "".join(notes) + _as_yaml(shaping))
    write_if_changed(run / "parameters" / f"{step.name}.others.yaml", _as_yaml(others))


def _outside(step: Step) -> dict[str, str]:
    """What lies in the files that parameters name, by parameter, as a digest of the files' names, sizes and times.

    A checkpoint of this run is left out: the step comes after the one that makes it.
    """
    found = {}
    for name in ("extra_data", "init_checkpoint", "encoder_weights"):
        path = resolve(str(step.parameters.get(name, "")).replace("{fold}", str(step.parameters.get("fold"))))
        own = name == "init_checkpoint" and path.is_relative_to(resolve(step.parameters.get("output_dir", "")))
        if step.parameters.get(name) and path.exists() and not own:
            files = sorted(p for p in [path, *path.rglob("*")] if p.is_file())
            listed = [(p.relative_to(path).as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
            found[name] = hashlib.sha256(repr(listed).encode()).hexdigest()
    return found


def _set_aside_others(run: Path, names: set[str]) -> None:
    """Move the results of steps that are not among `names` to `<run>/previous/`, but for optional ones made by hand."""
    for row in ROWS:
        for path in run.glob(f"{row.notebook}/*/fold*" if row.models else row.notebook):
            name = path.relative_to(run).as_posix()
            if name not in names and (row.always or (path / MADE_FROM).exists()):
                set_aside(run, name)


def copy_for_preview(run: Path, copy: Path) -> Path:
    """Copy what decides which steps have to run, for a dry run, which must change nothing; return the copied folder."""
    copy = copy / run.name
    steps = [f"{'*/' * depth}{name}" for depth in (1, 3) for name in (NAME, MADE_FROM)]
    for pattern in ("*.json", "folds.csv", "notebooks/*", "parameters/**/*.yaml", *steps, *MEASURED_BY):
        for path in run.glob(pattern):
            target = copy / path.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    copy.mkdir(exist_ok=True)
    return copy


def _as_yaml(parameters: dict[str, Any]) -> str:
    return yaml.safe_dump(parameters, sort_keys=False, allow_unicode=True)


def _sources(path: Path) -> str:
    """A notebook without outputs, ids and settings of an editor: opening it in JupyterLab does not change this text."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.pop("id", None)
        cell.metadata = {name: value for name, value in cell.metadata.items() if name == "tags"}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    notebook.nbformat_minor = 4  # the version before cell ids, which editors rewrite
    return nbformat.writes(notebook) + "\n"
