"""Helpers: paths relative to the repository, files that are written whole or not at all, progress lines."""

import glob
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SECONDS_BETWEEN_LINES = 20.0
WORKS_FOR = "HAND_BONE_FOLDER"
"""Environment variable: the folder, of a run or of one of its steps, that a process works for."""


def resolve(path: str | Path) -> Path:
    """Absolute path of a parameter: relative ones start at the repository root, wherever the notebook runs."""
    return Path(os.path.normpath(ROOT / Path(path).expanduser()))


def shown(path: str | Path) -> str:
    """A path as text for messages: relative to the repository if it lies inside."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def interactive() -> bool:
    """Whether this notebook is open in an editor (JupyterLab, VS Code) and not run by papermill or nbconvert."""
    return "JPY_SESSION_NAME" in os.environ or "VSCODE_PID" in os.environ


def cores() -> int:
    """Number of CPU cores that this process may use; on a cluster, a job often gets only some of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Progress:
    """Callable (done, of): one tqdm bar in JupyterLab, a printed line at most every 20 seconds under papermill."""

    def __init__(self, title: str):
        self.title, self.bar = title, None
        self.started = self.printed = time.monotonic()

    def __call__(self, done: int, of: int) -> None:
        """Show that `done` of `of` items are finished."""
        if interactive():
            from tqdm.auto import tqdm

            self.bar = self.bar or tqdm(total=of, desc=self.title)
            self.bar.update(done - self.bar.n)
            return
        now = time.monotonic()
        if now - self.printed >= SECONDS_BETWEEN_LINES:
            self.printed = now
            left = (now - self.started) / done * (of - done)
            print(f"{self.title}: {done} of {of}, {left:.0f} s left", flush=True)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield the path of a new file beside `path`; on success that file takes `path`'s place in one rename.

    A reader sees the old file or the new one, never a part of it, even if the writer is killed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def delete_temporary(folder: str | Path, name: str = "") -> None:
    """Delete what writers that were killed inside `replacing` left: of the file `name` in `folder`, or of all below it.

    Nobody may be writing there at the time.
    """
    pattern = f".{glob.escape(name)}.{'[0-9a-f]' * 32}.part*" if name else f"**/.*.{'[0-9a-f]' * 32}.part*"
    for path in Path(folder).glob(pattern):
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all; NumPy scalars become plain numbers."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n")


def read_json(path: str | Path, *missing: Any) -> Any:
    """The value in a JSON file; if there is no such file, the second argument, or FileNotFoundError without one."""
    if missing and not Path(path).exists():
        return missing[0]
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return shown(value)
    raise TypeError(f"{type(value).__name__} can't be written as JSON: {value!r}")
