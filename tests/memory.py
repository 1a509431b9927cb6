"""Peak memory of each step at the competition's size, and a soak test: `.venv/bin/python -m tests.memory [options]`.

    --parts WORD …   only the steps whose names hold one of the words
    --images N       images of the data set (default 1,088 as in the competition; 26 % of them are test images)
    --fold-models N  fold models in the store and the vote (default 15)
    --soak           instead, 200 rounds of predict, vote and score in one process; --rounds N for another number

The images are hard links to a few synthetic ones of 2048 × 2048 pixels, the fold models' stores links to one. Each
step runs in a process of its own, with a part of the images and with all of them. Fails if a process takes 8 GB or
more, or if memory grows with the number of images. All steps take about ten minutes on two cores and 3 GB of disk.
"""

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch

from tests.small import THIN
from utils import submission
from utils.analysis.survey import survey
from utils.data.cache import Cache
from utils.data.competition import read_classes, read_index
from utils.device import peak_memory, tune_process
from utils.files import ROOT
from utils.inference import weights
from utils.inference.ensemble import FoldModel, submission_frame, vote_images
from utils.inference.predict import Predictor
from utils.inference.probabilities import ProbabilityStore
from utils.models import build_model
from utils.models.checkpoint import Config, save_checkpoint
from utils.sample.generator import make_sample

LIMIT = 8000
"""MB that no process may reach."""
FEWEST = 12
"""Images of a part, at least: enough that every queue has been full once."""
GROWTH = 300
"""MB by which a step with all images may exceed the same step with a part of them; a result of 29 masks takes 0.1."""
SIDE = 2048
TRAIN_SHARE = 800 / 1088


def make_data(folder: Path, images: int) -> Path:
    """A data folder of `images` images, hard links to those of a small sample; solution.csv included."""
    small = make_sample(folder / "small", train_people=3, test_people=2, image_size=SIDE)
    data = folder / f"data{images}"
    table = read_index(small)
    truth = submission.read(small / "solution.csv").groupby("image_name")
    train = round(images * TRAIN_SHARE)
    rows = []
    for split, count in (("train", train), ("test", images - train)):
        originals = table[table["split"] == split].to_dict("records")
        for number in range(count):
            original, person = originals[number % len(originals)], f"ID{split}{number // 2:04}"
            stem = f"image{split}{number:05}"
            files = {f"{split}/DCM/{person}/{stem}.png": original["image"]}
            if split == "train":
                files[f"train/outputs_json/{person}/{stem}.json"] = original["annotation"]
            else:
                rows.append(truth.get_group(original["image_name"]).assign(image_name=f"{stem}.png"))
            for name, source in files.items():
                (data / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(source, data / name)
    submission.write(pd.concat(rows), data / "solution.csv")
    return data


def built_cache(data: Path, side: int, build: bool = True) -> Cache:
    table = read_index(data)
    cache = Cache(data.parent / "cache" / data.name, table, read_classes(data), side)
    if build:
        cache.build()
    return cache


def thin_checkpoint(folder: Path, classes: list[str], side: int) -> Path:
    """A small network with random weights."""
    torch.manual_seed(0)
    model = build_model(THIN["architecture"], len(classes), THIN["encoder"], **THIN["options"])
    save_checkpoint(folder, model, Config(classes=classes, image_size=side, **THIN))
    return folder


def fill_stores(data: Path, side: int, count: int) -> list[FoldModel]:
    """`count` fold models of three models and five folds, whose stores hold links to probabilities made of labels."""
    cache, folder = built_cache(data, side, build=False), data.parent / f"stores-{data.name}-{side}"
    table = read_index(data)
    fold_models = []
    for number in range(count):
        stores = (ProbabilityStore(folder / str(number) / kind) for kind in ("oof", "test"))
        fold_models.append(FoldModel(f"model{number // 5}", number % 5, *stores, None))
    if folder.exists():
        return fold_models
    made = ProbabilityStore(folder / "made")
    train = table[table["split"] == "train"].iloc[:6]
    cache.sources = {name: cache.sources[name] for name in train["image_name"]}
    cache.build()
    for name in train["image_name"]:
        entry = cache.read(name)
        made.write(name, entry.label.dense().astype(np.float32) / 255, entry.size)
    originals = [made.path(name) for name in train["image_name"]]
    for number, row in enumerate(table.itertuples()):
        for fold_model in fold_models:
            store = fold_model.oof if row.split == "train" else fold_model.test
            store.folder.mkdir(parents=True, exist_ok=True)
            os.link(originals[number % len(originals)], store.path(row.image_name))
    return fold_models


def run_survey(data: Path, side: int, count: int) -> None:
    table = read_index(data)
    survey(table[table["split"] == "train"], read_classes(data))


def run_cache(data: Path, side: int, count: int) -> None:
    shutil.rmtree(data.parent / "cache" / data.name / str(side), ignore_errors=True)
    built_cache(data, side)


def run_predict(data: Path, side: int, count: int) -> None:
    """With a flip, four images at a time at 1024 and one at 2048."""
    cache = built_cache(data, side)
    with tempfile.TemporaryDirectory(dir=data.parent) as folder:
        checkpoint = thin_checkpoint(Path(folder, "checkpoint"), cache.classes, side)
        predictor = Predictor(checkpoint, torch.device("cpu"), "hflip")
        predictor.fill(
            ProbabilityStore(Path(folder, "store")), cache, list(cache.sources), (1024 // side) ** 2 * 4 or 1
        )


def run_vote(data: Path, side: int, count: int) -> None:
    fold_models = fill_stores(data, side, count)
    table = read_index(data)
    names = table.loc[table["split"] == "test", "image_name"]
    votes = vote_images(fold_models, names, "test", {m.model: 1.0 for m in fold_models}, 0.5)
    submission.write(submission_frame(votes, read_classes(data)), data / "vote.csv")


def run_out_of_fold(data: Path, side: int, count: int) -> None:
    fold_models = fill_stores(data, side, count)
    cache = built_cache(data, side)
    images = {name: number % 5 for number, name in enumerate(n for n, s in cache.sources.items() if s[1])}
    weights.out_of_fold_dice(fold_models, images, cache, {m.model: 1.0 for m in fold_models})


def run_check(data: Path, side: int, count: int) -> None:
    assert submission.check(data / "solution.csv", data) == []
    submission.find_warnings(data / "solution.csv", data)


def run_score(data: Path, side: int, count: int) -> None:
    assert submission.score(data / "solution.csv", data / "solution.csv", data)["dice"].mean() == 1


def run_hard_vote(data: Path, side: int, count: int) -> None:
    submission.write(submission.vote([data / "solution.csv"] * count), data / "hard.csv")


STEPS: dict[str, tuple[Callable[[Path, int, int], None], int, int]] = {
    "measuring annotations and images (01)": (run_survey, 0, 1),
    "cache at 1024": (run_cache, 1024, 1),
    "cache at 2048": (run_cache, 2048, 10),
    "prediction at 1024 (04)": (run_predict, 1024, 40),
    "prediction at 2048 (04)": (run_predict, 2048, 50),
    "soft vote at 1024 (05)": (run_vote, 1024, 1),
    "soft vote at 2048 (05)": (run_vote, 2048, 10),
    "out-of-fold scores at 1024 (05)": (run_out_of_fold, 1024, 1),
    "check of the submission": (run_check, 0, 1),
    "score of the submission": (run_score, 0, 1),
    "hard vote of submissions": (run_hard_vote, 0, 1),
}
"""Function, side of the network's images, and the part (1/n) of the data set's images that is used."""


def measure(name: str, data: Path, images: int, fold_models: int) -> dict:
    """Run a step in a process of its own; its peak memory in MB and its seconds."""
    command = [sys.executable, "-m", "tests.memory", "--step", name, "--data", str(data)]
    command += ["--fold-models", str(fold_models)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return {"step": name, "images": images, **json.loads(done.stdout.splitlines()[-1])}


def run_step(name: str, data: Path, fold_models: int) -> None:
    """In the process of the step: run it and print what it took."""
    tune_process()  # as every notebook does; it keeps memory that was used once
    function, side, _ = STEPS[name]
    started = time.monotonic()
    function(data, side, fold_models)
    print(json.dumps({"peak_mb": round(peak_memory()), "seconds": round(time.monotonic() - started, 1)}))


def measure_all(words: list[str], images: int, fold_models: int) -> list[str]:
    """Measure the steps, print a table and return what is wrong."""
    problems = []
    (ROOT / "outputs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "outputs", prefix="memory-") as folder:
        made: dict[int, Path] = {}
        print(f"{'step':<40}{'images':>8}{'peak MB':>9}{'seconds':>9}", flush=True)
        for name, (_, _, part) in STEPS.items():
            if words and not any(word in name for word in words):
                continue
            peaks = []
            for count in sorted({max(images // part // 4, FEWEST), max(images // part, FEWEST)}):
                if count not in made:
                    made[count] = make_data(Path(folder), count)
                row = measure(name, made[count], count, fold_models)
                print(f"{name:<40}{count:>8}{row['peak_mb']:>9}{row['seconds']:>9}", flush=True)
                peaks.append(row["peak_mb"])
            if max(peaks) >= LIMIT:
                problems.append(f"{name}: {max(peaks)} MB, expected less than {LIMIT}")
            if peaks[-1] > peaks[0] + GROWTH:
                problems.append(f"{name}: {peaks[0]} MB with a part of the images, {peaks[-1]} MB with all")
    return problems


def soak(rounds: int, folder: Path) -> list[str]:
    """Rounds of predict, vote, check and score in this process; what has grown since a tenth of them, in words."""
    data = make_sample(folder / "data", train_people=2, test_people=2, image_size=256)
    table = read_index(data)
    cache = Cache(folder / "cache", table, read_classes(data), 64)
    cache.build()
    names = table.loc[table["split"] == "test", "image_name"].tolist()
    checkpoint = thin_checkpoint(folder / "checkpoint", cache.classes, 64)
    process, taken = psutil.Process(), []
    for number in range(1, rounds + 1):
        stores = folder / "stores"
        fold_models = []
        for fold in (0, 1):
            predictor = Predictor(checkpoint, torch.device("cpu"), "hflip")
            fold_models.append(FoldModel("thin", fold, *(ProbabilityStore(stores / f"{fold}{k}") for k in "ab"), None))
            predictor.fill(fold_models[-1].test, cache, names, 2)
        votes = vote_images(fold_models, names, "test", {"thin": 1.0}, 0.5)
        submission.write(submission_frame(votes, cache.classes), folder / "s.csv")
        assert submission.check(folder / "s.csv", data) == []
        submission.find_warnings(folder / "s.csv", data)
        submission.score(folder / "s.csv", data / "solution.csv", data)
        shutil.rmtree(stores)
        gc.collect()
        files = sum(len(names) for _, _, names in os.walk(folder))
        taken.append((process.memory_info().rss / 2**20, process.num_fds(), process.num_threads(), files))
        if number % max(rounds // 10, 1) == 0:
            print("round {}: {:.0f} MB, {} descriptors, {} threads, {} files".format(number, *taken[-1]), flush=True)
    early, late = taken[: rounds // 10 + 5][-5:], taken[-5:]
    first, last = (np.max(part, axis=0) for part in (early, late))
    names = ("MB of memory", "descriptors", "threads", "files")
    allowed = (20, 0, 0, 0)
    return [
        f"{name} grew from {a:.0f} to {b:.0f}"
        for name, a, b, more in zip(names, first, last, allowed, strict=True)
        if b > a + more
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=[])
    parser.add_argument("--images", type=int, default=1088)
    parser.add_argument("--fold-models", type=int, default=15)
    parser.add_argument("--soak", action="store_true")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        return run_step(options.step, options.data, options.fold_models)
    if options.soak:
        with tempfile.TemporaryDirectory() as folder:
            problems = soak(options.rounds, Path(folder))
    else:
        problems = measure_all(options.parts, options.images, options.fold_models)
    if problems:
        sys.exit("\n".join(problems))
    print("nothing grows" if options.soak else f"every process stays below {LIMIT} MB")


if __name__ == "__main__":
    main()
