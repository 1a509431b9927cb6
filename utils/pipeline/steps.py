"""The table of steps: one row for each notebook that a run can execute. A new notebook joins a run by one row here.

Profiles, the Snakefile, leaderboard, report and checks read this table. A row says what makes a notebook part of a run,
after which others, and what it hands on.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from utils.data import records
from utils.files import ROOT
from utils.params import declared


@dataclass(frozen=True)
class Row:
    """One notebook of a run.

    section: of the profile, with its parameters. notebook: its name; that of its record by default. record: what it
    hands on, see `data.records`. needs: sections whose steps come before it: that of the same fold model or one
    made once, or all of them for a step that is made once; it is left out where none of them is in the run. models:
    the profile's section with the models for each of which, and each fold, it is executed; "" for once in a run.
    always: in every run, also where the profile has no such section. own: parameters that the run sets, beside
    data_dir and output_dir, and model and fold for each fold model: the submission's path in the last step that
    makes one, the models that vote and what is missing. priority: the higher, the earlier among the steps that
    could be next.
    """

    section: str
    notebook: str = ""
    record: type[records.Record] = records.Record
    needs: tuple[str, ...] = ()
    models: str = ""
    always: bool = False
    own: tuple[str, ...] = ()
    priority: int = 0

    def __post_init__(self) -> None:
        """The notebook's name is that of its record, where the row does not name another."""
        object.__setattr__(self, "notebook", self.notebook or self.record.notebook)

    @property
    def votes(self) -> bool:
        """Whether its stored probabilities vote."""
        return self.record in records.PREDICTING

    def name(self, model: str = "", fold: int = 0) -> str:
        """The name of one of its steps, which is its folder in the run, such as `03_train/unetplusplus/fold0`."""
        return f"{self.notebook}/{model}/fold{fold}" if self.models else self.notebook


TRAIN = Row("train", record=records.Training, models="models", always=True, priority=1)
PREDICT = Row("predict", record=records.Prediction, needs=("train",), models="models", always=True, priority=2)
YOLO = Row("yolo", record=records.Yolo, models="yolo", always=True, priority=1)
ROWS: list[Row] = [
    Row("eda", record=records.Exploration, always=True, priority=4),
    Row("baseline", record=records.Baseline, own=("submission",)),
    Row("zoo", record=records.Zoo),
    TRAIN,
    PREDICT,
    Row("instances", record=records.Instances, needs=("train",), models="models"),
    YOLO,
    Row(
        "ensemble",
        record=records.Ensemble,
        needs=("predict", "yolo"),
        always=True,
        own=("submission", "models", "missing"),
        priority=3,
    ),
    Row("export", record=records.Export, needs=("train", "ensemble"), models="models"),
    Row("analysis", record=records.Analysis, needs=("ensemble",)),
]
"""In an order in which each row comes after those it needs."""


def row_of(notebook: str) -> Row:
    """The row of a notebook or of one of its steps; one of its own for a notebook that is in no profile."""
    notebook = notebook.partition("/")[0]
    return next((row for row in ROWS if row.notebook == notebook), Row("", notebook))


class Step(BaseModel):
    """One execution of a notebook. `name` is its folder in the run, such as `03_train/unetplusplus/fold0`.

    plugins: the files whose parts its parameters name, with their SHA-256.
    """

    name: str
    parameters: dict[str, Any] = {}
    after: list[str] = []
    plugins: dict[str, str] = {}

    @property
    def row(self) -> Row:
        """The step's kind."""
        return row_of(self.name)

    @property
    def notebook(self) -> str:
        """The notebook's file, relative to the repository, and to the run's folder for the copy that is executed."""
        return f"notebooks/{self.row.notebook}.ipynb"

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The notebook's own values of its parameters."""
        return {name: parameter.default for name, parameter in declared(ROOT / self.notebook).items()}

    def all_parameters(self) -> dict[str, Any]:
        """Those given, and the notebook's defaults for the others."""
        return self.defaults | self.parameters


def submitting(planned: list[Step]) -> Step:
    """The step that makes the submission; without one, the last step."""
    return next((step for step in planned if step.parameters.get("submission")), planned[-1])
