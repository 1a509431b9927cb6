"""Notebooks executed one after another in one process, for the tests: python -m tests.execute STEPS.json.

STEPS.json: a list of [notebook, path of the executed one, parameters]. It is replaced by the list of their errors, ""
where there was none. All is as with papermill and a kernel but the process: parameters are injected by papermill, cells
run in an IPython shell whose names are forgotten after each notebook, outputs are stored. The process can't reach the
network, and writes what it asked of it to the file `network.txt` beside STEPS.json.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
from IPython.utils.capture import capture_output
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
OFFLINE = ("HF_HUB_OFFLINE", "NO_ALBUMENTATIONS_UPDATE", "TRANSFORMERS_OFFLINE")
"""Variables that keep libraries from asking the network; the process lacks them, as a user's does."""
Step = tuple[str | Path, str | Path, dict[str, Any]]


def execute(notebook: str | Path, output: str | Path, after_cell=lambda: None, **parameters: Any) -> None:
    """Execute a notebook with `parameters` in this process, and write the executed one to `output`.

    notebook: the name of one in notebooks/, or a path. after_cell: called after each cell. Raises what a cell raises.
    """
    path = Path(notebook) if Path(notebook).suffix else ROOT / "notebooks" / f"{notebook}.ipynb"
    book = parameterize_notebook(load_notebook_node(str(path)), parameters)
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    select_figure_formats(shell, {"png"})
    shell.reset()
    try:
        for number, cell in enumerate(cell for cell in book.cells if cell.cell_type == "code"):
            with shell.display_trap, capture_output() as captured:
                result = shell.run_cell(cell.source, store_history=True)  # check_parameters reads it
            cell.execution_count, cell.outputs = number + 1, _outputs(captured)
            result.raise_error()
            after_cell()
    finally:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(book, output)


def _outputs(captured) -> list:
    streams = [("stdout", captured.stdout), ("stderr", captured.stderr)]
    shown = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in streams if text]
    for output in captured.outputs:
        shown.append(nbformat.v4.new_output("display_data", data=output._repr_mimebundle_()[0]))
    return shown


def execute_all(steps: list[Step], folder: Path, cwd: Path = ROOT) -> list[str]:
    """Execute the steps in one new process; their errors, such as "ValueError: no fold", "" where there was none.

    folder: where the list of steps is kept, and `network.txt`, see above. cwd: where the notebooks are executed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "steps.json"
    file.write_text(json.dumps(steps, default=str))
    environment = {name: value for name, value in os.environ.items() if name not in OFFLINE}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hub")}
    command = [sys.executable, "-m", "tests.execute", file]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(file.read_text())


def forbid_network(log: Path) -> None:
    """From here on, reaching for another machine raises RuntimeError in this process and is noted in `log`."""

    def forbid(event, arguments):
        if event == "socket.connect":
            address = arguments[1]
            host = address[0] if isinstance(address, tuple) else ""  # "" for a local socket, which has a path
        elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
            host = arguments[0] if event != "socket.sendto" else arguments[1][0]
        else:
            return
        if host not in ("", None, "127.0.0.1", "::1", "localhost", b"localhost"):
            with open(log, "a") as file:
                file.write(f"{event} {arguments}\n")
            raise RuntimeError(f"the network is forbidden here: {event} {arguments}")

    sys.addaudithook(forbid)


def main(file: Path) -> None:
    """Execute the steps listed in `file`."""
    forbid_network(file.with_name("network.txt"))
    errors = []
    for notebook, output, parameters in json.loads(file.read_text()):
        try:
            execute(notebook, output, **parameters)
            errors.append("")
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
    file.write_text(json.dumps(errors))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
