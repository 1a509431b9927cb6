"""Check a notebook's parameters: what papermill injected must fit what the parameters cell declares.

The parameters cell holds lines of the form `name: type = value  # help`, with a bare type name: int, float, bool,
str, list or dict ("" and [] mean none). papermill itself only warns about an unknown name and passes many values as
text; here an unknown name stops the run, and text is converted to the declared type. This module imports nothing slow.
"""

import ast
import io
import json
import tokenize
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import BeforeValidator, Field, FiniteFloat, TypeAdapter, ValidationError

from utils.files import Problems, unknown

MOST_VALUES = 100_000
"""Values in a YAML text, each counted as often as an alias repeats it; a profile has some hundred."""


def load_yaml(text: str) -> Any:
    """The value that a YAML text holds: plain values only, never objects of Python.

    Raises ValueError for a text that is no YAML, has other tags, or repeats aliases so often that it would grow without
    limit, as in the "billion laughs" attack.
    """
    try:
        node = yaml.compose(text, yaml.SafeLoader)  # aliases are not yet followed
        if node is not None and _count(node, {}) > MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {MOST_VALUES:,} values")
        return yaml.safe_load(text)
    except RecursionError as error:
        raise ValueError("too deeply nested") from error
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from error


def _count(node: yaml.Node, counted: dict[int, float]) -> float:
    """Number of values in a tree of YAML nodes; infinite where a node contains itself."""
    if id(node) not in counted:
        counted[id(node)] = float("inf")
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        flat = [child for item in children for child in (item if isinstance(item, tuple) else (item,))]
        counted[id(node)] = 1 + sum(_count(child, counted) for child in flat)
    return counted[id(node)]


def _yaml(value: Any) -> Any:
    return load_yaml(value) if isinstance(value, str) else value


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("not a number")
    return value


YAML, NUMBER = BeforeValidator(_yaml), BeforeValidator(_number)
TYPES = {
    "int": Annotated[int, NUMBER],
    "float": Annotated[FiniteFloat, NUMBER],
    "bool": bool,
    "str": Annotated[str, Field(strict=True), BeforeValidator(lambda value: "" if value is None else value)],
    "list": Annotated[list, YAML],
    "dict": Annotated[dict[str, Any], YAML],
}
"""What pydantic accepts for each declared type; it converts text to numbers and to True or False itself."""

RANGES: dict[str, tuple[str, Any]] = {
    "fold": ("int", Field(ge=-1)),
    "n_folds": ("int", Field(ge=2)),
    "image_size": ("int", Field(ge=32)),
    "epochs": ("int", Field(ge=1)),
    "batch_size": ("int", Field(ge=1)),
    "num_workers": ("int", Field(ge=0)),
    "seed": ("int", Field(ge=0)),
    "lr": ("float", Field(gt=0)),
    "threshold": ("float", Field(gt=0, lt=1)),
    "pseudo_labels": ("float", Field(ge=0, le=1)),
    "vote": ("str", Field(pattern=r"^(soft|hard)$")),
    "device": ("str", Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")),
}
"""Limits of the parameters with these names in every notebook: the type for which a limit holds, and the limit."""


WITHOUT_EFFECT = ("num_workers", "device", "wandb_project")
"""Parameters that do not change results, so that changing them reruns nothing."""

OWN = ("data_dir", "output_dir", "model", "fold", "models", "submission", "missing")
"""Parameters that a run sets itself, so that its steps find each other's files."""


class Parameter(NamedTuple):
    """One line of a parameters cell."""

    type: str
    default: Any
    help: str


class ParameterError(Problems):
    """Parameters that can't be used; the message lists every problem."""

    def __init__(self, problems: Iterable[str]):
        super().__init__("these parameters can't be used:", problems)


def check_parameters(namespace: MutableMapping[str, Any]) -> dict[str, Any]:
    """Check a notebook's parameters; call it as `check_parameters(globals())` in the cell after the parameters cell.

    The parameters cell that was executed last, and papermill's injected cell after it if there is one, are read from
    IPython's history.

    Args:
        namespace: the notebook's global variables, with IPython's history in `In`. Values that can be converted to the
            declared type ("false" to bool, "[2, 3]" to list, "1e-4" to float) are replaced by the converted ones.

    Returns:
        The checked values by name, with the declared types.

    Raises:
        ParameterError: with all problems at once: names that the cell does not declare, values that are not of the
            declared type or outside RANGES, a `fold` that `n_folds` does not have, names that were deleted. Also if
            no parameters cell has been run, or if it has lines of another form.
    """
    parameters, injected = _executed(namespace.get("In", []))
    wrong = [unknown("parameter", name, parameters) for name in injected if name not in parameters]
    wrong += [f"{n}: deleted since; run the parameters cell again" for n in parameters if n not in namespace]
    values, problems = check_values(parameters, {n: namespace[n] for n in parameters if n in namespace})
    if wrong or problems:
        raise ParameterError([*wrong, *problems])
    namespace.update(values)
    return values


def check_values(parameters: Mapping[str, Parameter], values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The `values` (some or all of the declared ones) with their declared types, and one line per problem."""
    checked, problems = {}, []
    for name, value in values.items():
        if name not in parameters:
            problems.append(unknown("parameter", name, parameters))
            continue
        try:
            checked[name] = _adapter(name, parameters[name]).validate_python(value)
        except ValidationError as error:
            problems.append(_problem(name, value, parameters[name].type, error))
    fold, n_folds = checked.get("fold"), checked.get("n_folds")
    if isinstance(fold, int) and isinstance(n_folds, int) and fold >= n_folds:
        problems.append(f"fold = {fold}: n_folds = {n_folds} leaves the folds 0 to {n_folds - 1} (-1: all images)")
    return checked, problems


def pick(kind: type, parameters: Mapping[str, Any]) -> Any:
    """An instance of the dataclass `kind` from the parameters that are named like its fields."""
    return kind(**{f.name: parameters[f.name] for f in fields(kind) if f.name in parameters})


def declared(notebook: str | Path) -> dict[str, Parameter]:
    """The parameters of a notebook file, from its cell tagged `parameters`; ParameterError if their form is wrong."""
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
    if len(tagged) != 1:
        raise ParameterError([f"{notebook}: {len(tagged)} cells have the tag `parameters`; expected one"])
    try:
        return parse_cell("".join(tagged[0]["source"]))  # a string, or a list of them
    except ParameterError as error:
        raise ParameterError(f"{notebook}: {p}" for p in error.problems) from None


def parse_cell(source: str) -> dict[str, Parameter]:
    """The parameters that a parameters cell declares; ParameterError names every line of another form."""
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    parameters, problems = {}, []
    for line in ast.parse(source).body:
        text = f"line {line.lineno}, `{ast.unparse(line).splitlines()[0]}`"
        if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value):
            problems.append(f"{text}: expected `name: type = value  # help`")
        elif not (isinstance(line.annotation, ast.Name) and line.annotation.id in TYPES):
            problems.append(f'{text}: expected a bare type name, one of {", ".join(TYPES)} (use "" or [] for none)')
        else:
            try:
                default = ast.literal_eval(line.value)
            except ValueError:
                problems.append(f"{text}: expected a plain value, not an expression")
                continue
            name = line.target.id
            parameters[name] = Parameter(line.annotation.id, default, comments.get(line.end_lineno, ""))
    if problems:
        raise ParameterError(f"parameters cell, {p}" for p in problems)
    return parameters


def _executed(history: list[str]) -> tuple[dict[str, Parameter], list[str]]:
    """The last executed parameters cell, and the names that papermill's injected cell after it assigns."""
    for number in range(len(history) - 1, -1, -1):
        body = _statements(history[number])
        if body and all(isinstance(line, ast.AnnAssign) for line in body):
            later = [cell for cell in history[number + 1 :] if cell.startswith("# Parameters")]
            targets = [t for cell in later for line in _statements(cell) for t in getattr(line, "targets", [])]
            return parse_cell(history[number]), list(dict.fromkeys(t.id for t in targets if isinstance(t, ast.Name)))
    raise ParameterError(["no parameters cell has been run; in a notebook, run the cell above this one first"])


def _statements(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError:
        return []


def _adapter(name: str, parameter: Parameter) -> TypeAdapter:
    limited, limit = RANGES.get(name, ("", None))
    kind = _type(parameter)
    return TypeAdapter(Annotated[kind, limit] if limited == parameter.type else kind)


def _type(parameter: Parameter) -> Any:
    """The pydantic type of a declared type; elements of a list must have the type of the default's elements."""
    if parameter.type != "list":
        return TYPES[parameter.type]
    kinds = {type(element).__name__ for element in parameter.default}
    kind = "float" if kinds == {"int", "float"} else kinds.pop() if len(kinds) == 1 else ""
    return Annotated[list[TYPES.get(kind, Any)], YAML]


def _problem(name: str, value: Any, kind: str, error: ValidationError) -> str:
    """What is wrong with one value and what to write instead, in one line."""
    first = error.errors(include_url=False)[0]
    found = f"{name} = {_short(value)}"
    if not isinstance(value, bool | int | float | str | list | tuple | dict | None):
        return f"{found}: expected {kind}; the name has been reused since, run the parameters cell again"
    if first["type"].startswith(("greater_than", "less_than", "finite")):
        return f"{found}: must be {first['msg'].removeprefix('Input should be ')}"
    if first["type"] == "string_pattern_mismatch":
        names = {"device": "auto, cpu, cuda, cuda:0, cuda:1, …", "vote": "soft, hard"}
        return f"{found}: must be one of {names[name]}"
    scalar = isinstance(value, bool | int | float | str)
    hints = {
        "str": f"with papermill, `-r {name} {value}` passes it as text",
        "list": f"write `[{value}]`" if scalar else "write for example `[2, 3]`",
        "dict": "write for example `{a: 1}`",
        "bool": "write `true` or `false`",
        "int": "write a whole number",
        "float": "write a number such as `0.5` or `1e-4`",
    }
    element = f", element {first['loc'][0]} is of another type" if first["loc"] else ""
    return f"{found}: expected {kind}{element}; {hints[kind]}"


def _short(value: Any, length: int = 60) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= length else f"{text[: length - 1]}…"
