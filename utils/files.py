"""Paths from the repository, files written whole or not at all, progress lines, errors that list all problems."""

import difflib
import errno
import glob
import json
import os
import shutil
import subprocess
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

if TYPE_CHECKING:
    import pandas as pd
    from numpy.lib.npyio import NpzFile

ROOT = Path(__file__).resolve().parent.parent
SECONDS_BETWEEN_LINES = 20.0
WORKS_FOR = "HAND_BONE_FOLDER"
"""Environment variable: the folder, of a run or of one of its steps, that a process works for."""
PART = f".{'[0-9a-f]' * 32}"
"""Pattern of what makes the names of unfinished files and folders their writer's own."""
LARGEST_ARRAYS = 2**31
"""Bytes that the arrays of one .npz file may have when unpacked; those written here have some megabytes."""


FAMILIAR = {"learning_rate": "lr", "backbone": "encoder", "weights": "encoder_weights", "k_folds": "n_folds"}
"""Names that other libraries use, which a comparison of spellings would not find, and the names here."""


class Problems(ValueError):
    """Something can't be used: a title, then one line per problem. Notebooks show it without a traceback.

    problems: all of them, each once; the message lists the first `shown`.
    """

    def __init__(self, title: str, problems: Iterable[str], shown: int = 20):
        self.problems = list(dict.fromkeys(problems))
        more = [f"… and {len(self.problems) - shown} more"] if len(self.problems) > shown else []
        super().__init__("\n".join([title, *(f"  - {p}" for p in [*self.problems[:shown], *more])]))

    def _render_traceback_(self) -> list[str]:  # called by IPython: show only the message
        return [f"{type(self).__name__}: {self}"]


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Up to three of `names` that `name` was probably meant to be, the most likely first."""
    by_lower = {n.lower(): n for n in names}
    meant = FAMILIAR.get(name, name).lower()
    close = difflib.get_close_matches(meant, by_lower, n=3, cutoff=0.7)
    return [by_lower[n] for n in close or difflib.get_close_matches(meant, by_lower, n=1, cutoff=0)]


def unknown(what: str, name: str, names: Iterable[str]) -> str:
    """One line for a name that is not among `names`: what was found, the nearest names, and all names."""
    names = list(names)
    more = f" and {len(names) - 100} more" if len(names) > 100 else ""
    hint = f"did you mean {' or '.join(nearest(name, names))}? " if names else ""
    return f"unknown {what} {name!r}: {hint}There are {', '.join(names[:100]) or 'none'}{more}"


class DiskFullError(OSError):
    """A file could not be written because its disk is full; the file that was there before is kept."""


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

    A reader sees the old file or the new one, never a part of it, even if the writer is killed. Raises DiskFullError
    where there is no space for it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part{path.suffix}")
    with temporarily(temporary, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)


@contextmanager
def temporarily(part: Path, path: Path) -> Iterator[None]:
    """Remove the file or folder `part`, if it is still there, when its writer has moved it to `path` or has failed.

    Raises DiskFullError with the size of what is left of the disk if that is what the writer failed of.
    """
    try:
        yield
    except Exception as error:
        if not _no_space(error):
            raise
        written = sum(f.stat().st_size for f in [part, *part.rglob("*")] if f.is_file())
        _remove(part)
        folder = next(parent for parent in path.parents if parent.exists())
        raise DiskFullError(
            f"{shown(path)} can't be written: the disk is full. It needs more than {written / 1e6:.1f} MB, and "
            f"{shutil.disk_usage(folder).free / 1e6:.1f} MB are left there. What was there before is kept: delete what "
            "is not needed (a run's cache/ and previous/ come first), then start the same command again"
        ) from error
    finally:
        _remove(part)


def delete_temporary(folder: str | Path, name: str = "") -> None:
    """Delete what writers that were killed inside `replacing` left: of the file `name` in `folder`, or of all below it.

    Nobody may be writing there at the time.
    """
    pattern = f".{glob.escape(name)}{PART}.part*" if name else f"**/.*{PART}.part*"
    for path in list(Path(folder).glob(pattern)):
        _remove(path)


@contextmanager
def replacing_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a new, empty folder beside `folder`; on success it takes `folder`'s place, with everything in it.

    Raises DiskFullError where there is no space for it; the older folder is kept. If the writer is killed,
    `restore_folder` brings the older one back.
    """
    folder = Path(folder)
    _restore_old(folder)
    own = f".{folder.name}.{uuid.uuid4().hex}"  # another writer, such as a job that should have ended, has other names
    temporary, old = folder.with_name(f"{own}.part"), folder.with_name(f"{own}.old")
    with temporarily(temporary, folder):
        temporary.mkdir(parents=True)
        yield temporary
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    _remove(old)


def restore_folder(folder: str | Path) -> None:
    """End what a killed `replacing_folder` began: the older folder goes back to its place if no newer one is there.

    For the process that writes the folder; another one might interrupt it between its two renames.
    """
    _restore_old(Path(folder))
    for unfinished in _beside(Path(folder), "part"):
        _remove(unfinished)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_if_changed(path: str | Path, text: str) -> None:
    """`write_text`, unless the file holds this text already: then its time, which later steps look at, stays."""
    path = Path(path)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def write_table(path: str | Path, table: "pd.DataFrame", index: bool = True, **options: Any) -> None:
    """Write `table` as CSV, whole or not at all; `index`: with its index as first columns; options: of `to_csv`."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=index, **options)


def read_table(path: str | Path, **options: Any) -> "pd.DataFrame":
    """The CSV that `write_table` wrote; options: of `read_csv`.

    Identifiers are text, and only empty cells are missing values: a person may be called NA, None or null.
    """
    import pandas as pd

    text = {"ID": str, "image_name": str}
    return pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""], **options)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all; NumPy scalars become plain numbers."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n")


def read_json(path: str | Path, *missing: Any) -> Any:
    """The value in a JSON file; if there is no such file, the second argument, or FileNotFoundError without one."""
    if missing and not Path(path).exists():
        return missing[0]
    return json.loads(Path(path).read_text(encoding="utf-8"))


def kept_result(
    path: str | Path, setting: dict[str, Any], command: Sequence[str], seconds: float | None = None
) -> dict[str, Any]:
    """The JSON object in the last line that `command` prints, run in a process of its own from the repository's root.

    It is kept in `path` with `setting`, and the command is not run again while the setting is the same. Raises
    RuntimeError with the end of what a failed command printed, or after so many seconds.
    """
    found = read_json(path, {})
    if any(found.get(key) != value for key, value in setting.items()):
        name = " ".join(filter(None, map(str, command[1:])))
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{name} was stopped after {seconds:.0f} s") from error
        if done.returncode:
            raise RuntimeError(f"{name} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
        found = json.loads(done.stdout.splitlines()[-1]) | setting
        write_json(path, found)
    return found


@contextmanager
def open_arrays(path: str | Path) -> Iterator["NpzFile"]:
    """The arrays of an .npz file, each read when it is asked for; no pickled object is loaded.

    Raises OSError for a file that can't be opened, and ValueError naming the file for one that is damaged, holds Python
    objects or unpacks to more than LARGEST_ARRAYS.
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            size = sum(member.file_size for member in arrays.zip.infolist())
            if size > LARGEST_ARRAYS:
                raise ValueError(f"it unpacks to {size / 1e9:.1f} GB, expected less than {LARGEST_ARRAYS / 1e9:.1f} GB")
            yield arrays
    except (ValueError, TypeError, AttributeError, LookupError, EOFError, MemoryError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{shown(path)} is damaged ({error})") from error


def _restore_old(folder: Path) -> None:
    for old in _beside(folder, "old"):
        if not folder.exists():
            old.rename(folder)
        _remove(old)


def _beside(folder: Path, ending: str) -> list[Path]:
    """What writers of a folder left beside it; those of earlier versions all used one name."""
    names = f".{glob.escape(folder.name)}{PART}.{ending}", f".{glob.escape(folder.name)}.{ending}"
    return [path for name in names for path in folder.parent.glob(name)]


def _no_space(error: BaseException | None) -> bool:
    """Whether a full disk is the reason of an error; torch and safetensors raise errors of their own for it."""
    while error is not None:
        if isinstance(error, DiskFullError) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _remove(path: Path) -> None:
    """Delete a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return shown(value)
    raise TypeError(f"{type(value).__name__} can't be written as JSON: {value!r}")
