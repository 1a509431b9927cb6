"""What each step of a run hands on: typed records, written to metrics.json by one writer and read by one reader.

A step that ends writes its record last, whole or not at all: where metrics.json is, the step is done. Notebooks call
`run.finish(Training(...))`; analysis, leaderboard, report and later steps call `read_record` and `records`. Scores are
mean Dice in [0, 1], None where there is none. Files of earlier versions may lack keys, and have others, which are kept.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from utils.files import read_json, shown, write_json

if TYPE_CHECKING:
    import pandas as pd

NAME = "metrics.json"


def _plain(value: Any) -> Any:
    """A NumPy scalar as a plain number; NaN as None."""
    value = value.item() if hasattr(value, "item") else value
    return None if value is None or value != value else value


Score = Annotated[float | None, BeforeValidator(_plain)]
Count = Annotated[int, BeforeValidator(_plain)]


class Record(BaseModel):
    """What every step hands on, and all that one without a record of its own does.

    notebook: the step's notebook. step: the same, in the file. minutes: of its work. parameters: the notebook's checked
    ones. folder: where the file is; it is not written into it.
    """

    model_config = ConfigDict(extra="allow", validate_assignment=True)
    notebook: ClassVar[str] = ""

    step: str = ""
    minutes: Score = None
    parameters: dict[str, Any] = {}
    folder: Path = Field(default=Path(), exclude=True)

    def content(self) -> dict[str, Any]:
        """What is written to the file, the parameters last."""
        found = self.model_dump()
        return {name: value for name, value in found.items() if name != "parameters"} | {"parameters": self.parameters}

    def table(self) -> "pd.DataFrame":
        """The numbers and short texts of the record, for the end of a notebook."""
        import pandas as pd

        rows = {k: v for k, v in self.content().items() if v is not None and not isinstance(v, dict | list | tuple)}
        return pd.Series(rows | {"folder": shown(self.folder)}, dtype=object).to_frame("")


class OfFoldModel(Record):
    """The record of a step that is made for one fold model. fold: -1 where nothing was held out."""

    model: str = ""
    fold: Count = 0


class Exploration(Record):
    """The data set. suspicious_images: with labels to look at. multi_label: share of the pixels in several classes.
    bent_share: of the annotated images, None without wrists. overlaps: of the classes that overlap most. argmax_dice:
    what is left of each class if each pixel goes to one class."""

    notebook = "01_eda"

    train_images: Count = 0
    test_images: Count = 0
    people: Count = 0
    classes: Count = 0
    suspicious_images: Count = 0
    multi_label: Score = None
    bent_share: Score = None
    overlaps: list[dict[str, Any]] = []
    argmax_dice: dict[str, Score] = {}


class Submitting(Record):
    """The record of a step that writes a submission. skipped: images that --skip-bad left out."""

    submission: str = ""
    skipped: list[str] = []
    test_dice: Score = None


class Baseline(Submitting):
    """The official baseline. val_dice: on the fold's images."""

    notebook = "02_baseline_fcn"

    model: str = ""
    fold: Count = 0
    val_dice: Score = None
    epochs: Count = 0


class Training(OfFoldModel):
    """A trained fold model. val_dice: of the best epoch's weights, without test-time augmentation; carpal_dice: in its
    place for a model that refines a region of another. parameter_count: numbers in the network."""

    notebook = "03_train"

    val_dice: Score = None
    carpal_dice: Score = None
    epochs: Count = 0
    parameter_count: Count = 0


class Prediction(OfFoldModel):
    """The stored probabilities of a fold model. oof_dice: of the images it never saw, with test-time augmentation."""

    notebook = "04_inference_tta"
    checkpoint_of: ClassVar[str] = Training.notebook

    val_dice: Score = None
    oof_dice: Score = None
    test_dice: Score = None
    kilobytes_per_image: Score = None


class Ensemble(Submitting):
    """The vote. missing: fold models that failed, with the reason. oof_dice_cross_fitted: as other folds choose.
    fold_models: those that voted, with weight and val_dice. models, wrist_stages: oof_dice, test_dice and weight by
    model. thresholds: by class. threshold_gain, postprocess_gains: out of fold."""

    notebook = "05_ensemble"

    missing: dict[str, str] = {}
    oof_dice: Score = None
    oof_dice_cross_fitted: Score = None
    fold_models: list[Any] = []
    models: dict[str, dict[str, Any]] = {}
    wrist_stages: dict[str, dict[str, Any]] = {}
    thresholds: dict[str, float] = {}
    threshold_gain: Score = None
    warnings: list[str] = []
    vote: Literal["soft", "hard"] = "soft"
    postprocess: list[str] = []
    postprocess_gains: dict[str, Score] = {}
    versions: dict[str, str] = {}

    @property
    def refining_weights(self) -> dict[str, float]:
        """The weight of each model that refines another one."""
        return {name: stage["weight"] for name, stage in self.wrist_stages.items()}

    @property
    def all_models(self) -> dict[str, dict[str, Any]]:
        """Those that voted, and those that refine one of them."""
        return self.models | self.wrist_stages


class Zoo(Record):
    """Every architecture's cost and Dice after the same short training. cam: Dice and hits of class activation maps."""

    notebook = "06_model_zoo"

    models: list[dict[str, Any]] = []
    cam: dict[str, Score] | None = None


class Analysis(Record):
    """What is judged. result: `<run>/<member>`, None without out-of-fold scores. oof_dice_reweighted: to the share of
    bent test wrists, bent_share; wrists: how that was found. hd95, msd: distances of outlines, pixels."""

    notebook = "07_analysis"

    result: str | None = None
    oof_dice: Score = None
    oof_dice_reweighted: Score = None
    bent_share: Score = None
    hd95: Score = None
    msd: Score = None
    wrists: str | None = None
    suspicious_images: Count = 0
    verdicts: list[str] = []

    @property
    def weighting(self) -> str:
        """How the score was weighted again, as a sentence."""
        return self.wrists or ""


class Instances(OfFoldModel):
    """A fold model's instances, by split, and their scores as COCO defines them."""

    notebook = "08_instances"

    val_dice: Score = None
    instances: dict[str, int] = {}
    scores: dict[str, Any] = {}


class Yolo(OfFoldModel):
    """A fold model of ultralytics, with its stored probabilities. confidence: from which an instance counts fully.
    exported: the file, "" for none."""

    notebook = "09_yolo"
    checkpoint_of: ClassVar[str] = notebook

    val_dice: Score = None
    oof_dice: Score = None
    test_dice: Score = None
    mask_map50: Score = None
    confidence: Score = None
    epochs: Count = 0
    parameter_count: Count = 0
    exported: str = ""


class Export(OfFoldModel):
    """A fold model's files for other programs. images: compared on. formats, architectures: a row for each file."""

    notebook = "10_export"

    val_dice: Score = None
    images: Count = 0
    formats: list[dict[str, Any]] = []
    architectures: list[dict[str, Any]] = []


PREDICTING: tuple[type[OfFoldModel], ...] = (Prediction, Yolo)
"""Records of steps whose stored probabilities vote; `checkpoint_of` is the step in whose folder the weights are."""

R = TypeVar("R", bound=Record)


def write_record(record: Record, folder: Path) -> None:
    """Write a step's record to its folder: then the step is done."""
    record.folder = folder
    write_json(folder / NAME, record.content())


def read_record(path: str | Path, kind: type[R] = Record, empty: bool = False) -> R | None:
    """The record in a step's folder (or in a JSON file beside a submission); None, or an empty one, if there is none.

    Raises pydantic's ValidationError for a file that is not of this kind.
    """
    path = Path(path)
    path = path if path.suffix == ".json" else path / NAME
    if not path.exists():
        return kind(folder=path.parent) if empty else None
    return kind.model_validate({**read_json(path), "folder": path.parent})


def fold_folders(
    run: Path, kinds: tuple[type[OfFoldModel], ...], model: str = "*", fold: int | str = "*", finished: bool = True
) -> list[Path]:
    """The fold models' folders of these kinds of steps in a run, of one model and fold, or of all ("*").

    They are sorted for each kind. finished: only of steps that are done.
    """
    places = [run / kind.notebook / model for kind in kinds] if model != "*" else []
    places = places or [place for kind in kinds for place in sorted((run / kind.notebook).glob("*"))]
    found = [path for place in places for path in sorted(place.glob(f"fold{fold}"))]
    return [path for path in found if not finished or (path / NAME).exists()]


def fold_records(run: Path, kinds: tuple[type[R], ...], model: str = "*", fold: int | str = "*") -> Iterator[R]:
    """The records of all finished steps of these kinds, by model and fold; their names are those of the folders."""
    for kind in kinds:
        for folder in fold_folders(run, (kind,), model, fold):
            named = {"model": folder.parent.name, "fold": int(folder.name.removeprefix("fold"))}
            yield read_record(folder, kind).model_copy(update=named)
