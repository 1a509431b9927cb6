"""Images that are trained on beside the run's own, never validated on: more data, or pseudo-labels."""

from collections.abc import Sequence

import pandas as pd

from utils.data.check import check_data
from utils.data.competition import read_classes, read_index
from utils.data.findings import DataError
from utils.files import read_json, resolve, shown
from utils.inference.pseudo_labels import RECORD
from utils.models.checkpoint import hash_people


def read_extra_data(
    extra_data: str, fold: int, table: pd.DataFrame, validation: pd.DataFrame, classes: Sequence[str]
) -> tuple[pd.DataFrame, list[str]]:
    """The rows of the training images in a data folder, and the hashed people that its labels were learnt from.

    extra_data: the folder; `{fold}` in it stands for `fold`. table, validation: the run's rows, and those it validates
    this fold on. Raises DataError for a folder that can't be used, other classes, image names that the run has too, and
    wherever somebody of the validation images is in the folder, or taught the fold models that made its labels.
    """
    folder = resolve(extra_data.replace("{fold}", str(fold)))
    extra = read_index(folder, ("train",))
    problems = [str(finding) for finding in check_data(folder).errors]
    if read_classes(folder) != list(classes):
        problems.append(f"other classes than the run's; expected {', '.join(classes)}")
    if both := sorted(set(extra["image_name"]) & set(table["image_name"])):
        problems.append(f"{len(both)} images have names that the run has too, such as {both[0]}; rename them")
    people = read_json(folder / RECORD, {}).get("people", [])
    taught = {person for person in validation["ID"] if hash_people([person])[0] in people}
    if leaks := sorted(taught | (set(validation["ID"]) & set(extra["ID"]))):
        problems.append(
            f"{len(leaks)} people of the validation images of fold {fold}, such as {leaks[0]}, are in it or taught the "
            "models that made its labels: the score would leak. Take the folder of this fold; {fold} stands for it"
        )
    if problems:
        raise DataError(f"extra_data {shown(folder)} can't be used", problems)
    return extra, people
