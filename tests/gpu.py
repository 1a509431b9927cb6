"""Everything that needs a GPU, in one go: `bash tests/run.sh gpu`. Without a GPU it says so and ends with status 0.

Prints a table and writes outputs/gpu.json, a list of {"name", "value", "unit", "note", "passed"}; `passed` is null for
a figure that nothing is expected of. The exit status is 1 where an expectation failed. It takes under nine minutes.
"""

import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.data.augment import Augmentation, Augmenter
from utils.data.cache import Cache
from utils.data.competition import read_classes, read_index
from utils.data.loader import FoldData, training_loader
from utils.device import Precision, candidates, choose_device
from utils.files import ROOT, cores, write_json
from utils.inference.predict import Predictor
from utils.masks.dice import dice_per_class
from utils.masks.upsampling import encode_masks
from utils.models import build_model
from utils.pipeline.profile import profile_path, read_profile
from utils.sample.generator import make_sample
from utils.training.fit import fit
from utils.training.losses import build_loss
from utils.training.module import Settings, batch_loss
from utils.training.optimizers import build_optimizer, build_schedule

SIDE = 1024
TOLERANCE = {"32-true": 1e-3, "16-mixed": 0.02, "bf16-mixed": 0.05}
"""Largest difference of probabilities to the CPU's in float32."""
STEPS = 6
rows: list[dict] = []


def record(name: str, value: float | str, unit: str = "", note: str = "", passed: bool | None = None) -> None:
    mark = {None: " ", True: "✓", False: "✗"}[passed]
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    print(f"{mark} {name:<58}{text:>12} {unit:<10} {note}", flush=True)
    rows.append({"name": name, "value": value, "unit": unit, "note": note, "passed": passed})
    write_json(ROOT / "outputs/gpu.json", rows)


def sample_data(image_size: int) -> FoldData:
    folder = make_sample(ROOT / "outputs/gpu-sample", train_people=12, test_people=1)
    table, classes = read_index(folder), read_classes(folder)
    cache = Cache(ROOT / "outputs/gpu-cache", table, classes, image_size)
    cache.build()
    train = table[table["split"] == "train"]
    return FoldData(cache, train.iloc[4:], train.iloc[:4], 0)


def parity(gpu: torch.device) -> None:
    """Loss, gradient and probabilities of the sample's models beside the CPU's in float32."""
    data = sample_data(256)
    batch = next(iter(training_loader(data, Augmenter(Augmentation()), 4, seed=0)))
    loss = build_loss("bce_dice")
    for name, options in read_profile(profile_path("sample")).models.items():
        torch.manual_seed(0)
        model = build_model(options["architecture"], 29, options.get("encoder", ""), **options["model_options"]).eval()
        found = {}
        for precision, device in [("32-true", torch.device("cpu"))] + [
            (p, gpu) for p in ("32-true", "32-true channels_last", *candidates(gpu))
        ]:
            network = Precision(precision).prepare(copy.deepcopy(model).to(device))
            with Precision(precision).autocast(device):
                value = batch_loss(network, loss, move_data_to_device(batch, device), Precision(precision))
                value.backward()
                with torch.no_grad():
                    image = batch["image"][:1].float().expand(-1, 3, -1, -1).to(device) / 255
                    maps = network(image).float().sigmoid().cpu()
            gradient = torch.cat([p.grad.float().cpu().ravel() for p in network.parameters()])
            found[precision, device.type] = value.item(), gradient, maps
        exact = found.pop(("32-true", "cpu"))
        for (precision, _), (value, gradient, maps) in found.items():
            limit = TOLERANCE[precision.partition(" ")[0]]
            angle = torch.nn.functional.cosine_similarity(gradient, exact[1], dim=0).item()
            difference = (maps - exact[2]).abs().max().item()
            fits = difference < limit and abs(value - exact[0]) < limit * exact[0] and angle > 1 - 2 * limit
            note = f"loss {value:.5f} beside {exact[0]:.5f}, cosine of the gradients {angle:.5f}, limit {limit}"
            record(f"parity: {name}, {precision}", difference, "", note, fits)


def overnight_models(gpu: torch.device) -> None:
    """Memory and images per second of each of overnight's models at 1024, on a fixed batch and fed by the loader."""
    profile = read_profile(profile_path("overnight"))
    size, data = profile.train["batch_size"], sample_data(SIDE)
    workers = min(profile.train["num_workers"], cores())
    loader = training_loader(data, Augmenter(Augmentation()), size, 0, workers)
    batch, loss = move_data_to_device(next(iter(loader)), gpu), build_loss(profile.train["loss"])
    for name, options in profile.models.items():
        for precision in [*candidates(gpu), candidates(gpu)[-1] + " compile"]:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            try:
                fixed, fed = images_per_second(options, Precision(precision), loader, batch, loss, gpu)
            except torch.OutOfMemoryError:
                record(f"{name} at {SIDE}, {precision}", "no memory", "", "", passed=False)
                continue
            peak = torch.cuda.max_memory_allocated() / 2**30
            note = f"{fed:.2f} images/s fed by {workers} workers, {fixed:.2f} on a fixed batch of {size}"
            record(f"{name} at {SIDE}, {precision}", peak, "GiB peak", note, peak < 16)


def images_per_second(options, precision, loader, batch, loss, gpu) -> tuple[float, float]:
    model = build_model(options["architecture"], 29, options["encoder"], image_size=SIDE)
    model = precision.prepare(model.to(gpu)).train()
    optimizer = build_optimizer("adamw", model.parameters(), 1e-4, 1e-2)
    scaler = torch.amp.GradScaler(enabled=precision.lightning == "16-mixed")

    def step(batch: dict[str, torch.Tensor]) -> None:
        with precision.autocast(gpu):
            value = batch_loss(model, loss, batch, precision)
        optimizer.zero_grad()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()

    def timed(number: int, next_batch) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(number):
            step(next_batch())
        torch.cuda.synchronize()
        return number * len(batch["image"]) / (time.perf_counter() - began)

    timed(3, lambda: batch)
    fixed = timed(STEPS, lambda: batch)
    source = iter(loader)
    next(source)
    fed = timed(min(STEPS, len(loader) - 1), lambda: move_data_to_device(next(source), gpu))
    return fixed, fed


def real_training(gpu: torch.device) -> None:
    """A few epochs at 1024 through `fit`: the precision is chosen, the loss falls, the checkpoint predicts the same."""
    data = sample_data(SIDE)
    settings = Settings(epochs=6, batch_size=4, validate_every=3, precision="auto", num_workers=min(6, cores()))
    torch.manual_seed(0)
    model = build_model("unetplusplus", 29, "tu-tf_efficientnet_lite0", "pip")
    optimizer = build_optimizer("adamw", model.parameters(), 2e-3, 1e-2)
    schedule = build_schedule("cosine", optimizer, *settings.steps(data))
    with tempfile.TemporaryDirectory() as folder:
        augmenter = Augmenter(Augmentation())
        result = fit(model, build_loss("bce_dice"), augmenter, optimizer, schedule, data, settings, folder)
        losses = result.history["loss"]
        note = (
            f"loss {losses.iloc[0]:.3f} to {losses.iloc[-1]:.3f}, {result.history['seconds'].median():.1f} s per epoch"
        )
        record("training at 1024 through fit", result.score, "val Dice", note, losses.iloc[-1] < losses.iloc[0] / 2)
        names, scores = data.validation["image_name"].tolist(), []
        for device in (gpu, torch.device("cpu")):
            predictor = Predictor(result.checkpoint, device)
            tables = [
                dice_per_class(encode_masks(maps, data.cache.read(name).size, 0.5), data.cache.read(name).truth)
                for name, maps in predictor.predict(data.cache, names, 1)
            ]
            scores.append(float(np.nanmean(tables)))
        note = f"GPU {scores[0]:.5f}, CPU {scores[1]:.5f}, validation {result.score:.5f}"
        passed = max(abs(score - result.score) for score in scores) < 0.002
        record("the checkpoint's Dice, GPU beside CPU", abs(scores[0] - scores[1]), "Dice", note, passed)


def out_of_memory(gpu: torch.device) -> None:
    """A batch that is too large raises torch's own error, and the memory is there again afterwards."""
    before = torch.cuda.memory_allocated()
    try:
        torch.empty(torch.cuda.mem_get_info()[1] * 2, dtype=torch.uint8, device=gpu)
        record("out of memory is an error", "no error", passed=False)
    except torch.OutOfMemoryError:
        same = torch.cuda.memory_allocated() == before
        record("out of memory is an error, and leaves no memory behind", "yes" if same else "no", passed=same)


def device_lock() -> None:
    """While this process holds its GPU, another one of this project gets another GPU or an error that says so."""
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", "from utils.device import choose_device; print(choose_device())"]
    other = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if torch.cuda.device_count() == 1:
        passed = other.returncode != 0 and "held by other notebooks" in other.stderr
    else:
        passed = other.stdout.strip() != str(choose_device())
    record("a second process does not get a held GPU", "yes" if passed else "no", passed=passed)


def main() -> int:
    """Run everything; the exit status."""
    if not torch.cuda.is_available():
        print(f"tests/gpu.py: torch {torch.__version__} sees no GPU here, so nothing was run")
        return 0
    began = time.monotonic()
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # with one, no lock is taken
    gpu = choose_device("auto")
    record("device", torch.cuda.get_device_name(gpu), "", f"torch {torch.__version__}, {cores()} cores")
    for part in (parity, overnight_models, real_training, out_of_memory):
        try:
            part(gpu)
        except Exception as error:  # the other parts are still worth having
            record(part.__name__, "failed", "", f"{type(error).__name__}: {error}"[:300], passed=False)
    device_lock()
    minutes = (time.monotonic() - began) / 60
    record("all of it", minutes, "min", "", minutes < 9)
    return int(any(row["passed"] is False for row in json.loads((ROOT / "outputs/gpu.json").read_text())))


if __name__ == "__main__":
    sys.exit(main())
