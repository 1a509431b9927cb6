"""Run one step of a run: its notebook, with its parameters, in its own folder.

Snakemake calls `python -m utils.pipeline.run_notebook` (see notebooks/Snakefile). It prints the step's lines in the
terminal and writes its log, its error and the executed notebook.
"""

import argparse
import io
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from utils.data.records import NAME
from utils.files import ROOT, read_json, write_text
from utils.pipeline.leftovers import end_processes, end_with_run, kernel_folder
from utils.pipeline.up_to_date import digests, made_from, note_inputs


def run_step(run: Path, name: str, threads: int) -> int:
    """Run step `name` of the run folder `run` with `threads` CPU threads; return 0 if it succeeded, 1 if it failed.

    If its inputs differ from those of an earlier attempt, its folder moves to `<run>/previous/`; if they are the same,
    the notebook continues with the files that are there. The executed
    notebook and `log.txt` are written to the step's folder, and `failed.txt` with the error if there was one.
    metrics.json, which the notebook writes last, says that the step is done, whatever happens after it.
    """
    folder = run / name
    end_processes(folder)  # the kernel of an attempt whose own process was killed
    now = digests(run, read_json(run / "run.json")["steps"][name]["inputs"])
    if folder.exists() and any(folder.iterdir()) and made_from(run, name) != now:
        set_aside(run, name)
    note_inputs(run, name, now)
    for old in ("failed.txt", NAME):
        (folder / old).unlink(missing_ok=True)
    title = name.replace("/", " ")
    say(f"▶ {title}")
    start = time.monotonic()
    error = _execute(run, name, threads)
    minutes = (time.monotonic() - start) / 60
    if not (folder / NAME).exists():
        error = error or f"the notebook ended without writing {NAME}"
        write_text(folder / "failed.txt", error)
        say(f"✗ {title} failed after {minutes:.1f} min: {error.strip().splitlines()[-1][:200]}")
        return 1
    say(f"✓ {title} in {minutes:.1f} min")
    return 0


def set_aside(run: Path, name: str) -> None:
    """Move a step's folder, or another file of the run, to `<run>/previous/`; an older one there is replaced."""
    old = run / "previous" / name
    shutil.rmtree(old, ignore_errors=True)
    old.parent.mkdir(parents=True, exist_ok=True)
    (run / name).rename(old)


def say(text: str) -> None:
    """Print one line with the time of day."""
    _print(f"{time.strftime('%H:%M:%S')} {text}")


def _execute(run: Path, name: str, threads: int) -> str:
    """Execute the notebook; return the text of the error, "" if there was none."""
    os.environ |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "NO_ALBUMENTATIONS_UPDATE": "1"}
    os.environ |= {"JUPYTER_PREFER_ENV_PATH": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    os.chdir(ROOT)

    import papermill
    import yaml
    from papermill.iorw import LocalHandler, papermill_io

    class Whole(LocalHandler):
        """Writes notebooks whole or not at all: a killed step leaves one that can be read."""

        def write(self, text: str, path: str) -> None:
            write_text(path, text)

    papermill_io.register(str(run), Whole())
    with suppress(OSError):  # without a home folder, they stay in the system's temporary folder
        kernel_folder(run).mkdir(parents=True, exist_ok=True)
        tempfile.tempdir = str(kernel_folder(run))  # of this process, not of the kernel

    notebook, _, fold_model = name.partition("/")
    files = [run / "parameters" / f"{name}{ending}.yaml" for ending in ("", ".others")]
    parameters = {k: v for file in files for k, v in yaml.safe_load(file.read_text(encoding="utf-8")).items()}
    _log_to(run / name / "log.txt")
    try:
        papermill.execute_notebook(
            run / "notebooks" / f"{notebook}.ipynb",
            run / name / f"{notebook}.ipynb",
            parameters,
            kernel_name="python3",
            cwd=ROOT,
            progress_bar=False,
            log_output=True,
            stdout_file=_Terminal(f"{notebook[:2]} {fold_model}".strip()),
        )
    except papermill.PapermillExecutionError as error:
        lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in error.traceback]
        message = f"{error.ename}: {error.evalue}"
        return "\n".join(lines if lines and message.splitlines()[0] in lines[-1] else [*lines, message])
    except Exception as error:  # whatever stops papermill itself, such as a killed kernel or a full disk
        return f"{type(error).__name__}: {error}"
    return ""


class _Terminal(io.TextIOBase):
    """Prints a notebook's output in the terminal, each line after the short name of its step."""

    def __init__(self, step: str):
        self.step = step

    def write(self, text: str) -> int:
        for line in filter(str.strip, text.splitlines()):
            _print(f"         {self.step} │ {line[:200]}")
        return len(text)


def _log_to(path: Path) -> None:
    """Write papermill's messages and all output of the notebook to this file."""
    file = path.open("a", encoding="utf-8")
    os.dup2(file.fileno(), sys.stderr.fileno())  # what libraries and a crashing kernel write to it directly
    logging.basicConfig(stream=file, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    logging.getLogger("papermill").setLevel(logging.INFO)


def _print(line: str) -> None:
    """Print a line in one piece, so that lines of other steps can't break into it."""
    print(f"{line}\n", end="", flush=True)


def main() -> int:
    """`python -m utils.pipeline.run_notebook --run FOLDER --threads N STEP`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("step")
    given = parser.parse_args()
    end_with_run(given.run)
    return run_step(given.run, given.step, given.threads)


if __name__ == "__main__":
    sys.exit(main())
