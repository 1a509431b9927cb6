"""The first line of every notebook: check its parameters before torch is imported or data read, then open the run."""

from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from utils.data.augmentation import read_augmentation
from utils.files import Problems
from utils.inference.postprocess import build_postprocess
from utils.params import ParameterError, check_parameters

if TYPE_CHECKING:
    from utils.pipeline.run import Run


def open_run(
    namespace: MutableMapping[str, Any], step: str, needs: str = "", made_with: Mapping[str, Any] | None = None
) -> "Run":
    """Check the parameters, import the plugins, check the names of parts, find or make the data, read its table.

    Args:
        namespace: the notebook's `globals()`. Its parameters get their declared types; see `check_parameters`.
        step: the notebook's name, such as "03_train".
        needs: an earlier notebook, which is run first if its results are missing.
        made_with: the parameters it then gets that differ from its defaults.

    Returns:
        The run, which gives paths, classes, images, folds and cache.

    Raises:
        ParameterError: with all parameters that can't be used.
        Problems: for plugins that can't be imported.
        UnknownPart: for names of parts that are not registered; the message has the nearest names.
        DataError: for a data folder or label fixes that can't be used.
        FileNotFoundError: if the parameter `model` names a model without results of `needs`.
    """
    parameters = check_parameters(namespace)
    if problems := nested_problems(parameters):
        raise ParameterError(problems)
    from utils.pipeline.run import start_run

    return start_run(parameters, step, needs, made_with)


def nested_problems(values: Mapping[str, Any]) -> list[str]:
    """What is wrong inside `augment` and `postprocess`, whose names a notebook does not declare one by one."""
    problems = []
    for name, kind, check in (("augment", dict, read_augmentation), ("postprocess", list, build_postprocess)):
        try:
            check(values[name] if isinstance(values.get(name), kind) else kind())
        except Problems as error:
            problems += error.problems
    return problems
