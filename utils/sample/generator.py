"""Make the synthetic sample: a data folder in the competition's layout, for people who don't have the real one.

    python -m utils.sample --folder data/sample --train-people 40 --test-people 12 --image-size 2048 --seed 0

An image's pixels depend only on its seed, split, person, side and size, not on the number of people or threads. The
same options always give the same files, byte by byte. `--label-errors 40` plants wrong labels of the kinds that are
known in the real data, `--artefacts 0.3` draws plates, rings, bandages and fractures; planted.json lists them.
"""

import argparse
import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import pandas as pd
from filelock import FileLock

from utils import files
from utils.data.competition import HAND_BONES, DataError
from utils.sample.flaws import plan_flaws
from utils.sample.images import make_image
from utils.sample.roster import roster, write_metadata

VERSION = 1
"""Version of the generator; increased when the same options give other files."""
DEFAULT_FOLDER = files.ROOT / "data" / "sample"
SECONDS = 0.8
"""Time that one core takes per image of 2048 × 2048."""


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
            with files.replacing_folder(folder) as new:
                _write_sample(new, folder, options, threads or min(files.cores(), 8))
                files.write_json(new / "sample.json", description)
    return folder


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
            rows = list(pool.map(functools.partial(make_image, temporary, size, flaws), images))
    finally:
        cv2.setNumThreads(before)
    by_path = sorted(zip(images, rows, strict=True), key=lambda pair: f"{pair[0].ID}/{pair[0].name}.png")
    solution = [row for _, part in by_path for row in sorted(part, key=lambda row: HAND_BONES.index(row[1]))]
    table = pd.DataFrame(solution, columns=["image_name", "class", "rle"])
    files.write_table(temporary / "solution.csv", table, index=False)
    write_metadata(temporary / "meta_data.xlsx", images, options["seed"])
    if flaws:
        planted = {f"{i.split}/DCM/{i.ID}/{i.name}.png": flaws[i.name] for i in images if i.name in flaws}
        files.write_json(temporary / "planted.json", planted)


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
