"""The command behind run_all.sh: check profile and data, start Snakemake, show the leaderboard and what failed."""

import argparse
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import Problems
from utils.files import ROOT, read_json, shown
from utils.pipeline.changes import RunError, copy_for_preview, prepare_data, prepare_run
from utils.pipeline.plugins import assign_plugins
from utils.pipeline.profile import Step, profile_path, read_profile, run_name, steps
from utils.pipeline.run_notebook import OWNER, say

SNAKEMAKE = "from utils.pipeline.run_notebook import end_with_run as w; w(); from snakemake.cli import main; main()"


def snakemake(run: Path, options: list[str], local: bool = True, output: int | None = None) -> tuple[int, str]:
    """Run notebooks/Snakefile in the run's folder; return its exit status and, with `output=PIPE`, what it printed.

    Snakemake gets a session of its own. When this process is stopped, a local Snakemake is killed together with its
    steps; one with a cluster's executor is interrupted instead, so that it cancels its jobs.
    """
    command = [sys.executable, "-c", SNAKEMAKE, "--snakefile", str(ROOT / "notebooks" / "Snakefile")]
    command += ["--directory", str(run), "--nolock", "--rerun-incomplete", "--keep-going"]
    command += ["--rerun-triggers", "mtime", *options]
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
    """Print the steps that a dry run of Snakemake would run, and why; return the exit status."""
    jobs = re.findall(r"^    output: (\S.*)/metrics\.json\n(?:    .*\n)*?    reason: (.*)$", printed, re.MULTILINE)
    print("\n".join(f"would run {step}: {reason}" for step, reason in sorted(jobs)) or "nothing to do")
    if status:
        print(printed)
    return status


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
    assign_plugins(planned)
    if given.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            copy = copy_for_preview(run, Path(folder))
            prepare_data(copy, data, profile)
            prepare_run(copy, profile, planned, data_dir)
            options = ["--dry-run", "--cores", "1", *(["--forceall"] if given.force else []), *given.snakemake]
            return preview(*snakemake(copy, options, output=subprocess.PIPE))
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / ".lock", timeout=5)  # a run that was just killed needs a moment to end
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"another process is working on {shown(run)}; wait for it to end, or stop it") from None
    with lock:
        began = time.monotonic()
        say(f"run {run.name}: {len(planned)} steps")
        prepare_data(run, data, profile)
        prepare_run(run, profile, planned, data_dir, given.force)
        jobs = given.jobs or profile.jobs
        options = ["--cores", str(jobs * profile.threads), "--quiet", "all"]
        if given.executor:
            options = ["--executor", given.executor, "--jobs", str(jobs)]
        status, _ = snakemake(run, options + given.snakemake, local=not given.executor)
        return finish(run, planned, status, (time.monotonic() - began) / 60)


def finish(run: Path, planned: list[Step], status: int, minutes: float) -> int:
    """Print the leaderboard, write the report, print what failed and the submission's path; return the exit status."""
    from utils.pipeline.leaderboard import show_leaderboard
    from utils.pipeline.report import write_report

    left = _not_done(run, planned)
    if len(left) < len(planned):
        print("", show_leaderboard(run), sep="\n")
        print(f"\nreport      {shown(write_report(run))}")
    submission = read_json(run / "run.json")["submission"]
    if submission and not left:
        print(f"submission  {submission}")
    failed = [name for name in left if (run / name / "failed.txt").exists()]
    waiting = [name for name in left if name not in failed]
    if failed:
        print(f"\nFAILED after {minutes:.1f} min; the same command tries again from there")
        for name in failed:
            error = (run / name / "failed.txt").read_text(encoding="utf-8").strip().splitlines()[-12:]
            print(f"✗ {name}", *(f"    {line[:400]}" for line in error), sep="\n")
            print(f"    notebook {shown(run / name / name.partition('/')[0])}.ipynb")
            print(f"    log      {shown(run / name / 'log.txt')}")
        print(f"  not run, because they need it: {', '.join(waiting)}" if waiting else "", flush=True)
        return 1
    if status:
        logs = sorted((run / ".snakemake" / "log").glob("*.log"))
        text = logs[-1].read_text(encoding="utf-8").strip().splitlines()[-20:] if logs else []
        raise RunError("\n".join([f"Snakemake ended with status {status}; not done: {', '.join(left)}", *text]))
    say(f"done in {minutes:.1f} min" + (f"; left: {', '.join(left)}" if left else ""))
    return 0


def main() -> int:
    """The command line of run_all.sh, which describes the options."""
    parser = argparse.ArgumentParser(prog="run_all.sh", allow_abbrev=False)
    parser.add_argument("--profile", default="sample")
    parser.add_argument("--data")
    parser.add_argument("--caller", default=os.getcwd(), help="the folder that a relative --data starts from")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--executor")
    parser.add_argument("snakemake", nargs="*", help="Snakemake's own options, after --")
    given = parser.parse_args()
    if given.jobs is not None and given.jobs < 1:
        parser.error(f"--jobs {given.jobs}: expected at least 1")
    if given.executor and not importlib.util.find_spec(f"snakemake_executor_plugin_{given.executor.replace('-', '_')}"):
        plugin = f".venv/bin/pip install snakemake-executor-plugin-{given.executor}"
        parser.error(f"--executor {given.executor} needs Snakemake's plugin; {plugin}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # a background job of a script ignores SIGINT, and Snakemake, which needs it to cancel jobs, would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        return start(given)
    except (RunError, Problems) as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


def _not_done(run: Path, planned: list[Step]) -> list[str]:
    """Steps without a result, and the steps after them, whose metrics.json is out of date and therefore deleted."""
    left: list[str] = []
    for step in planned:
        metrics = run / step.name / "metrics.json"
        if not metrics.exists() or set(step.after) & set(left):
            metrics.unlink(missing_ok=True)
            left.append(step.name)
    return left


def _stop(process: subprocess.Popen, local: bool) -> None:
    """End Snakemake: kill it with all its local steps, or interrupt it, so that it cancels its jobs on the cluster."""
    import psutil

    if local:
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            for each in family:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
    else:
        process.send_signal(signal.SIGINT)
    process.wait()
