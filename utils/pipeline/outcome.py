"""What came of a run: the steps that failed and why, the vote without them, leaderboard, report and submission."""

import time
from collections.abc import Callable
from pathlib import Path

from utils.data.records import NAME, Ensemble, read_record
from utils.files import ROOT, shown
from utils.pipeline.changes import prepare_partial
from utils.pipeline.run_notebook import say
from utils.pipeline.steps import Step, submitting


def untried(run: Path, planned: list[Step], left: list[str]) -> list[str]:
    """Steps of `left` that have all they need and did not fail by themselves: never begun, or killed from outside."""
    return [step.name for step in _causes(planned, left) if not (run / step.name / "failed.txt").exists()]


def missing_fold_models(run: Path, planned: list[Step], left: list[str]) -> dict[str, str]:
    """The fold models that can't vote, such as unet/fold0, with the reason; {} where none or all are missing."""
    steps, missing = {step.name: step for step in planned}, {}
    voters = submitting(planned).after
    for voter in [name for name in voters if name in left]:
        cause = voter
        while needed := [name for name in steps[cause].after if name in left]:
            cause = needed[0]
        missing[voter.partition("/")[2]] = f"{cause} failed: {_error(run, cause).splitlines()[-1][:200]}"
    return missing if len(missing) < len(voters) else {}


def finish(run: Path, planned: list[Step], status: int, left: list[str], minutes: float) -> int:
    """Print what failed, then leaderboard, report and submission; return the exit status, 0 if nothing failed.

    status: Snakemake's. left: the steps that are not done. A leaderboard or report that can't be made is one more
    failure, which hides nothing else.
    """
    failed = bool(status and left)
    if failed:
        _print_failures(run, planned, left, minutes)
    if any((run / step.name / NAME).exists() for step in planned):
        from utils.pipeline.leaderboard import show_leaderboard
        from utils.pipeline.report import write_report

        failed |= not _printed("the leaderboard", lambda: f"\n{show_leaderboard(run)}\n")
        failed |= not _printed("the report", lambda: f"report      {shown(write_report(run))}")
    last = submitting(planned)
    made = _submission(run, last, time.time() - 60 * minutes)
    if made and made.submission:
        missing = made.missing
        partial = f"  PARTIAL: {len(last.after) - len(missing)} of {len(last.after)} fold models" if missing else ""
        print(f"submission  {last.parameters['submission']}{partial}", flush=True)
    if not failed:
        say(f"done in {minutes:.1f} min" + (f"; left: {', '.join(left)}" if left else ""))
    return int(failed)


def vote_without(run: Path, ensemble: Step, missing: dict[str, str]) -> str:
    """Prepare the vote of the fold models that are there, and say so; the file that Snakemake is to make."""
    there = len(ensemble.after) - len(missing)
    say(f"PARTIAL submission: {there} of {len(ensemble.after)} fold models vote, all with the same weight")
    for name, reason in missing.items():
        print(f"         without {name}: {reason}")
    prepare_partial(run, ensemble, missing)
    return f"{ensemble.name}/{NAME}"


def _submission(run: Path, last: Step, began: float) -> Ensemble | None:
    """What the last step says about the submission it made, None if it made none. (A baseline has nothing missing.)

    The file beside the CSV is written as soon as the CSV has passed its check, so a figure that fails after that does
    not cost the submission. began: when this run began, in seconds of `time.time()`.
    """
    if not last.parameters.get("submission"):
        return None
    beside = (ROOT / last.parameters["submission"]).with_suffix(".json")
    of_now = read_record(beside, Ensemble) if beside.exists() and beside.stat().st_mtime > began else None
    return read_record(run / last.name, Ensemble) or of_now


def _causes(planned: list[Step], left: list[str]) -> list[Step]:
    """The steps that are not done although all they need is."""
    return [step for step in planned if step.name in left and not set(step.after) & set(left)]


def _error(run: Path, name: str) -> str:
    """The error of a step, at least one line."""
    try:
        text = (run / name / "failed.txt").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        text = ""
    return text or "it was killed from outside, or never begun"


def _print_failures(run: Path, planned: list[Step], left: list[str], minutes: float) -> None:
    print(f"\nFAILED after {minutes:.1f} min; the same command tries again from there")
    causes = [step.name for step in _causes(planned, left)]
    for name in causes:
        print(f"✗ {name}", *(f"    {line[:400]}" for line in _error(run, name).splitlines()[-12:]), sep="\n")
        print(f"    notebook {shown(run / name / name.partition('/')[0])}.ipynb")
        print(f"    log      {shown(run / name / 'log.txt')}")
    if waiting := [name for name in left if name not in causes]:
        print(f"  waiting for them: {', '.join(waiting)}")
    if untried(run, planned, left):
        logs = sorted((run / ".snakemake" / "log").glob("*.log"))
        text = logs[-1].read_text(encoding="utf-8", errors="replace").strip().splitlines()[-20:] if logs else []
        print("the last lines of Snakemake's log:", *(f"    {line[:400]}" for line in text), sep="\n")


def _printed(what: str, make: Callable[[], str]) -> bool:
    try:
        print(make(), flush=True)
    except Exception as error:  # nothing that only shows results may hide the others
        print(f"{what} could not be made: {type(error).__name__}: {error}", flush=True)
        return False
    return True
