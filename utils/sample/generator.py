"""Make the synthetic sample: a data folder in the competition's layout, for people who don't have the real one.

    python -m utils.sample --folder data/sample --train-people 40 --test-people 12 --image-size 2048 --seed 0

An image's pixels depend only on its seed, split, person, side and size, not on the number of people or threads. The
same options always give the same files, byte by byte. `--label-errors 40` plants wrong labels of the kinds that are
known in the real data, `--artefacts 0.3` draws plates, rings, bandages and fractures; planted.json lists them.
"""

import argparse
import functools
import json
import re
import shutil
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from filelock import FileLock

from utils import files
from utils.data.competition import HAND_BONES, DataError
from utils.masks import rle
from utils.masks.labels import draw
from utils.sample import label_errors as label_error
from utils.sample import radiograph
from utils.sample.artefacts import add_artefact
from utils.sample.bones import Hand
from utils.sample.flaws import plan_flaws
from utils.sample.hand import Person, make_hand, make_person

VERSION = 1
"""Version of the generator; increased when the same options give other files."""
DEFAULT_FOLDER = files.ROOT / "data" / "sample"
BENT = {"train": 0.11, "test": 0.57}
"""Share of people whose wrists are bent sideways, per split."""
BENT_IDS = range(274, 322)
"""IDs of the training people with bent wrists, as in the real data."""
SECONDS = 0.8
"""Time that one core takes per image of 2048 × 2048."""


@dataclass(frozen=True)
class SampleImage:
    """One image of the sample, before it is made. seed: (seed, split, person, side), the seed of its pixels."""

    split: str
    ID: str
    name: str
    side: str
    person: Person
    seed: tuple[int, int, int, int]


def ensure_sample(data_dir: str = "", **options: int | None) -> Path:
    """The absolute path of the data folder: `data_dir`, or the sample, which is made on first use.

    "" and the path data/sample mean the default sample; it is made with `options` (see `make_sample`) if it does not
    exist yet. Every other folder must exist; if it does not, DataError says what to do.
    """
    folder = files.resolve(data_dir) if data_dir else DEFAULT_FOLDER
    missing = not folder.is_dir() or not any(folder.iterdir())
    if folder == DEFAULT_FOLDER and (options or missing):
        return make_sample(folder, **options)
    if folder.is_dir():
        return folder
    give = 'give the folder that holds train/DCM/<ID>/<name>.png (data_dir; "" stands for the synthetic sample)'
    make = f"or make a synthetic one there: python -m utils.sample --folder {files.shown(folder)}"
    raise DataError(f"{files.shown(folder)}: no such data folder", [give, make])


def make_sample(
    folder: str | Path,
    train_people: int = 40,
    test_people: int = 12,
    image_size: int = 2048,
    seed: int = 0,
    label_errors: int = 0,
    artefacts: float = 0.0,
    threads: int | None = None,
) -> Path:
    """Make a sample in `folder` (relative to the repository), whole or not at all; returns the absolute path.

    Each person has two images of `image_size` × `image_size` pixels; the real data has 400 and 144 people.
    `label_errors`: number of training images with wrong labels, of the kinds in
    `utils.sample.label_errors`; `artefacts`: share of all images with one of the kinds in `utils.sample.artefacts`.
    `threads` (default: one per core, at most 8) does not change the files. A folder that was made with the same options
    is left as it is. Raises DataError for a folder with other content, and for options below their minimum.
    """
    folder = files.resolve(folder)
    options = {"train_people": train_people, "test_people": test_people, "image_size": image_size, "seed": seed}
    low = {"train_people": 1, "test_people": 1, "image_size": 64, "seed": 0}
    wrong = [f"{name} = {value}; expected at least {low[name]}" for name, value in options.items() if value < low[name]]
    if not 0 <= label_errors <= 2 * train_people:
        wrong.append(f"label_errors = {label_errors}; expected 0 to {2 * train_people}, the number of training images")
    if not 0 <= artefacts <= 1:
        wrong.append(f"artefacts = {artefacts}; expected a share, 0 to 1")
    if wrong:
        raise DataError("a sample can't be made with these options", wrong)
    flaws = {"label_errors": label_errors, "artefacts": artefacts}
    options |= {name: value for name, value in flaws.items() if value}
    description = {"generator": "utils.sample", "version": VERSION, **options}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):  # two notebooks started together make one sample
        if not _is_made(folder, description):
            for stale in folder.parent.glob(f".{folder.name}.*.part"):  # left by a process that was killed
                shutil.rmtree(stale)
            temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
            try:
                _write_sample(temporary, folder, options, threads or min(files.cores(), 8))
                files.write_json(temporary / "sample.json", description)
                temporary.chmod(0o755)
                temporary.replace(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder


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
    """Whether this person's wrists are bent: evenly spread, so that any number of people has the right share."""
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


def geometry(image: SampleImage, size: int) -> tuple[Hand, dict[str, np.ndarray], np.random.Generator]:
    """The hand of an image, its annotation, and the random generator that `radiograph.render` continues to use.

    The annotation has one polygon per class, int32 (n, 2) x-y pixels inside the image. Like annotations by people, it
    differs a little from the bone's true edge.
    """
    rng = np.random.default_rng(image.seed)
    hand = make_hand(image.person, rng, image.side)
    polygons = {}
    for name, points in hand.outlines.items():
        wave = np.arange(len(points))[:, None] / len(points) * 2 * np.pi * np.arange(3, 15) + rng.uniform(0, 7, 12)
        stray = (np.cos(wave) @ rng.normal(0, 0.045, (12, 2))) * hand.mm * size
        whole = np.clip(np.rint(points * size - 0.5 + stray), 0, size - 1).astype(np.int32)
        polygons[name] = whole[np.any(whole != np.roll(whole, 1, axis=0), axis=1)]
    return hand, polygons, rng


def _make_image(folder: Path, size: int, flaws: dict[str, dict], image: SampleImage) -> list[tuple[str, str, str]]:
    """Write an image and its annotation; for a test image return its rows of the solution instead.

    What is planted in the image is noted in its entry of `flaws`.
    """
    hand, polygons, rng = geometry(image, size)
    wrong, others = flaws.get(image.name, {}), np.random.default_rng([*image.seed, 4])
    ring = radiograph.ring_outline(hand, label_error.RINGED, others)

    def add(attenuation: np.ndarray, grid: radiograph.Raster) -> None:
        if "artefact" in wrong:
            add_artefact(wrong["artefact"], attenuation, grid, hand, others)
        if wrong.get("label_error") == label_error.RING:
            radiograph.add_metal(attenuation, [ring], grid)

    pixels = radiograph.render(hand, image.person, rng, size, add)
    path = folder / image.split / "DCM" / image.ID / f"{image.name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
        raise OSError(f"{path} can't be written")
    if image.split == "train":
        if "label_error" in wrong:
            polygons, wrong["bone_by_label"] = label_error.plant(
                wrong["label_error"], polygons, ring * size - 0.5, others
            )
        path = folder / "train" / "outputs_json" / image.ID / f"{image.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_annotation(image, polygons, size)), encoding="utf-8")
        return []
    masks = {name: draw([points], (size, size)) for name, points in polygons.items()}
    return [(f"{image.name}.png", name, rle.encode(mask)) for name, mask in masks.items()]


def _annotation(image: SampleImage, polygons: dict[str, np.ndarray], size: int) -> dict:
    """The content of an annotation file, with the labelling tool's keys."""
    rng = np.random.default_rng([*image.seed, 3])
    suffix = ".jpg" if rng.random() < 0.06 else ".png"
    return {
        "annotations": [
            {"id": rng.bytes(8).hex(), "type": "poly_seg", "attributes": {}, "points": points.tolist(), "label": name}
            for name, points in polygons.items()
        ],
        "attributes": {},
        "file_id": rng.bytes(12).hex(),
        "filename": image.name + suffix,
        "parent_path": f"/{image.ID}",
        "last_modifier_id": rng.bytes(12).hex(),
        "metadata": {"height": size, "width": size},
        "last_workers": [rng.bytes(12).hex()],
    }


def _write_sample(temporary: Path, folder: Path, options: dict[str, int], threads: int) -> None:
    """Write every file of the sample except sample.json into `temporary`."""
    images = roster(options["train_people"], options["test_people"], options["seed"])
    size = options["image_size"]
    names = [[image.name for image in images if image.split == split] for split in ("train", "test")]
    flaws = plan_flaws(*names, options["seed"], options.get("label_errors", 0), options.get("artefacts", 0))
    seconds = 4 + len(images) * SECONDS * max(size / 2048, 0.15) ** 2 / min(threads, files.cores())
    what = f"{len(images)} images of {size} × {size} pixels, about {seconds / 60:.1f} minutes, once."
    print(f"Making a synthetic sample in {files.shown(folder)}: {what}", flush=True)
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)  # several images at the same time, one thread each
    try:
        with ThreadPoolExecutor(threads) as pool:  # OpenCV and NumPy release Python's lock while they compute
            rows = list(pool.map(functools.partial(_make_image, temporary, size, flaws), images))
    finally:
        cv2.setNumThreads(before)
    by_path = sorted(zip(images, rows, strict=True), key=lambda pair: f"{pair[0].ID}/{pair[0].name}.png")
    solution = [row for _, part in by_path for row in sorted(part, key=lambda row: HAND_BONES.index(row[1]))]
    pd.DataFrame(solution, columns=["image_name", "class", "rle"]).to_csv(temporary / "solution.csv", index=False)
    _write_metadata(temporary / "meta_data.xlsx", images, options["seed"])
    if flaws:
        planted = {f"{i.split}/DCM/{i.ID}/{i.name}.png": flaws[i.name] for i in images if i.name in flaws}
        files.write_json(temporary / "planted.json", planted)


def _write_metadata(path: Path, images: list[SampleImage], seed: int) -> None:
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


def _is_made(folder: Path, description: dict) -> bool:
    """Whether `folder` holds exactly this sample. Raises DataError if it holds something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = files.read_json(folder / "sample.json")
    except (OSError, ValueError) as error:
        problem = "it has no readable sample.json, so it is not a finished sample; nothing in it was touched"
        raise DataError(f"{files.shown(folder)} exists already", [problem, "choose another folder"]) from error
    if found == description:
        return True
    values = {key: (found.get(key), description.get(key)) for key in sorted({*found, *description})}
    differing = [f"{key}: found {old!r}, asked for {new!r}" for key, (old, new) in values.items() if old != new]
    advice = "choose another folder, or delete this one yourself if nobody needs it"
    raise DataError(f"{files.shown(folder)} holds a sample made with other options", [*differing, advice])


def main() -> None:
    """The command line: make a sample and print its path."""
    parser = argparse.ArgumentParser(prog="python -m utils.sample", description=__doc__.split("\n")[0])
    parser.add_argument("--folder", default="data/sample", help="relative to the repository (default: %(default)s)")
    parser.add_argument("--train-people", type=int, default=40, help="two images each (default: %(default)s)")
    parser.add_argument("--test-people", type=int, default=12, help="two images each (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=2048, help="pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other people (default: %(default)s)")
    parser.add_argument("--label-errors", type=int, default=0, help="training images with wrong labels (default: 0)")
    parser.add_argument("--artefacts", type=float, default=0.0, help="share of images with metal, … (default: 0)")
    parser.add_argument("--threads", type=int, default=None, help="default: one per core, at most 8")
    try:
        print(make_sample(**vars(parser.parse_args())))
    except DataError as error:
        parser.exit(2, f"{error}\n")
