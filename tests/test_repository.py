"""The repository itself: its top level, the form of its notebooks, and ruff."""

import re
import subprocess
import sys

import nbformat
import papermill
import pytest

from utils.files import ROOT
from utils.params import declared

TOP = {"README.md", "requirements.txt", "run_all.sh", "notebooks", "utils", "submissions", "tests", "LICENSE"}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def git(*arguments: str) -> list[str]:
    result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        pytest.skip("not a git checkout")
    return result.stdout.splitlines()


def test_nothing_else_at_the_top():
    files = git("ls-files", "--cached", "--others", "--exclude-standard")
    names = {name.partition("/")[0] for name in files if (ROOT / name).exists()}
    assert {name for name in names if not name.startswith(".")} <= TOP
    assert [name for name in files if name.startswith("submissions/")] in ([], ["submissions/README.md"])


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["check", "format"])
def test_ruff(command):
    result = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def book(path):
    return nbformat.read(path, as_version=4)


def test_notebooks_are_stripped(book):
    nbformat.validate(book)
    for cell in book.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [], "clear the outputs before committing"
            assert cell.execution_count is None
    assert book.metadata["kernelspec"]["name"] == "python3"
    assert "widgets" not in book.metadata
    assert "papermill" not in book.metadata


def test_parameters_are_declared_as_papermill_explains_them(path):
    parameters = declared(path)
    assert {"data_dir", "output_dir"} <= parameters.keys()
    assert [name for name, parameter in parameters.items() if not parameter.help] == []
    explained = papermill.inspect_notebook(path)
    assert {n: (p["inferred_type_name"], p["help"]) for n, p in explained.items()} == {
        n: (p.type, p.help) for n, p in parameters.items()
    }


def test_notebooks_share_one_skeleton(path, book):
    assert book.cells[0].cell_type == "markdown"
    assert book.cells[0].source.startswith("# ")
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert code[0].metadata.get("tags") == ["parameters"]
    setup = code[1].source
    before, check, _ = setup.partition("check_parameters(globals())")
    assert check, "the cell after the parameters checks them"
    imported = set(re.findall(r"^(?:import|from) ([\w.]+)", before, re.MULTILINE))
    assert imported <= {"sys", "pathlib", "utils.params"}, "anything else is imported after the check"
    assert sum(cell.source.count("sys.path") for cell in code) == 1
    assert "metrics.json" in code[-1].source


def test_notebooks_start_with_the_same_lines():
    setups = set()
    for notebook in NOTEBOOKS:
        code = [cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
        setups.add(code[1].partition("from utils.params import")[0])
    assert len(setups) <= 1
