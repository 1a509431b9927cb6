"""Find what would stop a run before it starts: all problems of the profile, the data and the machine at once."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd

from utils.data.check import DataReport, check_data
from utils.data.competition import HAND_BONES, read_classes
from utils.data.findings import DataError, Finding
from utils.data.label_fixes import FIXED, Fix, find_fixes, read_fixed_index
from utils.files import ROOT, Problems, read_json, shown, write_json
from utils.params import WITHOUT_EFFECT
from utils.pipeline import resources
from utils.pipeline.changes import RunError, fingerprint
from utils.pipeline.leftovers import owner_of
from utils.pipeline.plugins import assign_plugins
from utils.pipeline.profile import Profile
from utils.pipeline.resources import in_units
from utils.pipeline.steps import Step
from utils.submission import score


class PreflightError(Problems):
    """A run that would fail; the message lists every reason."""


def preflight(
    run: Path,
    data: Path | None,
    profile: Profile,
    planned: list[Step],
    skip_bad: bool = False,
    again: bool = False,
    jobs: int = 0,
    local: bool = True,
) -> int:
    """Make the sample if `data` is None, check everything, assign the plugins and write the run's data.json.

    Args:
        run: the run's folder.
        data: the data folder.
        profile, planned: the profile and its steps, which get the plugins that they need.
        skip_bad: leave out images with errors instead of stopping.
        again: try the parts even if they have been tried and nothing changed since.
        jobs: steps at the same time; 0 for the profile's.
        local: the steps run on this machine, so its shared memory matters.

    Returns:
        The number of training images.

    Raises:
        PreflightError: with all problems: first those of profile and machine, then those of the data.
        RunError: the run's folder belongs to other data.
    """
    problems: list[str] = []
    fixes: tuple[Fix, ...] = ()
    with noted(problems):
        assign_plugins(planned)
    data = find_data(run, data, profile)
    record, classes = fingerprint(data), list(HAND_BONES)
    with suppress(DataError):  # then the report says it
        classes = read_classes(data)
    with noted(problems):
        fixes = fixes_of(planned, data)
    process = start_trying(run, planned, classes, sum(name.startswith("train/DCM/") for name in record), again)
    try:
        n_folds = max((step.all_parameters().get("n_folds", 0) for step in planned), default=0)
        report = examine(data, n_folds, skip_bad, fixes, run / FIXED)
        print(report, *(f"  corrected: {fix}" for fix in fixes), sep="\n", flush=True)
        report.write(run / "data_report.csv")
        tried = what_was_tried(run, process)
    finally:
        if process:
            process.kill()
            process.wait()
    problems += tried["problems"]
    if not report.errors:
        with noted(problems):
            table = read_fixed_index(data, fixes, classes, run / FIXED, report.skipped)
            problems += machine_problems(run, planned, table, classes, tried["parameters"], jobs or profile.jobs, local)
    problems += map(str, report.errors)
    if problems:
        advice = "; data_report.csv in the run's folder has advice, --skip-bad leaves bad images out"
        title = f"{run.name} can't start{advice if report.errors else ''}"
        raise PreflightError(title, problems, shown=40)
    record |= {"skipped": list(report.skipped)} if report.skipped else {}
    record |= {"label_fixes": [fix.effect() for fix in fixes]} if fixes else {}
    if record != read_json(run / "data.json", {}):
        write_json(run / "data.json", record)
    return int((table["split"] == "train").sum())


def find_data(run: Path, data: Path | None, profile: Profile) -> Path:
    """`data`, or the profile's sample, made if missing. RunError if the run's folder was made from another folder."""
    if data is None:
        from utils.sample.generator import make_sample

        data = ROOT / profile.sample.folder
        make_sample(data, **profile.sample.model_dump(exclude={"folder"}))
    owner = read_json(run / "run.json", {}).get("data_dir", data)
    if (ROOT / owner).is_dir() and not (ROOT / owner).samefile(data) and fingerprint(data) != _files(run):
        raise RunError(f"{shown(run)} was made from {owner}; rename {data}, or delete {shown(run)}")
    return data


def fixes_of(planned: list[Step], data: Path) -> tuple[Fix, ...]:
    """The corrections of labels that concern this data; PreflightError if steps name different files of them."""
    named = {step.name: found["label_fixes"] for step in planned if "label_fixes" in (found := step.all_parameters())}
    if len(set(named.values())) > 1:
        wrong = [f"{step}: label_fixes is {path!r}" for step, path in named.items()]
        raise PreflightError(
            "steps differ", [*wrong, "cache and folds are shared: set label_fixes under `parameters:`"]
        )
    return find_fixes(next(iter(named.values()), ""), data)


def examine(
    data: Path, n_folds: int = 0, skip_bad: bool = False, fixes: Sequence[Fix] = (), fixed: str | Path = ""
) -> DataReport:
    """`check_data`, and whether solution.csv fits the test images. Raises DataError if there is no such folder."""
    report = check_data(data, n_folds, skip_bad, fixes, fixed)
    nothing = "no test images"  # then nothing needs a solution
    general = [f for f in report.findings if (f.is_error and not f.image) or f.kind == nothing]
    solution = data / "solution.csv"
    if solution.exists() and not general:
        try:
            score(solution, solution, data)
        except DataError as error:
            report.findings.extend(Finding("solution", problem, solution.name) for problem in error.problems)
    return report


def start_trying(
    run: Path, planned: list[Step], classes: list[str], images: int, again: bool = False
) -> subprocess.Popen | None:
    """Start `try_parts` as a process of its own; None where parts, plugins and machine are those that were fine before.

    `<run>/preflight.json` says what to try, and then what was found; `again` tries in any case.
    """
    shaping = [
        (s.name, s.plugins, {k: v for k, v in s.parameters.items() if k not in WITHOUT_EFFECT or k == "device"})
        for s in planned
    ]
    key = hashlib.sha256(json.dumps([shaping, classes, images, socket.gethostname()]).encode()).hexdigest()
    path = run / "preflight.json"
    before = read_json(path, {})
    if before.get("key") == key and before.get("problems") == [] and not again:
        return None
    steps = [step.model_dump() for step in planned]
    write_json(path, {"key": key, "steps": steps, "classes": classes, "images": images})
    environment = os.environ | owner_of(run)
    with (run / "preflight.log").open("w") as log:
        command = [sys.executable, "-m", "utils.pipeline.try_parts", str(path)]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def what_was_tried(run: Path, process: subprocess.Popen | None) -> dict:
    """Wait for the process of `start_trying`; return its `problems` and each network's number of `parameters`."""
    status = process.wait() if process else 0
    found = read_json(run / "preflight.json")
    if "problems" in found:
        return found
    lines = (run / "preflight.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    problem = f"the parts can't be tried (status {status}): {' | '.join(lines[-3:])}"
    return {"problems": [problem], "parameters": {}}


def machine_problems(
    run: Path,
    planned: list[Step],
    table: pd.DataFrame,
    classes: list[str],
    counts: dict[str, int],
    jobs: int,
    local: bool,
) -> list[str]:
    """Print the estimate of the disk that the run needs; return whether disk or shared memory are too small."""
    sides = {step.name: side for step in planned if (side := step.all_parameters().get("image_size"))}
    if not sides:
        return []
    sizes = resources.measure(table, classes, sides.values())
    images = {split: int((table["split"] == split).sum()) for split in ("train", "test")}
    needed = resources.disk_needed(planned, sizes, images, counts, jobs)
    written = {step.row.notebook for step in planned if {"epochs", "tta"} & step.all_parameters().keys()}
    there = resources.used(*(run / name for name in ("cache", *written)))
    free = shutil.disk_usage(run).free
    print(f"disk: {needed}, of which {in_units(there)} are there; {in_units(free)} are free", flush=True)
    problems = []
    if sum(needed) - there > free:
        problems.append(
            f"the disk of {shown(run)} has {in_units(free)} left, the run needs {in_units(sum(needed) - there)} more: "
            "make room, make outputs/ a link to a larger disk, or use fewer models or a smaller image_size"
        )
    if local and resources.SHARED_MEMORY.is_dir():
        shared = shutil.disk_usage(resources.SHARED_MEMORY).free
        for step in planned:
            side = sides.get(step.name) or next((sides[name] for name in step.after if name in sides), 0)
            if side and (wanted := jobs * resources.shared_memory_needed(step, sizes, side)) > shared:
                problems.append(
                    f"{step.name}: the workers' batches take up to {in_units(wanted)} in {resources.SHARED_MEMORY}, "
                    f"which has {in_units(shared)}: start the container with --shm-size={_round_up(wanted)}, or set "
                    "num_workers: 0"
                )
    return problems


@contextmanager
def noted(problems: list[str]) -> Iterator[None]:
    """What is raised inside as Problems becomes problems."""
    try:
        yield
    except Problems as error:
        problems += error.problems


def _files(run: Path) -> dict:
    """The fingerprint of the data that the run's folder was made from."""
    record = read_json(run / "data.json", {})
    return {name: value for name, value in record.items() if name not in ("skipped", "label_fixes")}


def _round_up(size: float) -> str:
    """A size for Docker with room to spare: a power of two in GB."""
    return f"{2 ** max(0, int(size * 2 / 2**30).bit_length())}g"
