"""Every test sees `utils`, draws without a screen and looks nothing up on the network."""

import os
import sys
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest
from filelock import FileLock
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
    "test_preflight",
    "test_zoo_cam",
    "test_export",
    "test_faults",
    "test_zoo_side_by_side",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """The slowest files first, after pytest-randomly: a worker that gets them last leaves the others idle."""
    order = {name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def shared(tmp_path_factory, name, make):
    """A folder that `make` fills once for all workers: by the first that asks for it, the others wait."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "shared" / name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "made").exists():
            make(folder)
            (folder / "made").touch()
    return folder


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """A tiny synthetic data set: 6 people to train on, 2 to test, 256 × 256 pixels."""
    from utils.sample.generator import make_sample

    def make(folder):
        make_sample(folder / "sample", train_people=6, test_people=2, image_size=256)

    return shared(tmp_path_factory, "data", make) / "sample"


@pytest.fixture(scope="session")
def run(sample, tmp_path_factory):
    """A run of the notebooks on the sample, see `tests.notebooks.shared_steps`; nobody may change it."""
    from tests.execute import execute_all
    from tests.notebooks import shared_steps

    def make(folder):
        errors = execute_all(shared_steps(sample, folder / "run"), folder)
        assert not any(errors), errors

    return shared(tmp_path_factory, "run", make) / "run"


@pytest.fixture(scope="module")
def one_thread():
    """Torch computes with one thread: equal trainings are equal bit for bit, and tests that run beside don't wait."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
