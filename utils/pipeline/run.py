"""The run that a notebook works in: its data, folds and cache, where results go, and the record that ends it."""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

import utils.data.augment
import utils.inference.export_formats
import utils.inference.tta
import utils.models
import utils.training.losses
import utils.training.optimizers  # noqa: F401  (the built-in parts of every kind are registered)
from utils.data.cache import Cache
from utils.data.competition import read_classes
from utils.data.findings import DataError
from utils.data.flip import flip_rule
from utils.data.fold_data import FoldData
from utils.data.folds import read_folds, split_fold
from utils.data.label_fixes import FIXED, Fix, find_fixes, read_fixed_index, same_effect, write_fixed_data
from utils.data.records import OfFoldModel, Record, Submitting, write_record
from utils.data.windows import Windows, corner_around
from utils.device import tune_process
from utils.files import Progress, read_json, resolve, shown, write_json
from utils.hand.bend import stratum
from utils.hand.bones import check_crops, small_bones
from utils.inference.ensemble import submission_frame
from utils.inference.probabilities import ProbabilityStore
from utils.inference.refinement import open_first
from utils.masks.masks import Masks
from utils.models.checkpoint import Config, check_classes, check_unseen
from utils.pipeline.extra_data import read_extra_data
from utils.pipeline.run_missing import run_if_missing
from utils.registry import load_plugins, named_parts
from utils.sample.generator import ensure_sample
from utils.submission import check, score, write


@dataclass
class Run:
    """The data of one run, and where its results are written.

    data_dir: the data folder. output_dir: the run's folder. step: the notebook's name. table: one row per image, as
    `read_index` gives it. classes: their names. n_folds, seed: what the folds are made with. skipped: images that
    `run_all.sh --skip-bad` left out of the table, such as "test/DCM/ID003/image5.png". fixes: the corrections of labels
    that concern this data; the table has corrected annotations, those in `fixed`, and lacks what was dropped.
    parameters: the notebook's checked ones. began: when it was opened, seconds of `time.monotonic()`.
    """

    data_dir: Path
    output_dir: Path
    step: str
    table: pd.DataFrame
    classes: list[str]
    n_folds: int
    seed: int
    skipped: tuple[str, ...] = ()
    fixes: tuple[Fix, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @cached_property
    def folds(self) -> pd.DataFrame:
        """ID, image_name, bent and fold of each training image, from the run's folds.csv, written if it does not exist.

        Raises DataError if the file belongs to other data or another number of folds.
        """
        path, bent = self.output_dir / "folds.csv", stratum(self.classes)
        return read_folds(path, self.table, self.classes, self.n_folds, self.seed, bent)

    @property
    def folder(self) -> Path:
        """Where this notebook's results go."""
        return self.output_dir / self.step

    def folder_of(self, model: str, fold: int) -> Path:
        """Where this notebook's results for one fold model go."""
        return self.folder / model / f"fold{fold}"

    def finish(self, record: Record) -> pd.DataFrame:
        """Write the record of this step, last of all: then the step is done. Returns it as a table to show.

        What the record leaves out is filled in: step, minutes since the run was opened, parameters. It goes to the
        folder of the step, or of the fold model that it names.
        """
        self._complete(record)
        if isinstance(record, Submitting):
            self.describe(record)
        of_fold_model = isinstance(record, OfFoldModel)
        write_record(record, self.folder_of(record.model, record.fold) if of_fold_model else self.folder)
        return record.table()

    def describe(self, record: Submitting) -> None:
        """Write the record beside its submission, as soon as this has passed its check: later cells may fail.

        Without the minutes: the same run makes the same two files, byte by byte.
        """
        self._complete(record)
        if record.submission:
            content = {name: value for name, value in record.content().items() if name != "minutes"}
            write_json(resolve(record.submission).with_suffix(".json"), content)

    def _complete(self, record: Record) -> None:
        record.step, record.parameters = self.step, dict(self.parameters)
        record.minutes = (time.monotonic() - self.began) / 60 if record.minutes is None else record.minutes

    @property
    def fixed(self) -> Path:
        """Where the corrected annotations are."""
        return self.output_dir / FIXED

    @property
    def test(self) -> list[str]:
        """Names of the test images, in the submission's order."""
        return self.table.loc[self.table["split"] == "test", "image_name"].tolist()

    def all_test_images(self, votes: Mapping[str, Masks]) -> Iterator[tuple[str, Masks]]:
        """Name and masks of every test image, in the submission's order; those left out have empty masks."""
        test = self.table[self.table["split"] == "test"]
        masks = {f"{row.ID}/{row.image_name}": votes[row.image_name] for row in test.itertuples()}
        for path in map(Path, self.skipped):
            if path.parts[0] == "test" and path.name not in votes:  # it is there if another has the same name
                masks[f"{path.parent.name}/{path.name}"] = Masks.empty(len(self.classes))
        for place in sorted(masks):
            yield Path(place).name, masks[place]

    @property
    def solution(self) -> Path | None:
        """The true masks of the test images, solution.csv; None if the data folder has none of either."""
        path = self.data_dir / "solution.csv"
        return path if path.exists() and (self.test or self.skipped) else None

    def test_dice(self, votes: Mapping[str, Masks]) -> float | None:
        """Mean Dice of the test images by the local solution; None without one. votes: see `all_test_images`."""
        if not self.solution:
            return None
        frame = submission_frame(self.all_test_images(votes), self.classes)
        return score(frame, self.solution, self.data_dir)["dice"].mean()

    def submit(self, votes: Mapping[str, Masks], path: str = "") -> str:
        """Write the submission and check it; "" for submission.csv in the step's folder. votes: see `all_test_images`.

        Returns its path as text, "" where the data has no test images: then there is none. Raises DataError if it does
        not pass its check.
        """
        csv = resolve(path) if path else self.folder / "submission.csv"
        if not self.test and not self.skipped:
            print(f"no test images in {shown(self.data_dir)}: there is no submission")
            return ""
        write(submission_frame(self.all_test_images(votes), self.classes), csv)
        if problems := check(csv, self.data_dir):
            raise DataError(f"{shown(csv)} did not pass its check", problems)
        print(f"{shown(csv)}: {len(votes)} images × {len(self.classes)} classes, complete and in order")
        return shown(csv)

    def check_fold_model(self, config: Config, fold: int, what: str) -> None:
        """Refuse a checkpoint that can't predict out of fold here: of other classes, or trained on held-out people.

        config: the checkpoint's. fold: whose people it is taken for not to have seen; of -1, nobody is held out. what:
        names it in the message. Raises ModelError.
        """
        check_classes(config, self.classes, what)
        held_out = split_fold(self.table, self.folds, fold)[1]["ID"]
        check_unseen(config, held_out, what, "Train it again in this run's folder, with the folds that are there now")

    def plain_data(self, out: Path) -> Path:
        """A data folder for programs that know neither label fixes nor images left out: the run's own where it has none
        of both, else `out`, made anew."""
        if not self.fixes and not self.skipped:
            return self.data_dir
        shutil.rmtree(out, ignore_errors=True)
        write_fixed_data(self.data_dir, self.fixes, out, self.skipped)
        return out

    def cache(self, image_size: int, labels: str = "soft", extra: pd.DataFrame | None = None) -> Cache:
        """The built cache at `image_size` × `image_size` pixels; `labels` is a key of `data.cache.RESAMPLE`.

        extra: rows of further images, see `pipeline.extra_data`.
        """
        table = self.table if extra is None else pd.concat([self.table, extra], ignore_index=True)
        names = () if extra is None else extra["image_name"]
        cache = Cache(self.output_dir / "cache", table, self.classes, image_size, labels, names)
        cache.build(Progress("caching"))
        return cache

    def fold_data(
        self,
        fold: int,
        image_size: int,
        labels: str = "soft",
        flip: str = "on",
        flip_pairs: Sequence[Sequence[str]] = (),
        crop: int = 0,
        wrist_crops: float = 0.0,
        extra_data: str = "",
        wrist_of: str = "",
    ) -> FoldData:
        """The images of one fold; the other arguments are those of `cache`, `data.flip.flip_rule` and `FoldData`.

        extra_data: a data folder whose training images are trained on, too, see `pipeline.extra_data`. wrist_of: for a
        wrist stage, the model of this run whose carpals it refines; see `inference.refinement.open_first` for errors.
        """
        check_crops(crop, wrist_crops, image_size, self.classes, wrist_of)
        train, validation = split_fold(self.table, self.folds, fold)
        extra, known = None, []
        if extra_data:
            extra, known = read_extra_data(extra_data, fold, self.table, validation, self.classes)
            train = pd.concat([train, extra], ignore_index=True)
        cache = self.cache(image_size, labels, extra)
        rule = flip_rule(flip, flip_pairs, cache, train["image_name"].tolist())
        windows, region = None, small_bones(self.classes) if wrist_of or wrist_crops else []
        if wrist_of:
            first, config = open_first(self.output_dir, wrist_of, fold, validation["ID"])
            check_classes(config, self.classes, f"wrist_of = {wrist_of}")
            names, oof, known = validation["image_name"], ProbabilityStore(first / "oof"), [*known, *config.people]
            numbers = [self.classes.index(name) for name in region]
            corners = {n: corner_around(oof.read(n).regions, numbers, cache.grid, crop) for n in names}
            windows = Windows(numbers, cache.grid, crop, corners)
        crops = {"crop": crop, "region": region, "region_crops": wrist_crops, "refines": wrist_of, "windows": windows}
        return FoldData(cache, train, validation, fold, rule, known=known, **crops)


def start_run(
    parameters: Mapping[str, Any], step: str, needs: str = "", made_with: Mapping[str, Any] | None = None
) -> Run:
    """The run of a notebook with checked parameters; see `open_run`, which checks them first."""
    began = time.monotonic()
    tune_process()
    load_plugins(parameters.get("plugins", []))
    named_parts(parameters)
    data_dir = ensure_sample(parameters["data_dir"])
    if needs:
        run_if_missing(needs, parameters, parameters.get("model", ""), parameters.get("fold"), made_with)
    output_dir = resolve(parameters["output_dir"])
    record = read_json(output_dir / "data.json", {})
    skipped = tuple(record.get("skipped", ()))
    fixes, classes = find_fixes(parameters.get("label_fixes", ""), data_dir), read_classes(data_dir)
    if record and not same_effect(fixes, record.get("label_fixes", [])):
        advice = "name the run's own file in the parameter label_fixes, or choose another output_dir"
        raise DataError(f"{shown(output_dir)} was made with other label fixes", [advice])
    table = read_fixed_index(data_dir, fixes, classes, output_dir / FIXED, skipped)
    folds = parameters["n_folds"], parameters["seed"]
    return Run(data_dir, output_dir, step, table, classes, *folds, skipped, fixes, parameters, began)
