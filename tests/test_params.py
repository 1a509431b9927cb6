"""Strict parameters: by themselves, and in notebooks run by papermill and by nbconvert."""

import json
import os
import subprocess
import sys

import nbformat
import pytest

from utils.files import ROOT
from utils.params import Parameter, ParameterError, check_parameters, check_values, declared, parse_cell

CELL = """
data_dir: str = ""  # the data folder, "" for the sample
fold: int = 0  # validation fold
n_folds: int = 5  # number of folds
lr: float = 1e-3  # learning rate # at the peak
ema: bool = True  # average the weights
device: str = "auto"  # where it runs
models: list = []  # names
scales: list = [1, 0.5]  # TTA scales
weights: dict = {}  # by model
"""

SETUP = """
import sys
from pathlib import Path

root = next((p for p in (Path.cwd(), *Path.cwd().parents) if (p / "utils" / "params.py").exists()), None)
if root is None:
    raise FileNotFoundError(f"no utils/ in {Path.cwd()} or above it: start inside the repository")
sys.path.insert(0, str(root))
from utils.params import check_parameters

parameters = check_parameters(globals())
print("torch" in sys.modules, parameters)
"""


def run_cell(injected: str = "") -> dict:
    """The namespace after the parameters cell, `injected` as papermill would inject it, and the check."""
    cell = f"# Parameters\n{injected}"
    namespace = {}
    exec(CELL, namespace)
    exec(cell, namespace)
    namespace["In"] = ["", "import math", CELL, cell, SETUP]
    checked = check_parameters(namespace)
    assert checked == {name: namespace[name] for name in parse_cell(CELL)}
    return checked


def problem(injected: str) -> str:
    with pytest.raises(ParameterError) as error:
        run_cell(injected)
    assert len(error.value.problems) == 1
    return error.value.problems[0]


def test_declared_values_pass_unchanged():
    assert run_cell()["scales"] == [1, 0.5]
    assert parse_cell(CELL)["lr"] == Parameter("float", 1e-3, "learning rate # at the peak")


@pytest.mark.parametrize(
    ("injected", "name", "value"),
    [
        ('ema = "false"', "ema", False),
        ('ema = "True"', "ema", True),
        ('models = "[a, b]"', "models", ["a", "b"]),
        ("models = ['a']", "models", ["a"]),
        ('scales = "[2, 3]"', "scales", [2.0, 3.0]),
        ('lr = "1e-4"', "lr", 1e-4),
        ("lr = 1", "lr", 1.0),
        ("fold = 3.0", "fold", 3),
        ('fold = "3"', "fold", 3),
        ("fold = -1", "fold", -1),
        ("data_dir = None", "data_dir", ""),
        ('weights = "{a: 0.5}"', "weights", {"a": 0.5}),
        ('device = "cuda:1"', "device", "cuda:1"),
    ],
)
def test_a_value_is_taken_as_what_it_means(injected, name, value):
    checked = run_cell(injected)[name]
    assert checked == value
    assert type(checked) is type(value)


@pytest.mark.parametrize(
    ("injected", "expected"),
    [
        ("folld = 3", "did you mean fold"),
        ("n_fold = 3", "did you mean n_folds"),
        ("LR = 3", "did you mean lr? There are data_dir, fold,"),
        ("learning_rate = 3", "did you mean lr? There are data_dir, fold,"),
        ("fold = 3.5", "fold = 3.5: expected int"),
        ("fold = True", "fold = True: expected int"),
        ("fold = 'first'", "fold = 'first': expected int"),
        ("fold = None", "fold = None: expected int"),
        ("fold = -2", "fold = -2: must be greater than or equal to -1"),
        ("fold = 5", "n_folds = 5 leaves the folds 0 to 4"),
        ("n_folds = 1", "must be greater than or equal to 2"),
        ("lr = 0", "must be greater than 0"),
        ("lr = float('nan')", "must be a finite number"),
        ("lr = True", "expected float"),
        ("ema = 'maybe'", "write `true` or `false`"),
        ("ema = 2", "write `true` or `false`"),
        ("data_dir = 3", "`-r data_dir 3`"),
        ("models = 'a'", "write `[a]`"),
        ("scales = ['a']", "element 0"),
        ("device = 'gpu'", "must be one of auto, cpu, cuda"),
        ("data_dir = object()", "run the parameters cell again"),
    ],
)
def test_anything_else_is_refused(injected, expected):
    assert expected in problem(injected)


def test_all_problems_are_reported_at_once_and_the_last_parameters_cell_counts():
    with pytest.raises(ParameterError) as error:
        run_cell("fold = 'x'\nlr = -1\nseed = 3")
    assert len(error.value.problems) == 3
    namespace = {"fold": 1, "In": ["", "fold: int = 0", "# Parameters\nfoldd = 3", "x = 1", "fold: int = 1", SETUP]}
    assert check_parameters(namespace) == {"fold": 1}
    with pytest.raises(ParameterError, match="run the cell above"):
        check_parameters({"In": ["", SETUP]})


def test_the_form_of_a_parameters_cell_is_checked():
    with pytest.raises(ParameterError) as error:
        parse_cell('a: "int" = 1\nb: int | None = None\nc = 3\nd: int = 3 + e\nf: list[int] = [1]')
    assert [p.split("`")[1].split(":")[0].split(" ")[0] for p in error.value.problems] == ["a", "b", "c", "d", "f"]


def test_check_values_takes_a_part():
    checked, problems = check_values(parse_cell(CELL), {"fold": "2"})
    assert (checked, problems) == ({"fold": 2}, [])


@pytest.fixture
def notebook(tmp_path):
    """A notebook in a folder outside the repository, with links to `utils` as the repository has it."""
    (tmp_path / "utils").symlink_to(ROOT / "utils")
    (tmp_path / "notebooks").mkdir()
    cells = [nbformat.v4.new_code_cell(s) for s in (CELL.strip(), SETUP.strip(), "(data_dir, fold)")]
    cells[0].metadata["tags"] = ["parameters"]
    book = nbformat.v4.new_notebook(cells=cells)
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = tmp_path / "notebooks" / "n.ipynb"
    nbformat.write(book, path)
    return path


def jupyter(notebook, *command: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-m", *command]
    return subprocess.run(command, cwd=notebook.parent, capture_output=True, text=True, env=environment)


def test_papermill_stops_before_torch_with_a_short_message(notebook):
    result = jupyter(notebook, "papermill", "n.ipynb", "out.ipynb", "-p", "folld", "1", "-p", "lr", "fast")
    assert result.returncode != 0
    assert "unknown parameter 'folld': did you mean fold" in result.stderr
    assert "lr = 'fast': expected float" in result.stderr
    assert "Traceback" not in result.stderr.split("Exception encountered")[1]


def test_papermill_values_arrive_with_their_types(notebook):
    given = ["-p", "ema", "false", "-p", "models", "[a, b]", "-y", "{lr: 1e-4}"]
    result = jupyter(notebook, "papermill", "n.ipynb", "out.ipynb", *given)
    assert result.returncode == 0, result.stderr
    text = "".join(json.loads((notebook.parent / "out.ipynb").read_text())["cells"][2]["outputs"][0]["text"])
    assert text.startswith("False ")  # torch isn't imported
    assert "'lr': 0.0001" in text
    assert "'ema': False" in text
    assert "'models': ['a', 'b']" in text


def test_nbconvert_runs_it_too_and_declared_reads_it(notebook):
    result = jupyter(notebook, "nbconvert", "--to", "notebook", "--execute", "n.ipynb", "--output", "out.ipynb")
    assert result.returncode == 0, result.stderr
    assert declared(notebook) == parse_cell(CELL)
