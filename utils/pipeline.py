"""The run behind run_all.sh: checks the profile and the data, writes what Snakemake reads, starts it, reports."""

import argparse
import hashlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from utils.files import ROOT, read_json, shown, write_json, write_text
from utils.params import ParameterError
from utils.profile import NOTEBOOKS, Profile, ProfileError, Step, profile_path, read_profile, run_name, steps
from utils.step import OWNER, say, set_aside


class RunError(Exception):
    """The run can't start or did not finish; the message says why and what to do."""


def fingerprint(data_dir: str | Path) -> dict[str, list[int]]:
    """Size (bytes) and modification time (ns) of every file the pipeline reads in a data folder, by relative path."""
    data_dir = Path(data_dir)
    patterns = ("train/DCM/*/*.png", "train/outputs_json/*/*.json", "test/DCM/*/*.png")
    named = [data_dir / name for name in ("meta_data.xlsx", "classes.txt", "solution.csv")]
    files = [*(p for pattern in patterns for p in data_dir.glob(pattern)), *(p for p in named if p.exists())]
    status = {p.relative_to(data_dir).as_posix(): p.stat() for p in sorted(files)}
    return {name: [s.st_size, s.st_mtime_ns] for name, s in status.items()}


def prepare_data(run: Path, data: Path | None, profile: Profile) -> Path:
    """The checked data folder: `data`, or the profile's sample, made if missing.

    Writes `<run>/data.json` if it changed. Raises DataError with all problems of the folder, and RunError where the run's folder belongs to other data.
    """
    if data is None:
        from utils.sample import make_sample

        data = ROOT / profile.sample.folder
        make_sample(data, **profile.sample.model_dump(exclude={"folder"}))
    found, record = fingerprint(data), run / "data.json"
    before = read_json(record) if record.exists() else None
    if found and before == found:
        return data
    owner = read_json(run / "run.json")["data_dir"] if before and (run / "run.json").exists() else str(data)
    if before and (ROOT / owner).is_dir() and (ROOT / owner).resolve() != data.resolve():
        raise RunError(f"{shown(run)} was made from {owner}; rename {data}, or delete {shown(run)}")

    from utils.competition import check_data, read_classes, read_index

    check_data(read_index(data), read_classes(data))
    write_json(record, found)
    return data


def prepare_run(run: Path, profile: Profile, planned: list[Step], data_dir: str, force: bool = False) -> None:
    """Write run.json, notebooks/ and parameters/ of the run's folder, each file only where it changed.

    What no longer belongs to the run moves to `<run>/previous/`: members that are not in the profile any more, and
    folds.csv where the images, `n_folds` or `seed` are others. `force` forgets that anything is done.
    """
    for step in planned:
        text = yaml.safe_dump(step.parameters, sort_keys=False, allow_unicode=True)
        after = f"# after {', '.join(step.after)}\n" if step.after else ""
        _write_if_changed(run / "parameters" / f"{step.name}.yaml", after + text)
    for name in {step.name.partition("/")[0] for step in planned}:
        _write_if_changed(run / "notebooks" / f"{name}.ipynb", _sources(ROOT / "notebooks" / f"{name}.ipynb"))
    names = {step.name for step in planned}
    existing = [run / name for name in NOTEBOOKS.values()]
    existing += [p for name in ("train", "predict") for p in run.glob(f"{NOTEBOOKS[name]}/*/fold*")]
    for folder in existing:
        name = folder.relative_to(run).as_posix()
        if folder.is_dir() and name not in names and not any(n.startswith(f"{name}/") for n in names):
            set_aside(run, name)
        elif force and name in names:
            for file in ("metrics.json", "inputs.json"):
                (folder / file).unlink(missing_ok=True)
    submission = next((s.parameters["submission"] for s in planned if "submission" in s.parameters), "")
    if submission and not (ROOT / submission).exists():
        (run / NOTEBOOKS["ensemble"] / "metrics.json").unlink(missing_ok=True)

    images = sorted(name for name in read_json(run / "data.json") if name.startswith("train/DCM/"))
    split = [{k: s.parameters.get(k) for k in ("n_folds", "seed")} for s in planned]
    key = hashlib.sha256(repr([images, split[-1]]).encode()).hexdigest()
    before = read_json(run / "run.json") if (run / "run.json").exists() else {}
    if before.get("folds_of", key) != key and (run / "folds.csv").exists():
        set_aside(run, "folds.csv")
    about = {"run": run.name, "data_dir": data_dir, "threads": profile.threads, "folds": profile.folds}
    write_json(
        run / "run.json",
        about | {"models": list(profile.models), "steps": sorted(names), "submission": submission, "folds_of": key},
    )


def snakemake(run: Path, options: list[str], local: bool = True, output: int | None = None) -> tuple[int, str]:
    """Run notebooks/Snakefile in the run's folder; its exit status, and what it printed with `output=PIPE`.

    A local Snakemake and its steps are a process group of their own, killed as one when this process is stopped;
    with a cluster's executor it is interrupted instead, so that it takes its jobs back.
    """
    command = [
        sys.executable,
        "-c",
        "from utils.step import end_with_run as w; w(); from snakemake.cli import main; main()",
    ]
    command += ["--snakefile", str(ROOT / "notebooks" / "Snakefile"), "--directory", str(run), "--nolock"]
    command += ["--rerun-incomplete", "--keep-going", "--rerun-triggers", "mtime", *options]
    environment = os.environ | {OWNER: f"{socket.gethostname()} {os.getpid()}"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, text=True, stdout=output, stderr=output
    )
    try:
        printed = process.communicate()
        return process.returncode, "".join(text or "" for text in printed)
    except BaseException:
        _stop(process, local)
        raise


def preview(status: int, printed: str) -> int:
    """Print the steps that a dry run of Snakemake names, with its reasons; the exit status."""
    jobs = re.findall(r"^    output: (\S.*)/metrics\.json\n(?:    .*\n)*?    reason: (.*)$", printed, re.MULTILINE)
    print("\n".join(f"would run {step}: {reason}" for step, reason in sorted(jobs)) or "nothing to do")
    if status:
        print(printed)
    return status


def failures(run: Path, names: list[str], lines: int = 12) -> str:
    """What the failed steps among `names` say: the end of each error and where to look; "" if none failed."""
    parts = []
    for name in names:
        path = run / name / "failed.txt"
        if path.exists() and not (run / name / "metrics.json").exists():
            error = path.read_text(encoding="utf-8").strip().splitlines()
            notebook = run / name / f"{name.partition('/')[0]}.ipynb"
            where = f"    notebook {shown(notebook)}\n    log      {shown(run / name / 'log.txt')}"
            parts.append("\n".join([f"✗ {name}", *(f"    {line}" for line in error[-lines:]), where]))
    return "\n".join(parts)


def start(given: argparse.Namespace) -> int:
    """One run, as the command line asks for it; the exit status."""
    path = profile_path(given.profile)
    profile = read_profile(path)
    data = None if given.data is None else Path(os.path.normpath(Path(given.caller) / given.data))
    run = ROOT / "outputs" / run_name(given.profile, data)
    data_dir = shown(data or ROOT / profile.sample.folder)
    planned = steps(path, run.name, data_dir)
    names = [step.name for step in planned]
    if given.dry_run and data is None and not (ROOT / profile.sample.folder).exists():
        print("\n".join([f"would make the sample in {profile.sample.folder}, then run", *(f"  {n}" for n in names)]))
        return 0
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=5)  # a run that was just killed takes a moment to go
    except Timeout:
        raise RunError(f"another process is working on {shown(run)}; wait for it to end, or stop it") from None
    with lock:
        began = time.monotonic()
        say(f"run {run.name}: {len(names)} steps")
        prepare_data(run, data, profile)
        prepare_run(run, profile, planned, data_dir, given.force and not given.dry_run)
        jobs = given.jobs or profile.jobs
        options = ["--executor", given.executor, "--jobs", str(jobs)] if given.executor else []
        options += [] if given.executor else ["--cores", str(jobs * profile.threads), "--quiet", "all"]
        if given.dry_run:
            options = ["--dry-run", "--cores", "1", *(["--forceall"] if given.force else []), *given.snakemake]
            return preview(*snakemake(run, options, output=subprocess.PIPE))
        status, _ = snakemake(run, options + given.snakemake, local=not given.executor)
        return finish(run, names, status, (time.monotonic() - began) / 60)


def finish(run: Path, names: list[str], status: int, minutes: float) -> int:
    """Print the leaderboard, write the report, say what failed and where the submission is; the exit status."""
    from utils.leaderboard import show_leaderboard
    from utils.report import write_report

    if any(run.rglob("metrics.json")):
        print("", show_leaderboard(run), sep="\n")
        print(f"\nreport      {shown(write_report(run))}")
    left = [name for name in names if not (run / name / "metrics.json").exists()]
    submission = read_json(run / "run.json")["submission"]
    if submission and not left:
        print(f"submission  {submission}")
    problems = failures(run, names)
    if problems:
        print(f"\nFAILED after {minutes:.1f} min; the same command tries again from there\n{problems}")
        waiting = [n for n in left if not (run / n / "failed.txt").exists()]
        print(f"  not run, because they need it: {', '.join(waiting)}" if waiting else "", flush=True)
    elif status or left:
        logs = sorted((run / ".snakemake" / "log").glob("*.log"))
        text = logs[-1].read_text(encoding="utf-8").strip().splitlines()[-20:] if logs else []
        raise RunError("\n".join([f"Snakemake ended with status {status}; not done: {', '.join(left)}", *text]))
    else:
        say(f"done in {minutes:.1f} min")
    return 1 if problems else 0


def main(arguments: list[str] | None = None) -> int:
    """The command line of run_all.sh, which describes the options."""
    parser = argparse.ArgumentParser(prog="run_all.sh", allow_abbrev=False)
    parser.add_argument("--profile", default="sample")
    parser.add_argument("--data")
    parser.add_argument("--caller", default=os.getcwd(), help="the folder that a relative --data starts from")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--executor")
    arguments = sys.argv[1:] if arguments is None else arguments
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    given = parser.parse_args(arguments[:cut])
    given.snakemake = arguments[cut + 1 :]
    if given.jobs is not None and given.jobs < 1:
        parser.error(f"--jobs {given.jobs}: expected at least 1")
    if given.executor and not importlib.util.find_spec(f"snakemake_executor_plugin_{given.executor.replace('-', '_')}"):
        plugin = f"{sys.executable} -m pip install snakemake-executor-plugin-{given.executor}"
        parser.error(f"--executor {given.executor} needs Snakemake's plugin: {plugin}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    from utils.competition import DataError

    try:
        return start(given)
    except (RunError, ProfileError, ParameterError, DataError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


def _write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def _sources(path: Path) -> str:
    """A notebook without outputs: looking at it in JupyterLab does not change it."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.pop("id", None)
        cell.metadata = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata = {
        "kernelspec": notebook.metadata.get("kernelspec", {"name": "python3", "display_name": "Python 3"})
    }
    notebook.nbformat_minor = 4  # before cell ids, which editors rewrite
    return nbformat.writes(notebook) + "\n"


def _stop(process: subprocess.Popen, local: bool) -> None:
    import psutil

    if not local:
        process.send_signal(signal.SIGINT)
        process.wait()
        return
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    for member in [process, *family]:
        try:
            member.kill()
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
