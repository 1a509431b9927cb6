"""Decide which steps of a run have to be executed: the one answer for the run itself, its dry run and its hours.

A step is done if it has a result that was made from what is there now: the same notebook, parameters, list of data
files and results of earlier steps, by their content. What a step was made from is kept beside its result when it
starts. Parameters without effect are in a file of their own, which is not compared (see `pipeline.changes`).
"""

import hashlib
from pathlib import Path

from utils.data.records import NAME, read_record
from utils.files import ROOT, read_json, write_json
from utils.pipeline.steps import Step

MADE_FROM = "inputs.json"
"""File in a step's folder: the SHA-256 of each of its inputs when it started."""


def inputs(step: Step) -> list[str]:
    """The files that a step's result depends on, relative to the run's folder."""
    earlier = [f"{name}/{NAME}" for name in step.after]
    return [step.notebook, f"parameters/{step.name}.yaml", "data.json", *earlier]


def digests(run: Path, files: list[str]) -> dict[str, str]:
    """The SHA-256 of each file of the run's folder; "" for one that is not there."""
    paths = {name: run / name for name in files}
    return {name: hashlib.sha256(p.read_bytes()).hexdigest() if p.exists() else "" for name, p in paths.items()}


def note_inputs(run: Path, name: str, now: dict[str, str]) -> None:
    """Keep what a step that starts is made from."""
    write_json(run / name / MADE_FROM, now)


def made_from(run: Path, name: str) -> dict[str, str]:
    """What a step was made from, when it was last started; {} if that is not known."""
    return read_json(run / name / MADE_FROM, {})


def out_of_date(run: Path, planned: list[Step]) -> dict[str, str]:
    """The steps that have to be executed, each with the reason. planned: earlier ones first.

    Files in the run's folder must be those of now, see `pipeline.changes.prepare_run`.
    """
    stale: dict[str, str] = {}
    for step in planned:
        waits = [name for name in step.after if name in stale]
        reason = _own_reason(run, step) or (f"after {waits[0]}" if waits else "")
        if reason:
            stale[step.name] = reason
    return stale


def delete_out_of_date(run: Path, stale: dict[str, str]) -> None:
    """Delete the records of these steps, so that Snakemake makes them; all else stays until they start."""
    for name in stale:
        (run / name / NAME).unlink(missing_ok=True)


def _own_reason(run: Path, step: Step) -> str:
    """Why a step has to be executed even if all before it are up to date; "" if it has not."""
    before = made_from(run, step.name)
    if not (run / step.name / NAME).exists():
        return "it did not end" if before else "it has no result yet"
    if not before:
        return "nobody knows what its result was made from"
    now = digests(run, inputs(step))
    kinds = {step.notebook: "the notebook", inputs(step)[1]: "its parameters", "data.json": "the data"}
    changed = [name for name in {**now, **before} if now.get(name) != before.get(name)]
    if changed:
        named = [kinds.get(name, name.removesuffix(f"/{NAME}")) for name in changed]
        return f"{', '.join(named[:3])}{' and others' if len(named) > 3 else ''} changed"
    submission = getattr(read_record(run / step.name, step.row.record), "submission", "")
    return f"{submission} is missing" if submission and not (ROOT / submission).exists() else ""
