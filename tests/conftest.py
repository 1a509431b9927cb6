"""Every test sees `utils`, draws without a screen and looks nothing up on the network."""

import os
import sys
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")


SLOWEST = (
    "test_kills",
    "test_notebooks",
    "test_yolo",
    "test_own_parts",
    "test_pipeline",
    "test_zoo_modern",
    "test_zoo_classic",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """The slowest files first, after pytest-randomly: a worker that gets them last leaves the others idle."""
    order = {name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """A tiny synthetic data set: 6 people to train on, 2 to test, 256 × 256 pixels."""
    from utils.sample.generator import make_sample

    return make_sample(tmp_path_factory.mktemp("data") / "sample", train_people=6, test_people=2, image_size=256)


@pytest.fixture(scope="module")
def one_thread():
    """Torch computes with one thread: equal trainings are equal bit for bit, and tests that run beside don't wait."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
