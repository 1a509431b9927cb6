"""A model that refines another one: it sees some classes at a higher resolution, in a square that the first has found.

Its probabilities take the place of a part of the first model's: inside the square, the refined classes are
(1 - share) · first + share · second. The share is the stage's weight in the square's middle and falls to 0 towards its
border, so that no edge shows. Other classes, and everything beyond the square, stay as the first model has them. The
two are added at full size, so neither is resampled to the other's resolution.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.data.records import NAME, Prediction
from utils.data.windows import Windows, corner_around
from utils.files import read_json, resolve, shown
from utils.hand.bones import PARAMETER
from utils.inference.probabilities import ProbabilityStore, Stored, quantised
from utils.masks.sparse import Patch, SparseMaps
from utils.models.base import ModelError
from utils.models.checkpoint import WEIGHTS, Config, check_unseen, read_config
from utils.registry import file_sha256

EQUAL = 0.5
"""The stage's weight where none was chosen: both models count the same."""
BORDER = 0.125
"""Part of the square's side over which the share falls from the weight to 0."""


class RefinedStore(ProbabilityStore):
    """The probabilities of both models: the folder holds those of the refined classes, `read` adds them to the first's.

    first: the store of the first model's fold model of the same fold, with the same images. config: of the stage's
    checkpoint. weight: of the stage beside the first model, 0 to 1; at 0, `read` gives what the first model's store
    holds.
    """

    def __init__(self, folder: str | Path, first: ProbabilityStore, config: Config, weight: float = EQUAL):
        super().__init__(folder)
        self.first, self.config, self.weight = first, config, weight
        self.grid = (config.image_size, config.image_size)

    def at(self, weight: float) -> "RefinedStore":
        """The same store with another weight."""
        return RefinedStore(self.folder, self.first, self.config, weight)

    def corner(self, image_name: str) -> tuple[int, int]:
        """Where the image's square begins (top, left), on the stage's grid: around what the first found."""
        regions, config = self.first.read(image_name).regions, self.config
        return corner_around(regions, config.refined_numbers, self.grid, config.window)

    def windows(self, names: Sequence[str]) -> Windows:
        """The images' squares."""
        corners = {name: self.corner(name) for name in names}
        return Windows(self.config.refined_numbers, self.grid, self.config.window, corners)

    def begin(self, source: dict) -> None:
        """As of the other stores; what was made from other predictions of the first model is deleted, too."""
        super().begin(source | {"first": read_json(self.first.folder / "store.json", {})})

    def write(self, image_name: str, probabilities: np.ndarray, size: tuple[int, int]) -> None:
        """Store the refined classes of float32 (classes, side, side) probabilities in [0, 1] of the image's square."""
        refined, numbers = np.zeros_like(probabilities), self.config.refined_numbers
        refined[numbers] = probabilities[numbers]
        inside = quantised(image_name, refined)
        top, left = self.corner(image_name)
        moved = [(patch, (y + top, x + left) if patch.size else (0, 0)) for patch, (y, x) in inside.patches()]
        self._save(image_name, SparseMaps.from_patches(self.grid, moved), size)

    def read(self, image_name: str) -> Stored:
        """One image's probabilities of both models, see `merge`; errors as of the other stores."""
        first = self.first.read(image_name)
        if not self.weight:
            return first
        second, side = super().read(image_name).regions, self.config.window
        corner = corner_around(first.regions, self.config.refined_numbers, self.grid, side)
        return merge(first, second, corner, side, self.weight, self.config.refined_numbers)


def merge(
    first: Stored, second: SparseMaps, corner: tuple[int, int], side: int, weight: float, classes: Sequence[int]
) -> Stored:
    """The first model's probabilities with those of a stage, as the module's text says.

    second: of the same classes, on the stage's grid, not 0 only for `classes` (their numbers) inside the square of
    `side` pixels at `corner` (top, left). weight: of the stage, 0 to 1.
    """
    shares = [
        _shares(grid, first.regions.grid, second.grid, corner, side) for grid in (first.regions.grid, second.grid)
    ]
    kept, added = first.regions.patches(), second.patches()
    for number in classes:
        kept[number] = _times(kept[number], shares[0], -weight, 1.0)
        added[number] = _times(added[number], shares[1], weight, 0.0)
    return Stored(
        SparseMaps.from_patches(first.regions.grid, kept), first.size, SparseMaps.from_patches(second.grid, added)
    )


def _shares(
    grid: tuple[int, int], coarse: tuple[int, int], fine: tuple[int, int], corner: tuple[int, int], side: int
) -> list[np.ndarray]:
    """The share, 0 to 1, in each row and each column of `grid`; that of a pixel is the product of its two.

    It is 0 up to a pixel of the coarser grid inside the square, because upsampling spreads a pixel that far.
    """
    ramps = []
    for length, n, m, start in zip(grid, coarse, fine, corner, strict=True):
        place = (np.arange(length) + 0.5) * (m / length) - start  # in the square, in pixels of the fine grid
        inside = np.minimum(place, side - place) - max(m / n, 1.0)
        ramps.append(np.clip(inside / (BORDER * side), 0, 1))
    return ramps


def _times(patch: Patch, shares: list[np.ndarray], slope: float, offset: float) -> Patch:
    """A patch times offset + slope · share."""
    values, (top, left) = patch
    rows, columns = shares[0][top : top + values.shape[0]], shares[1][left : left + values.shape[1]]
    return np.rint(values * (offset + slope * np.outer(rows, columns))).astype(values.dtype), (top, left)


def open_first(output_dir: str | Path, first: str, fold: int, people: Sequence[str]) -> tuple[Path, Config]:
    """The predictions' folder and the config of the fold model that another one refines.

    people: those of the fold's validation images.

    Raises:
        FileNotFoundError: if its predictions are not finished.
        ModelError: if it was trained on somebody of `people`, refines another itself, or has been trained again since
            it predicted.
    """
    step, place = Prediction.notebook, Path(first, f"fold{fold}")
    predictions, checkpoint = (resolve(output_dir) / name / place for name in (step, Prediction.checkpoint_of))
    if not (predictions / NAME).exists():
        raise FileNotFoundError(
            f"{PARAMETER} = {first}: no finished predictions in {shown(predictions)}: run {step} with "
            f"-p model {first} -p fold {fold} first"
        )
    config = read_config(checkpoint / "best")
    if config.refines:
        raise ModelError(
            f"{PARAMETER} = {first}: that one refines another itself; name {config.first}, which it refines"
        )
    digest = file_sha256(checkpoint / "best" / WEIGHTS)
    if any(read_json(predictions / split / "store.json", {}).get("weights") != digest for split in ("oof", "test")):
        raise ModelError(
            f"{PARAMETER} = {first}: {shown(predictions)} was predicted with other weights than those in "
            f"{shown(checkpoint)}: run {step} with -p model {first} -p fold {fold} again"
        )
    advice = f"Train {first} with -p fold {fold} in this run, then predict with it"
    check_unseen(config, people, f"{PARAMETER} = {first}: {shown(checkpoint)}", advice)
    return predictions, config
