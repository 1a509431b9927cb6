"""The modules of `utils` that an image passes from PNG to CSV: .venv/bin/python -m tests.road

Notebooks 03, 04 and 05 are executed on a tiny sample in this process. A module counts if one of its functions runs
after 03's setup and before 05 writes submission.csv; what runs while a module is imported does not count.
"""

import os
import sys
import tempfile
import threading
from pathlib import Path

from tests.execute import ROOT, execute

TINY = {"image_size": 64, "epochs": 1, "architecture": "deeplabv3plus", "encoder": "tu-mobilenetv3_small_050"}


class Road:
    """While it is on, notes the modules of `utils` of which a function runs, in any thread, until `end` exists."""

    def __init__(self, end: Path):
        self.end, self.modules = end, {}
        self.package = str(ROOT / "utils") + os.sep

    def __enter__(self):
        threading.setprofile(self._see)
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)
        threading.setprofile(None)

    def _see(self, frame, event, _):
        code = frame.f_code
        path = code.co_filename
        if event != "call" or not path.startswith(self.package) or path in self.modules:
            return
        function, above = code.co_qualname, frame
        while above is not None:
            if above.f_code.co_name == "<module>" and above.f_code.co_filename.startswith(self.package):
                return  # it is being imported
            above = above.f_back
        if not self.end.exists():
            self.modules[path] = function


def modules_on_the_road(data: Path, folder: Path) -> dict[str, str]:
    """Paths below utils/ of the modules on the road, each with the first of its functions that ran."""
    run = {"data_dir": str(data), "output_dir": str(folder), "n_folds": 3}
    road = Road(folder / "05_ensemble" / "submission.csv")
    cells = []

    def after_cell():
        cells.append(1)
        if len(cells) == 3:  # the parameters of the notebook, those injected, and the setup
            road.__enter__()

    try:
        execute("03_train", folder / "03.ipynb", after_cell, **run, **TINY)
        execute("04_inference_tta", folder / "04.ipynb", **run)
        execute("05_ensemble", folder / "05.ipynb", **run)
    finally:
        road.__exit__()
    package = str(ROOT / "utils")
    return {os.path.relpath(path, package): function for path, function in road.modules.items()}


def main() -> None:
    from utils.sample.generator import make_sample

    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        data = make_sample(Path(folder) / "sample", train_people=6, test_people=2, image_size=256)
        found = modules_on_the_road(data, Path(folder) / "run")
    for path, function in sorted(found.items()):
        print(f"{path:<40} {function}")
    rooms = {}
    for path in found:
        rooms.setdefault(path.partition("/")[0], []).append(path)
    print(", ".join(f"{room} {len(paths)}" for room, paths in sorted(rooms.items())))
    print(f"{len(found)} modules")


if __name__ == "__main__":
    main()
