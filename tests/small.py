"""A small real training, for the tests of training, parts and inference."""

import torch

from utils.data.augment import Augmenter
from utils.data.augmentation import Augmentation
from utils.data.cache import Cache
from utils.data.competition import read_classes, read_index
from utils.data.fold_data import FoldData
from utils.models import build_model
from utils.models.checkpoint import Config, load_checkpoint
from utils.training import fit as fitting
from utils.training.losses import build_loss
from utils.training.optimizers import build_optimizer, build_schedule
from utils.training.settings import Settings

CPU = torch.device("cpu")
THIN = {"architecture": "deeplabv3plus", "encoder": "tu-mobilenetv3_small_050", "options": {"decoder_channels": 16}}
OWN = ("module", "metric", "callbacks", "sampler")
"""Options of `fit` that are no settings."""


def small_data(sample, folder, validation=4):
    """The sample's first training images to validate on, the others to train on, at 64 × 64."""
    table, classes = read_index(sample), read_classes(sample)
    cache = Cache(folder, table, classes, 64)
    cache.build()
    train = table[table["split"] == "train"]
    return FoldData(cache, train.iloc[validation:], train.iloc[:validation], 0 if validation else -1)


def thin_config(data):
    return Config(classes=data.cache.classes, image_size=64, **THIN)


def fit(data, folder, stop_after=0, lr=2e-3, schedule="cosine", seed=0, parts=None, **options):
    """A short training by `fit`; `parts` replace its own: a function of none for the network, objects for others."""

    def on_epoch(history):
        if len(history) == stop_after:
            raise InterruptedError("killed")

    parts = parts or {}
    given = {"epochs": 2, "batch_size": 4, "seed": seed, "on_epoch": on_epoch, "device": "cpu", "precision": "32-true"}
    settings = Settings(**given | {k: v for k, v in options.items() if k not in OWN})
    torch.manual_seed(seed)
    if "model" in parts:
        model = parts["model"]()
    else:
        model = build_model(THIN["architecture"], len(data.cache.classes), THIN["encoder"], **THIN["options"])
    optimizer = parts.get("optimizer", lambda p: build_optimizer("adamw", p, lr, 1e-2))(model.parameters())
    steps = settings.steps(options.get("sampler") or data)
    schedule = parts.get("schedule", lambda o: build_schedule(schedule, o, *steps))(optimizer)
    return fitting.fit(
        model,
        parts.get("loss") or build_loss("bce_dice"),
        parts.get("augmentation") or Augmenter(Augmentation()),
        optimizer,
        schedule,
        data,
        settings,
        folder,
        **{k: v for k, v in options.items() if k in OWN},
    )


def weights(folder):
    return load_checkpoint(folder)[0].state_dict()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))
