"""The amounts of the built-in augmentation: what is changed at random, and by how much."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Annotated, Any

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from utils.files import Problems, unknown
from utils.params import NUMBER

Share = Annotated[FiniteFloat, NUMBER, Field(ge=0, le=1)]


def _up_to(most: float) -> Any:
    return Annotated[FiniteFloat, NUMBER, Field(ge=0, le=most)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Augmentation:
    """What is changed at random and by how much; 0 switches a change off.

    hflip, clahe, autocontrast, elastic, copy_paste, cutmix: probabilities, 0 to 1. rotate: largest angle, degrees in
    both directions. scale: largest change of size, as a fraction. shift: largest shift, as a fraction of the image
    side. brightness, contrast, gamma (the exponent of the grey values): largest change, as a fraction. elastic_shift:
    standard deviation of the elastic field, as a fraction of the image side. wrist_bend: largest bend of the wrist,
    degrees in both directions; nothing where the classes are not those of a whole hand, see `hand.bend`. copy_paste:
    some bones are replaced by those of another training image; cutmix: a rectangle is. There are no vertical flips and
    no fixed rotations by 90°, which lower the Dice.
    Raises ValueError (pydantic's) for a probability above 1 or an amount that would leave no hand in the image.
    """

    hflip: Share = 0.5
    rotate: _up_to(180) = 15.0
    scale: _up_to(0.9) = 0.1
    shift: _up_to(0.5) = 0.05
    brightness: Share = 0.2
    contrast: Share = 0.2
    clahe: Share = 0.0
    autocontrast: Share = 0.0
    elastic: Share = 0.0
    elastic_shift: _up_to(0.2) = 0.01
    gamma: _up_to(0.9) = 0.0
    wrist_bend: _up_to(45) = 0.0
    copy_paste: Share = 0.0
    cutmix: Share = 0.0


NO_AUGMENTATION = Augmentation(hflip=0, rotate=0, scale=0, shift=0, brightness=0, contrast=0)


def read_augmentation(amounts: Mapping[str, Any]) -> Augmentation:
    """The defaults of `Augmentation` with some `amounts` in their place, as the parameter `augment` gives them.

    Raises Problems with every unknown name, with the nearest ones, and every value that can't be used.
    """
    names = [field.name for field in fields(Augmentation)]
    problems = [unknown("name in augment", name, names) for name in amounts if name not in names]
    known = {name: value for name, value in amounts.items() if name in names}
    try:
        made = TypeAdapter(Augmentation).validate_python(known)
    except ValidationError as error:
        for wrong in error.errors(include_url=False):
            should = "a number" if wrong["type"] == "value_error" else wrong["msg"].removeprefix("Input should be ")
            problems.append(f"augment.{wrong['loc'][0]} = {wrong['input']!r}: expected {should}")
    if problems:
        raise Problems("these parameters can't be used:", problems)
    return made


def changed(amounts: Augmentation) -> list[str]:
    """The amounts that differ from the defaults, each as `name = value`."""
    return [f"{k} = {v}" for k, v in asdict(amounts).items() if v != getattr(Augmentation, k)]
