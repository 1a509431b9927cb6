"""The bones of the hand by the competition's names, and those that a model looks at again at a higher resolution."""

from collections.abc import Sequence

from utils.files import Problems

HAND_BONES = (
    *(f"finger-{i}" for i in range(1, 20)),
    *("Trapezium", "Trapezoid", "Capitate", "Hamate", "Scaphoid", "Lunate", "Triquetrum", "Pisiform"),
    *("Radius", "Ulna"),
)
"""The 29 classes in the competition's order. Finger bones count from the thumb outwards, tip first."""
CARPALS, FOREARM = HAND_BONES[19:27], HAND_BONES[27:]
MIDDLE_METACARPAL = "finger-11"
PARAMETER = "wrist_of"
"""The parameter of notebook 03 that names the model of which another one refines the `small_bones`."""


def small_bones(classes: Sequence[str]) -> list[str]:
    """The bones around which crops lie and which a wrist stage refines: the eight carpals.

    [] where the classes are not those of a hand with its wrist, so that Radius, Ulna or a carpal is missing.
    """
    return list(CARPALS) if set(CARPALS) | set(FOREARM) <= set(classes) else []


def check_crops(crop: int, wrist_crops: float, image_size: int, classes: Sequence[str], wrist_of: str = "") -> None:
    """Raise Problems for crops that do not fit the images, and for wrists in data that has none."""
    problems = []
    if crop and not 32 <= crop < image_size:
        problems.append(f"crop = {crop}: expected 0 (whole images), or from 32 to less than image_size = {image_size}")
    if wrist_crops < 0 or (wrist_crops and not crop):
        problems.append(f"wrist_crops = {wrist_crops}: expected 0, or a share of the images beside a crop above 0")
    for name, value in (("wrist_crops", wrist_crops), ("wrist_of", wrist_of)):
        if value and not small_bones(classes):
            problems.append(f"{name} = {value}: the classes have no Radius, Ulna and carpals; leave it out")
    if wrist_of and (wrist_crops or not crop):
        problems.append(f"wrist_of = {wrist_of}: expected a crop above 0 and no wrist_crops: all crops are of wrists")
    if problems:
        raise Problems("these parameters can't be used:", problems)
