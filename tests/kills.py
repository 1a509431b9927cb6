"""Kill a small real run at random moments and start it again: the same submission, nothing repeated, nothing left over.

    python -m tests.kills --number 40 [--seed 0] [--each 1]

One undisturbed run is the reference. Each of `number` fresh runs is then killed `each` times: at a random moment, one
of its processes by one of four signals. The same command is started until it ends with status 0, three times at most.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from utils.files import ROOT, WORKS_FOR
from utils.pipeline.leftovers import kernel_folder

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
PROCESSES = {
    "run_all.sh": "utils.pipeline --profile",  # which becomes this process by exec
    "Snakemake": "snakemake.cli",
    "papermill": "utils.pipeline.run_notebook",
    "kernel": "ipykernel_launcher",
}
"""The processes that are killed, and what their command lines contain."""

PROFILE = """
sample: {folder: data/tiny, train_people: 4, test_people: 1, image_size: 128}
threads: 1
jobs: 2
parameters: {n_folds: 2, seed: 0, plugins: [faulty.py]}
folds: [0, 1]
train: {image_size: 64, epochs: 3, batch_size: 2, precision: 32-true, loss: bce_dice + 0.5*faulty,
        start_from_prior: false}   # so that masks are not empty after six steps
models:
  thin: {architecture: deeplabv3plus, encoder: tu-mobilenetv3_small_050, model_options: {decoder_channels: 16}}
"""

PLUGIN = '''
"""A loss that fails in the step that the file `broken` names."""
import os
from pathlib import Path

from utils.registry import register_loss


@register_loss("faulty")
def faulty(logits, labels):
    broken = Path(__file__).with_name("broken")
    if broken.exists() and os.environ.get("HAND_BONE_FOLDER", "").endswith(broken.read_text()):
        raise RuntimeError("this part is broken")
    return ((logits.sigmoid() - labels) ** 2).mean()
'''


@dataclass(frozen=True)
class Kill:
    """What was killed: seconds after the start, steps at work, process, signal."""

    moment: float
    steps: str
    process: str
    signal: signal.Signals


class SmallRun:
    """A copy of the repository with a profile of two fold models, made to be killed."""

    def __init__(self, root: Path):
        self.root = root / "a repository"
        shutil.copytree(ROOT / "utils", self.root / "utils", ignore=shutil.ignore_patterns("__pycache__"))
        notebooks = shutil.ignore_patterns("profiles", ".*")
        shutil.copytree(ROOT / "notebooks", self.root / "notebooks", ignore=notebooks)
        profiles = self.root / "notebooks" / "profiles"
        profiles.mkdir()
        (profiles / "tiny.yaml").write_text(PROFILE)
        (self.root / "faulty.py").write_text(PLUGIN)
        self.run = self.root / "outputs" / "tiny"
        self.submission = self.root / "submissions" / "tiny.csv"
        self.temporary = root / "temporary"
        self.printed = root / "printed.txt"

    def clear(self) -> None:
        """Forget the run, but not its data."""
        for folder in (self.root / "outputs", self.root / "submissions", self.temporary):
            shutil.rmtree(folder, ignore_errors=True)
        self.temporary.mkdir()

    def begin(self) -> subprocess.Popen:
        """Start the command; what it prints is appended to a file, which a process left behind can't hold up."""
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "OMP_NUM_THREADS")}
        with self.printed.open("a") as printed:
            return subprocess.Popen(
                [sys.executable, "-m", "utils.pipeline", "--profile", "tiny"],
                cwd=self.root,
                env=environment | {"TMPDIR": str(self.temporary), "NO_ALBUMENTATIONS_UPDATE": "1"},
                stdout=printed,
                stderr=printed,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # also where nohup started us
            )

    def finish(self, process: subprocess.Popen | None = None, starts: int = 3) -> tuple[int, int]:
        """Wait for the run, and start it again until its status is 0; the last status and the number of starts."""
        status = process.wait(900) if process else 1
        number = 0
        while status and number < starts:
            status, number = self.begin().wait(900), number + 1
        return status, number

    def results(self) -> dict[str, bytes]:
        """The files of the run, with the content of those in which every bit is determined."""
        folders = (self.root / "outputs", self.root / "submissions")
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        others = {".snakemake", "previous"}
        files = [path for path in files if not others & {*path.parts} and "tfevents" not in path.name]
        exact = [path for path in files if path.suffix in (".npz", ".safetensors") or "submissions" in path.parts]
        return {str(path.relative_to(self.root)): path.read_bytes() if path in exact else b"" for path in files}

    def stop(self) -> None:
        """End whatever still runs, for a script or test that ends early."""
        for process, _, _ in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def trained(self) -> dict[str, int]:
        """The number of epochs that each finished training has printed so far, repeated ones included."""
        logs = {path.parent: path.parent / "log.txt" for path in self.run.glob("03_train/*/*/metrics.json")}
        return {str(folder): len(re.findall(r"epoch +\d+/", log.read_text())) for folder, log in logs.items()}

    def processes(self) -> Iterator[tuple[psutil.Process, str, str]]:
        """Every process of the run: itself, its command line, and the folder it works for."""
        for process in psutil.process_iter():
            try:
                command, place = " ".join(process.cmdline()), process.environ().get(WORKS_FOR, "")
                if str(self.root) in (place + process.cwd()) and process.status() != psutil.STATUS_ZOMBIE:
                    yield process, command, place.removeprefix(f"{self.run}").strip("/")
            except (psutil.Error, OSError):
                continue

    def disturb(self, process: subprocess.Popen, moment: float, name: str, number: signal.Signals) -> Kill | None:
        """Kill one process, `moment` seconds after the start or as soon as there is one; None if the run ended."""
        began = time.monotonic()
        time.sleep(moment)
        while process.poll() is None:
            there = sorted(self.processes(), key=lambda found: found[0].pid)
            steps = " ".join(sorted({place for _, command, place in there if "ipykernel" in command}))
            for victim, command, _ in there:
                if PROCESSES[name] in command and "bash" not in command.split()[0]:
                    victim.send_signal(number)
                    return Kill(time.monotonic() - began, steps, name, number)
            time.sleep(0.05)
        return None

    def differences(self, reference: dict[str, bytes], finished: dict[str, int]) -> list[str]:
        """What is not as after an undisturbed run, whose results are `reference`; see `trained` for `finished`."""
        found, results = [], self.results()
        for title, names in (
            ("left over", results.keys() - reference.keys()),
            ("missing", reference.keys() - results.keys()),
            ("differs", {n for n in results.keys() & reference.keys() if results[n] != reference[n]}),
        ):
            found += [f"{title}: {name}" for name in sorted(names)]
        for path in [*self.run.rglob("*.json"), *self.run.rglob("*.ipynb")]:
            try:
                json.loads(path.read_text())
            except ValueError:
                found.append(f"half written: {path.name}")
        now = self.trained()
        found += [f"trained again: {folder}" for folder, epochs in finished.items() if now.get(folder) != epochs]
        end = time.monotonic() + 5
        while (alive := [command for _, command, _ in self.processes()]) and time.monotonic() < end:
            time.sleep(0.1)
        found += [f"still alive: {command[:150]}" for command in alive]
        try:
            with FileLock(self.run / ".lock", timeout=0):
                pass
        except Timeout:
            found.append("the run is still locked")
        found += [f"connection files of kernels: {folder}" for folder in [kernel_folder(self.run)] if folder.exists()]
        left = [path for path in self.temporary.rglob("*") if path.is_file() and path.suffix != ".lock"]
        return found + [f"temporary file: {path.relative_to(self.temporary)}" for path in left]


def killed_run(small: SmallRun, rng: random.Random, seconds: float, each: int) -> tuple[list[Kill], list[str], int]:
    """One fresh run, killed `each` times; the kills, the finished trainings at each, and the number of starts after."""
    kills, finished, starts = [], {}, 0
    process = small.begin()
    while len(kills) < each:
        left = seconds * (1 - len(kills) / each)  # every kill in its part of the run
        name, number = rng.choice(list(PROCESSES)), rng.choice(SIGNALS)
        kill = small.disturb(process, rng.uniform(0, left / (each - len(kills))), name, number)
        if kill is None:
            break
        kills.append(kill)
        finished |= small.trained()
        if len(kills) < each and process.poll() is None and name != "run_all.sh":
            continue  # a killed step is tried once more by the same run
        if len(kills) < each:
            process.wait(900)
            process, starts = small.begin(), starts + 1
    status, more = small.finish(process)
    return kills, finished, starts + more if not status else -1


def main() -> int:
    """Print a table of kills and what came of them; the exit status is 1 if anything differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--number", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=1)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with ExitStack() as stack:
        small = SmallRun(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kills-"))))
        stack.callback(small.stop)
        small.clear()
        began = time.monotonic()
        status, _ = small.finish(starts=1)
        seconds = time.monotonic() - began
        if status:
            print(small.printed.read_text())
            return 1
        reference = small.results()
        print(f"seed {given.seed}; an undisturbed run takes {seconds:.0f} s and leaves {len(reference)} files")
        print(
            f"{'':>3}  {'second':>6}  {'killed':<10}  {'by':<7}  {'starts':>6}  {'result':<6}  steps at work",
            flush=True,
        )
        total, number = 0, 0
        while number < given.number:
            small.clear()
            small.printed.unlink()
            kills, finished, starts = killed_run(small, rng, seconds, given.each)
            if len(kills) < given.each:
                continue  # it was done before; a new draw
            number += 1
            differences = small.differences(reference, finished)
            total += len(differences)
            for kill in kills:
                result = "same" if not differences else "DIFFERS"
                row = f"{kill.moment:6.1f}  {kill.process:<10}  {kill.signal.name:<7}  {starts:>6}  {result:<6}"
                print(f"{number:>3}  {row}  {kill.steps or '-'}", flush=True)
            print("".join(f"       {line}\n" for line in differences), end="", flush=True)
            if differences:
                print(small.printed.read_text()[-6000:])
        print(f"{total} differences")
        return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
