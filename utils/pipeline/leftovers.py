"""What a run may leave behind, processes and temporary files; both end with it, or with its next start."""

import hashlib
import os
import shutil
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

from utils.files import ROOT, WORKS_FOR, delete_temporary, write_text

OWNER = "HAND_BONE_RUN_PROCESS"
"""Environment variable: `<host> <process id> <start>` of the process that started the run."""
START = ".start"
"""File in a run's folder that names its latest start."""


def new_start(run: Path) -> None:
    """Name this start of a run: jobs of an earlier one that still live on other machines end, see `end_with_run`."""
    write_text(run / START, uuid.uuid4().hex)


def owner_of(run: Path) -> dict[str, str]:
    """The environment variable that a process gets from the one that starts the run."""
    return {OWNER: f"{socket.gethostname()} {os.getpid()} {_latest_start(run)}"}


def end_with_run(run: Path | None = None) -> None:
    """End this process when the one that started the run has ended, so that no left-over process keeps writing.

    On another machine, that of a cluster's job, it can't be seen; there, with `run`, the process ends when the run is
    started again, or at once if it has been. Does nothing outside a run.
    """
    host, number, start = (os.environ.get(OWNER, "").split() + [""] * 3)[:3]
    if host == socket.gethostname():
        threading.Thread(target=_watch_process, args=(int(number),), daemon=True).start()
    elif host and run and start:
        threading.Thread(target=_watch_start, args=(run, start), daemon=True).start()


def _watch_process(number: int) -> None:
    import psutil

    with suppress(psutil.NoSuchProcess):
        owner = psutil.Process(number)
        while owner.is_running() and owner.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.5)
    os._exit(1)


def _watch_start(run: Path, start: str) -> None:
    while _latest_start(run) in ("", start):
        time.sleep(1)
    end_processes(Path(os.environ.get(WORKS_FOR, run)))  # its kernel, which would go on
    os._exit(1)


def _latest_start(run: Path) -> str:
    with suppress(OSError):
        return (run / START).read_text(encoding="utf-8").strip()
    return ""


def end_processes(folder: Path) -> None:
    """Kill every other process of this user and machine that works for a run or a step, and wait until it is gone.

    They are known by the environment variable WORKS_FOR, which each process passes on to those it starts: Snakemake, a
    notebook's kernel, its loader workers.
    """
    import psutil

    folder = folder.resolve()

    def works_here(process: psutil.Process) -> bool:
        with suppress(psutil.Error, OSError):
            place = process.environ().get(WORKS_FOR)
            return bool(place) and Path(place).is_relative_to(folder) and process.pid != os.getpid()
        return False

    for _ in range(5):  # again, for what was just being started
        found = [process for process in psutil.process_iter() if works_here(process)]
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=5)
        if not found:
            return


def kernel_folder(run: Path) -> Path:
    """Where the connection files of the run's kernels are; a process that is killed would leave its file for ever."""
    from jupyter_core.paths import jupyter_runtime_dir

    return Path(jupyter_runtime_dir()) / f"hand-bone-{hashlib.sha256(bytes(run.resolve())).hexdigest()[:16]}"


def clean_up(run: Path) -> None:
    """End the run's processes and delete its temporary files; for before it starts and after it ended."""
    end_processes(run)
    shutil.rmtree(kernel_folder(run), ignore_errors=True)
    delete_temporary(run)
    delete_temporary(ROOT / "submissions", f"{run.name}.csv")
    delete_temporary(ROOT / "submissions", f"{run.name}.json")
