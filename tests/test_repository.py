"""The repository itself: its top level and rooms, the form of its notebooks and tests, and ruff."""

import ast
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
    assert len(setup.splitlines()) <= 12
    before, opened, _ = setup.partition(f'run = open_run(globals(), "{path.stem}"')
    assert opened, "the cell after the parameters checks them and opens the run"
    imported = set(re.findall(r"^(?:import|from) ([\w.]+)", before, re.MULTILINE))
    assert imported == {"sys", "pathlib", "utils.pipeline.open_run"}, "anything else is imported after the check"
    assert sum(cell.source.count("sys.path") for cell in code) == 1
    assert "run.finish(" in code[-1].source


def test_parameters_are_checked_before_anything_slow_is_imported():
    """`open_run` refuses a wrong name without torch, the networks, Lightning or the data's rooms."""
    program = """
import sys
from utils.pipeline.open_run import open_run
try:
    open_run({"In": ["lr: float = 0.1", "# Parameters\\nlrr = 2"], "lr": 0.1}, "03_train")
except ValueError as error:
    print("unknown parameter 'lrr'" in str(error))
print([name for name in ("torch", "lightning", "albumentations", "timm", "utils.pipeline.run") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.split() == ["True", "[]"], found.stdout + found.stderr


def test_notebooks_start_with_the_same_lines():
    setups = set()
    for notebook in NOTEBOOKS:
        code = [cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
        setups.add(code[1].partition("from utils.pipeline")[0])
    assert len(setups) <= 1


FOUNDATION = ("files", "registry", "params", "device")
FLOORS = (
    {"masks"},
    {"hand"},
    {"data", "models"},
    {"training", "inference", "analysis", "sample", "submission", "formats"},
    {"figures", "pipeline"},
)


def imports(path):
    """The rooms of `utils` that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "utils":
            deeper = node.module.split(".")[1:2]
            yield from deeper or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("utils."))


def test_steps_are_named_in_one_place_only():
    """Notebooks name themselves, records name their notebook; whatever else is said about steps is in their table."""
    names = {notebook.stem for notebook in NOTEBOOKS}
    found = []
    for path in (ROOT / "utils").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        prose = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = {node for node in ast.walk(tree) if isinstance(node, ast.Constant)} - prose
        found += [(path.name, node.value) for node in texts if any(name in str(node.value) for name in names)]
    assert {name for name, _ in found} == {"records.py"}, found


def test_the_parameters_of_training_stand_in_groups():
    """Under comment headings in notebook 03; `--help-notebook` lists them in this order, the first with the heading."""
    source = nbformat.read(ROOT / "notebooks" / "03_train.ipynb", as_version=4).cells[1].source
    titles = re.findall(r"^# (.+)$", source, re.MULTILINE)
    groups = ["data", "network", "size", "optimisation", "averaging and validation", "machine"]
    assert titles == groups
    blocks = [block.splitlines() for block in source.split("\n\n")]
    assert [block[0].removeprefix("# ") for block in blocks] == groups
    explained = papermill.inspect_notebook(ROOT / "notebooks" / "03_train.ipynb")
    assert list(explained) == [line.partition(":")[0] for block in blocks for line in block[1:]]
    marked = {n: p["help"].partition("]")[0][1:] for n, p in explained.items() if p["help"].startswith("[")}
    assert marked == {block[1].partition(":")[0]: title for block, title in zip(blocks, groups, strict=True)}


def test_every_room_imports_only_from_floors_below():
    floor = {room: number for number, rooms in enumerate(FLOORS, 1) for room in rooms}
    entries = {p.stem for p in (ROOT / "utils").iterdir() if not p.name.startswith(("__", "README"))}
    assert entries == {*FOUNDATION, *floor} and len(entries) <= 16
    for path in (ROOT / "utils").rglob("*.py"):
        room = path.relative_to(ROOT / "utils").parts[0].removesuffix(".py")
        for other in set(imports(path)) - {room}:
            if room in FOUNDATION:
                assert FOUNDATION.index(other) < FOUNDATION.index(room), f"{path} imports {other}"
            elif other not in FOUNDATION:
                assert floor[other] < floor.get(room, 9), f"{path} imports {other}"


def test_files_stay_short():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "utils").rglob("*.py")}
    assert {path: n for path, n in lengths.items() if n > 320} == {}


def test_the_readme_stays_short():
    assert (ROOT / "README.md").stat().st_size <= 10_240


def test_requirements_name_what_is_imported():
    names = {"cv2": "opencv-python-headless", "PIL": "pillow", "yaml": "PyYAML", "sklearn": "scikit-learn"}
    listed = re.findall(r"^([\w.-]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    listed = {name.lower().replace("-", "_") for name in listed}
    imported = set()
    for path in (ROOT / "utils").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            imported |= {module.partition(".")[0] for module in modules}
    imported -= {*sys.stdlib_module_names, "utils", "wandb", "snakemake", "ultralytics"}  # the last: tests/yolo.py
    assert {names.get(m, m).lower().replace("-", "_") for m in imported} <= listed


def test_every_test_asserts_something():
    silent = []
    for path in (ROOT / "tests").glob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}

        def asserts(node):
            text = ast.unparse(node)
            return "assert " in text or "raises(" in text

        checks = {name for name, node in functions.items() if asserts(node)} | {"check_model", "check_overfits"}
        checks |= {"check_parameter_count"}
        for name, node in functions.items():
            called = set(re.findall(r"(\w+)\(", ast.unparse(node)))
            if name.startswith("test_") and not asserts(node) and not called & checks:
                silent.append(f"{path.name}: {name}")
    assert silent == []
