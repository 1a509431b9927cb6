"""Everything that needs a GPU, in one go: `bash tests/run.sh gpu`. Without a GPU it says so and ends with status 0.

Prints a table and writes outputs/gpu.json, a list of {"name", "value", "unit", "note", "passed"}; `passed` is null for
a figure that nothing is expected of. The exit status is 1 where an expectation failed. It takes under nine minutes.
"""

import contextlib
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

from tests.bench_training import endless
from utils.data.augment import Augmenter
from utils.data.augmentation import Augmentation
from utils.data.cache import Cache
from utils.data.competition import read_classes, read_index
from utils.data.fold_data import FoldData
from utils.data.loader import training_loader
from utils.device import Precision, candidates, choose_device
from utils.files import ROOT, cores, write_json
from utils.inference.predict import Predictor
from utils.masks.dice import dice_of_masks
from utils.masks.upsampling import upsample_masks
from utils.models import build_model
from utils.pipeline.profile import profile_path, read_profile
from utils.sample.generator import make_sample
from utils.training.fit import fit
from utils.training.losses import batch_loss, build_loss
from utils.training.optimizers import build_optimizer, build_schedule
from utils.training.settings import Settings

SIDE = 1024
SCALE = 2.0**16
"""Of the loss, so that float16 gradients do not vanish."""
CARD = 14.5
"""GiB that a card of 16 GB leaves to a training."""
TOLERANCE = {"32-true": 1e-3, "16-mixed": 0.02, "bf16-mixed": 0.05}
"""Largest difference of probabilities to the CPU's in float32."""
STEPS = 8
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
    torch.backends.cudnn.allow_tf32 = False  # float32 with all its digits
    data = sample_data(256)
    batch = next(iter(training_loader(data, Augmenter(Augmentation()), 4, seed=0)))
    loss = build_loss("bce_dice")
    for name, options in read_profile(profile_path("sample")).models.items():
        torch.manual_seed(0)
        model = build_model(options["architecture"], 29, options.get("encoder", ""), **options["model_options"]).eval()
        found = {}
        for precision, device in [("32-true", torch.device("cpu"))] + [
            (p, gpu) for p in ("32-true", "32-true channels_last", "16-mixed channels_last", *candidates(gpu))
        ]:
            network = Precision(precision).prepare(copy.deepcopy(model).to(device))
            with Precision(precision).computing(device):
                value = batch_loss(network, loss, move_data_to_device(batch, device), Precision(precision))
                (value * SCALE).backward()
                with torch.no_grad():
                    image = batch["image"][:1].float().expand(-1, 3, -1, -1).to(device) / 255
                    maps = network(image).float().sigmoid().cpu()
            gradient = torch.cat([p.grad.float().cpu().ravel() / SCALE for p in network.parameters()])
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
        for precision in candidates(gpu):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            try:
                fixed, fed = images_per_second(options, Precision(precision), loader, batch, loss, gpu)
            except Exception as error:  # the other models are still worth having
                record(
                    f"{name} at {SIDE}, {precision}",
                    "failed",
                    "",
                    f"{type(error).__name__}: {error}"[:300],
                    passed=False,
                )
                continue
            peak = torch.cuda.max_memory_allocated() / 2**30
            note = f"{fed:.2f} images/s fed by {workers} workers, {fixed:.2f} on a fixed batch of {size}"
            record(f"{name} at {SIDE}, {precision}", peak, "GiB peak", note, peak < CARD)


def images_per_second(options, precision, loader, batch, loss, gpu) -> tuple[float, float]:
    model = build_model(options["architecture"], 29, options["encoder"], image_size=SIDE)
    torch.backends.cudnn.benchmark = True
    model = precision.prepare(model.to(gpu)).train()
    average = copy.deepcopy(model)  # the averaged weights take memory too
    optimizer = build_optimizer("adamw", model.parameters(), 1e-4, 1e-2)
    scaler = torch.amp.GradScaler(enabled=precision.lightning == "16-mixed")

    def step(batch: dict[str, torch.Tensor]) -> None:
        with precision.computing(gpu):
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
    with contextlib.closing(endless(loader)) as source:
        timed(2 * len(loader), lambda: move_data_to_device(next(source), gpu))  # what workers have prepared ahead
        fed = timed(3 * STEPS, lambda: move_data_to_device(next(source), gpu))
    del average
    return fixed, fed


def real_training(gpu: torch.device) -> None:
    """Trainings at 1024 through `fit`: precision chosen, float16 with clipping and SGD, compiled; what they predict."""
    data = sample_data(SIDE)
    for precision, optimizer_name, lr, clip, epochs in (
        ("auto", "adamw", 2e-3, 0.0, 12),
        ("16-mixed channels_last", "adamw", 2e-3, 1.0, 4),
        ("16-mixed", "sgd", 1e-2, 0.0, 4),
        (candidates(gpu)[-1].partition(" ")[0] + " channels_last compile", "adamw", 2e-3, 0.0, 4),
    ):
        options = {"epochs": epochs, "batch_size": 4, "validate_every": epochs, "num_workers": min(6, cores())}
        settings = Settings(**options, precision=precision, gradient_clip=clip)
        torch.manual_seed(0)
        model = build_model("unetplusplus", 29, "tu-tf_efficientnet_lite0", "pip")
        optimizer = build_optimizer(optimizer_name, model.parameters(), lr, 1e-2)
        schedule, augmenter = build_schedule("cosine", optimizer, *settings.steps(data)), Augmenter(Augmentation())
        name = f"training at {SIDE}: {precision}, {optimizer_name}, gradient_clip {clip:g}"
        with tempfile.TemporaryDirectory() as folder:
            try:
                result = fit(model, build_loss("bce_dice"), augmenter, optimizer, schedule, data, settings, folder)
                losses, seconds = result.history["loss"], result.history["seconds"].median()
                note = (
                    f"loss {losses.iloc[0]:.3f} to {losses.iloc[-1]:.3f} in {epochs} epochs, {seconds:.1f} s per epoch"
                )
                falls = bool(losses.notna().all() and losses.iloc[-1] < 0.9 * losses.iloc[0])
                record(name, result.score, "val Dice", note, falls)
                if precision == "auto":
                    same_predictions(gpu, result.checkpoint, data)
            except Exception as error:  # the other trainings are still worth having
                record(name, "failed", "", f"{type(error).__name__}: {error}"[:300], passed=False)


def same_predictions(gpu: torch.device, checkpoint: Path, data: FoldData) -> None:
    """Dice of one checkpoint on the GPU beside the CPU, in float32, and in the precision that it was trained in."""
    names, scores = data.validation["image_name"].tolist(), {}
    for device, precision in ((torch.device("cpu"), "32-true"), (gpu, "32-true"), (gpu, "auto")):
        tables = []
        for name, maps in Predictor(checkpoint, device, precision=precision).predict(data.cache, names, 1):
            entry = data.cache.read(name)
            tables.append(dice_of_masks(upsample_masks(maps, entry.size, 0.5), entry.truth))
        scores[device.type, precision] = float(np.nanmean(tables))
    exact, same, half = scores.values()
    note = f"CPU {exact:.5f}, GPU {same:.5f}, in the chosen precision {half:.5f}"
    record("Dice of the same checkpoint, GPU beside CPU", abs(same - exact), "Dice", note, abs(same - exact) < 1e-3)
    record("Dice of the same checkpoint, chosen precision", abs(half - exact), "Dice", note, abs(half - exact) < 0.01)


def out_of_memory(gpu: torch.device) -> None:
    """A batch that is too large raises torch's own error, and the memory is there again afterwards."""
    before = torch.cuda.memory_allocated()
    try:
        torch.empty(torch.cuda.mem_get_info()[1] * 2, dtype=torch.uint8, device=gpu)
        record("out of memory is an error", "no error", passed=False)
    except torch.cuda.OutOfMemoryError:
        same = torch.cuda.memory_allocated() == before
        record("out of memory is an error, and leaves no memory behind", "yes" if same else "no", passed=same)


def device_lock() -> None:
    """While this process holds its GPU, another one of this project gets another GPU, or is told who holds it."""
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", "from utils.device import take_gpu; print(take_gpu(patience=0).index)"]
    other = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if torch.cuda.device_count() == 1:
        passed = f"held by process {os.getpid()} on" in other.stdout + other.stderr
    else:
        passed = other.stdout.strip() != str(choose_device().index)
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
