"""Run one step of a run: its notebook, with its parameters, in its own folder.

Snakemake calls `python -m utils.step` (notebooks/Snakefile); the step's terminal lines, log, error and executed
notebook come from here.
"""

import argparse
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import sys
import threading
import time
from pathlib import Path

from utils.files import ROOT, write_json, write_text

OWNER = "HAND_BONE_RUN_PROCESS"
"""Environment variable: `<host> <process id>` of the run that the step belongs to."""


def end_with_run() -> None:
    """Watch the process that started the run and end this one when it is gone, so that no orphan goes on writing.

    Does nothing outside a run and on other machines (clusters stop their jobs themselves).
    """
    host, _, number = os.environ.get(OWNER, "").partition(" ")
    if host != socket.gethostname():
        return

    import psutil

    def watch() -> None:
        while True:
            try:
                if psutil.Process(int(number)).status() == psutil.STATUS_ZOMBIE:
                    os._exit(1)
            except psutil.NoSuchProcess:
                os._exit(1)
            time.sleep(0.5)

    threading.Thread(target=watch, daemon=True).start()


def run_step(run: Path, name: str, inputs: list[Path], threads: int) -> int:
    """Run step `name` of the run folder `run`; 0 if its notebook ended. The notebook may use `threads` CPU threads.

    `inputs` are the files that the result depends on. Where they differ from those of an earlier, unfinished attempt,
    its folder moves to `<run>/previous/`; where they are the same, the notebook goes on with what is there.
    Leaves the executed notebook and `log.txt` in the folder, and `failed.txt` with the error if there was one.
    """
    folder = run / name
    fingerprint = {str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in inputs}
    if folder.exists() and any(folder.iterdir()) and _read(folder / "inputs.json") != fingerprint:
        set_aside(run, name)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "inputs.json", fingerprint)
    (folder / "failed.txt").unlink(missing_ok=True)
    title = name.replace("/", " ")
    say(f"▶ {title}")
    start = time.monotonic()
    error = _execute(run, name, threads)
    minutes = (time.monotonic() - start) / 60
    if not error and not (folder / "metrics.json").exists():
        error = "the notebook ended without writing metrics.json"
    if error:
        write_text(folder / "failed.txt", error)
        say(f"✗ {title} failed after {minutes:.1f} min: {error.strip().splitlines()[-1][:200]}")
        return 1
    say(f"✓ {title} in {minutes:.1f} min")
    return 0


def set_aside(run: Path, name: str) -> None:
    """Move a step's folder to `<run>/previous/`, in place of an older one there."""
    old = run / "previous" / name
    shutil.rmtree(old, ignore_errors=True)
    old.parent.mkdir(parents=True, exist_ok=True)
    (run / name).rename(old)


def say(text: str) -> None:
    """One line with the time of day, written at once, whole among the lines of other steps."""
    _print(f"{time.strftime('%H:%M:%S')} {text}")


def _execute(run: Path, name: str, threads: int) -> str:
    """Execute the notebook; the error's text, "" if there was none."""
    os.environ |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "NO_ALBUMENTATIONS_UPDATE": "1"}
    os.environ |= {"JUPYTER_PREFER_ENV_PATH": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    os.chdir(ROOT)

    import papermill
    import yaml

    notebook = name.partition("/")[0]
    files = [run / "parameters" / f"{name}{ending}.yaml" for ending in ("", ".others")]
    parameters = {k: v for file in files for k, v in yaml.safe_load(file.read_text(encoding="utf-8")).items()}
    _log(run / name / "log.txt", name)
    try:
        papermill.execute_notebook(
            run / "notebooks" / f"{notebook}.ipynb",
            run / name / f"{notebook}.ipynb",
            parameters,
            kernel_name="python3",
            cwd=ROOT,
            progress_bar=False,
            log_output=True,
        )
    except papermill.PapermillExecutionError as error:
        lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in error.traceback]
        message = f"{error.ename}: {error.evalue}"
        return "\n".join(lines) if message.splitlines()[0] in lines[-1] else "\n".join([*lines, message])
    except Exception as error:  # a killed kernel, a full disk: whatever stops papermill itself
        return f"{type(error).__name__}: {error}"
    return ""


def _log(path: Path, name: str) -> None:
    """papermill's messages and the notebook's output go to the log file, what it prints also to the terminal."""
    notebook, _, fold_model = name.partition("/")
    short = f"{notebook[:2]} {fold_model}" if fold_model else notebook
    logger = logging.getLogger("papermill")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(file)
    os.dup2(file.stream.fileno(), sys.stderr.fileno())  # what libraries and a dying kernel write past papermill

    class Terminal(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            # stderr comes as WARNING; tables and figures, unlike what is printed, end without a newline
            if record.levelno == logging.INFO and text.endswith("\n"):
                for line in text.splitlines():
                    if line.strip():
                        _print(f"         {short} │ {line[:200]}")

    logger.addHandler(Terminal())


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def main() -> int:
    """`python -m utils.step --run FOLDER --threads N STEP INPUT…`, the inputs relative to the run's folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("step")
    parser.add_argument("inputs", nargs="*")
    given = parser.parse_args()
    end_with_run()
    return run_step(given.run, given.step, [given.run / name for name in given.inputs], given.threads)


if __name__ == "__main__":
    sys.exit(main())
