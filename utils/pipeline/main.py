"""The command behind run_all.sh: check profile and data, start Snakemake, and see to it that it ends well."""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from filelock import FileLock, Timeout

from utils.files import ROOT, WORKS_FOR, Problems, shown
from utils.pipeline.changes import RunError, copy_for_preview, prepare_run
from utils.pipeline.hours import expected_hours
from utils.pipeline.leftovers import clean_up, end_processes, new_start, owner_of
from utils.pipeline.outcome import finish, missing_fold_models, untried, vote_without
from utils.pipeline.preflight import preflight
from utils.pipeline.profile import profile_path, read_profile, run_name, steps
from utils.pipeline.run_notebook import say
from utils.pipeline.steps import Step, submitting
from utils.pipeline.up_to_date import delete_out_of_date, out_of_date

SNAKEMAKE = "from utils.pipeline.leftovers import end_with_run as w; w(); from snakemake.cli import main; main()"

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that stop a run: Ctrl-C, the system's shutdown, a closed terminal."""


def snakemake(run: Path, options: list[str], local: bool = True) -> int:
    """Run notebooks/Snakefile in the run's folder; return its exit status.

    A step that fails is tried once more; one that fails twice does not stop those that don't need it. Snakemake gets a
    session of its own. However it ends, also when this process is stopped, its local steps end with it; one with a
    cluster's executor is interrupted, so that it cancels its jobs.
    """
    command = [sys.executable, "-c", SNAKEMAKE, "--snakefile", str(ROOT / "notebooks" / "Snakefile")]
    command += ["--directory", str(run), "--nolock", "--ignore-incomplete", "--keep-going"]
    # the default scheduler writes temporary files, which stay when Snakemake is killed; ours need only the priorities
    command += ["--rerun-triggers", "mtime", "--retries", "1", "--scheduler", "greedy", *options]
    environment = owner_of(run) | {WORKS_FOR: str(run.resolve())}
    process = None
    try:
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, start_new_session=True)
        return process.wait()
    except BaseException:
        for number in STOPPING:  # one is enough; another would break off the tidying
            signal.signal(number, signal.SIG_IGN)
        if process and not local:
            process.send_signal(signal.SIGINT)
            process.wait()
        raise
    finally:
        end_processes(run)


def run_steps(
    run: Path, planned: list[Step], stale: dict[str, str], options: list[str], local: bool
) -> tuple[int, list[str]]:
    """Run the steps that are out of date; Snakemake's exit status and the names of those that still are.

    Where fold models failed, the others vote, if there is at least one: the ensemble is then made, but counts as not
    done. Snakemake is started once more where it ended before it had tried every step, as one does that was killed.
    """
    for step in planned:  # the failures of an earlier start
        (run / step.name / "failed.txt").unlink(missing_ok=True)
    delete_out_of_date(run, stale)
    status = snakemake(run, options, local) if stale else 0
    left = list(out_of_date(run, planned))
    if status and untried(run, planned, left):
        say(f"Snakemake ended early, with status {status}; it is started once more")
        status = snakemake(run, options, local)
        left = list(out_of_date(run, planned))
    missing = missing_fold_models(run, planned, left)
    if status and missing:
        ensemble = submitting(planned)
        target = vote_without(run, ensemble, missing)
        snakemake(run, [target, *options, "--allowed-rules", ensemble.row.section], local)
    return status, left


def start(given: argparse.Namespace) -> int:
    """Make one run, as the command line asks for it; return the exit status."""
    path = profile_path(given.profile)
    profile = read_profile(path)
    data = None if given.data is None else Path(os.path.normpath(Path(given.caller) / given.data))
    run = ROOT / "outputs" / run_name(given.profile, data)
    data_dir = shown(data or ROOT / profile.sample.folder)
    planned = steps(path, run.name, data_dir)
    if given.dry_run and data is None and not (ROOT / profile.sample.folder).exists():
        print(f"would make the sample in {data_dir}, then run", *(f"  {step.name}" for step in planned), sep="\n")
        return 0
    if data is not None and not data.is_dir():
        raise RunError(f"--data {given.data}: no such folder; expected {data}/train/DCM/<ID>/<name>.png")
    jobs = given.jobs or profile.jobs

    def prepare(folder: Path) -> dict[str, str]:
        """Check everything, write what the steps depend on, print the hours; the steps to execute, with the reason."""
        checked = {"skip_bad": given.skip_bad, "again": given.force, "jobs": jobs, "local": not given.executor}
        images = preflight(folder, data, profile, planned, **checked)
        prepare_run(folder, profile, planned, data_dir, given.force)
        stale = out_of_date(folder, planned)
        print(expected_hours(folder, [step for step in planned if step.name in stale], images, jobs), flush=True)
        return stale

    if given.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            stale = prepare(copy_for_preview(run, Path(folder)))
        print("\n".join(f"would run {name}: {reason}" for name, reason in stale.items()) or "nothing to do")
        return 0
    run.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(run / ".lock", timeout=5).acquire()  # a run that was just killed needs a moment to end
    except Timeout:
        raise RunError(f"another process is working on {shown(run)}; wait for it to end, or stop it") from None
    with lock:
        began = time.monotonic()
        clean_up(run)  # after one that was killed
        new_start(run)
        say(f"run {run.name}: {len(planned)} steps")
        stale = prepare(run)
        options = ["--cores", str(jobs * profile.threads), "--quiet", "all"]
        if given.executor:
            options = ["--executor", given.executor, "--jobs", str(jobs)]
        try:
            status, left = run_steps(run, planned, stale, options + given.snakemake, local=not given.executor)
            return finish(run, planned, status, left, (time.monotonic() - began) / 60)
        finally:
            clean_up(run)


def main() -> int:
    """The command line of run_all.sh, which describes the options."""
    parser = argparse.ArgumentParser(prog="run_all.sh", allow_abbrev=False)
    parser.add_argument("--profile", default="sample")
    parser.add_argument("--data")
    parser.add_argument("--caller", default=os.getcwd(), help="the folder that a relative --data starts from")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--skip-bad", action="store_true")
    parser.add_argument("--executor")
    parser.add_argument("snakemake", nargs="*", help="Snakemake's own options, after --")
    given = parser.parse_args()
    if given.jobs is not None and given.jobs < 1:
        parser.error(f"--jobs {given.jobs}: expected at least 1")
    if given.executor and not importlib.util.find_spec(f"snakemake_executor_plugin_{given.executor.replace('-', '_')}"):
        plugin = f".venv/bin/pip install snakemake-executor-plugin-{given.executor}"
        parser.error(f"--executor {given.executor} needs Snakemake's plugin; {plugin}")
    for number in STOPPING:
        # under nohup, SIGHUP stays ignored; SIGINT, which a background job of a script ignores, does not: Snakemake
        # would inherit that, and it needs it to cancel jobs
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)

    try:
        return start(given)
    except (RunError, Problems) as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt as stopped:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 128 + stopped.args[0]


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt(number)
