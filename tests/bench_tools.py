"""What the benchmarks share: two ways of doing one thing, timed in turns."""

import time
from collections.abc import Callable
from statistics import median


def seconds(step: Callable[[], object]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def side_by_side(
    name: str,
    ours: Callable[[], object],
    plain: Callable[[], object] | None = None,
    repeats: int = 5,
    times: float = 1,
    note: str = "",
) -> dict:
    """One row: medians of `repeats` turns of both, after one to warm up; `plain` does 1/`times` of the work."""
    pairs = [(seconds(ours), seconds(plain) * times if plain else None) for _ in range(repeats + (repeats > 1))]
    turns = pairs[repeats > 1 :]
    ours_s = median(turn[0] for turn in turns)
    reference_s = median(turn[1] for turn in turns) if plain else None
    ratio = reference_s / ours_s if plain else None
    return {"name": name, "ours_s": ours_s, "reference_s": reference_s, "ratio": ratio, "note": note}
