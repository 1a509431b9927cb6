"""Choose who is in a sample: people and their IDs, the names of their images, and the metadata table."""

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.sample.hand import Person, make_person

BENT = {"train": 0.11, "test": 0.57}
"""Share of people whose hands are bent sideways, per split."""
BENT_IDS = range(274, 322)
"""IDs of the training people with bent hands, as in the real data."""


@dataclass(frozen=True)
class SampleImage:
    """One image of the sample, before it is made. seed: (seed, split, person, side), the seed of its pixels."""

    split: str
    ID: str
    name: str
    side: str
    person: Person
    seed: tuple[int, int, int, int]


def roster(train_people: int, test_people: int, seed: int) -> list[SampleImage]:
    """Every image of a sample, sorted by split and person. As in the real data, IDs of both splits are mixed."""
    people = {"train": train_people, "test": test_people}
    bent = {split: [_is_bent(split, k) for k in range(count)] for split, count in people.items()}
    count = min(sum(bent["train"]), len(BENT_IDS))
    block = [BENT_IDS[i * len(BENT_IDS) // count] for i in range(count)]
    last = max(550, train_people + test_people - count + 49)
    rng = np.random.default_rng([seed, 1000, train_people, test_people])
    free = rng.permutation([i for i in range(2, last - 2) if i != 40 and i not in BENT_IDS]).tolist()
    test = [40, last, *(i for i in free if i > 40)][:test_people]
    train = [1, last - 2, *(i for i in free if i not in test)][: train_people - count]
    images = []
    for index, (split, numbers, special) in enumerate((("train", train, block), ("test", test, []))):
        ordinary, special = iter(sorted(numbers)), iter(special)
        for k, is_bent in enumerate(bent[split]):
            number = next(special, None) if is_bent else None
            images += _both_hands(split, (seed, index, k), number or next(ordinary), is_bent)
    return sorted(images, key=lambda image: (image.split == "test", image.ID, image.seed))


def _is_bent(split: str, person: int) -> bool:
    """Whether this person's hands are bent: evenly spread, so that any number of people has the right share."""
    return int((person + 1) * BENT[split] + 0.5) > int(person * BENT[split] + 0.5)


def _both_hands(split: str, seed: tuple[int, int, int], number: int, bent: bool) -> list[SampleImage]:
    person = make_person(seed, bent)
    rng = np.random.default_rng([*seed, 2])
    start = 1661130828152 + (number - 1) * 11_397_000 + int(rng.integers(0, 6_000_000))
    later = int(rng.integers(17_000, 95_000))
    named = number == 1 or rng.random() < 0.03  # only a few file names say the side
    times = {"R": start, "L": start + later} if rng.random() < 0.8 else {"R": start + later, "L": start}
    return [
        SampleImage(split, f"ID{number:03d}", f"image{times[side]}{f'_{side}' * named}", side, person, (*seed, i))
        for i, side in enumerate("RL")
    ]


def write_metadata(path: Path, images: list[SampleImage], seed: int) -> None:
    """Write `meta_data.xlsx` with the original's columns, odd characters, and rows of people who have no images."""
    from openpyxl import Workbook

    people = {image.ID: image.person for image in images}
    missing = [f"ID{i:03d}" for i in range(2, 549) if f"ID{i:03d}" not in people]
    rng = np.random.default_rng([seed, 1001])
    for number in rng.permutation(missing)[: max(2, len(people) // 90)]:
        people[str(number)] = make_person((seed, 2, int(number[2:])), bent=False)
    book = Workbook()
    sheet = book.active
    sheet.append(["ID", "나이", "성별", "체중(몸무게)", "키(신장)", None])  # pandas names the last one "Unnamed: 5"
    for name, person in sorted(people.items()):
        sex = f"_x0008_{person.sex}" if rng.random() < 0.3 else person.sex
        nails = "네일있음" if person.nail_art else None
        sheet.append([name, person.age, sex, person.weight_kg, person.height_cm, nails])
    draft = path.with_suffix(".draft")
    book.save(draft)
    with zipfile.ZipFile(draft) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():  # no times of writing, so that the bytes are always the same
            content = re.sub(rb"\d{4}-\d\d-\d\dT[\d:]+Z", b"2022-11-04T00:00:00Z", source.read(name))
            target.writestr(zipfile.ZipInfo(name, (2022, 11, 4, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    draft.unlink()
