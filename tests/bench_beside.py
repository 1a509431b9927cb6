"""Benchmarks of this checkout beside another commit's, in turns: python -m tests.bench_beside COMMIT [words of a name].

Prints one row per benchmark with the median seconds of both and the ratio, the other commit's seconds divided by these:
above 1, this checkout is faster. The plain references are not timed.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.files import ROOT

ROUNDS = 5
ALONE = """
import json, sys
sys.path.insert(0, ".")
import torch
from tests import bench, bench_tools
torch.set_num_threads(2)
timed = bench_tools.side_by_side
def alone(name, ours, plain=None, repeats=5, times=1, note=""):
    return timed(name, ours, None, repeats)
for module in [m for name, m in sys.modules.items() if name.startswith("tests.bench")]:
    if hasattr(module, "side_by_side"):
        module.side_by_side = alone
    if hasattr(module, "time_apart"):
        apart = module.time_apart
        module.time_apart = lambda name, what, way, folder: apart(name, what, way, folder) if way == "ours" else (1, 0)
rows = next(f for f in bench.BENCHMARKS if f.__name__ == sys.argv[1])()
print(json.dumps({row["name"]: row["ours_s"] for row in rows if row["ours_s"]}))
"""


def timed(checkout: Path, benchmark: str) -> dict[str, float]:
    """Seconds of each row of a benchmark, measured in a process of its own; {} with a line where it fails."""
    command = [sys.executable, "-c", ALONE, benchmark]
    ended = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    if ended.returncode:
        print(f"{benchmark} fails in {checkout.name}: {ended.stderr.strip().splitlines()[-1]}", flush=True)
        return {}
    return json.loads(ended.stdout.strip().splitlines()[-1])


def main(commit: str, words: list[str]) -> None:
    """Time all benchmarks whose names hold one of the words, or all, in both checkouts."""
    from tests.bench import BENCHMARKS

    names = [f.__name__ for f in BENCHMARKS if not words or any(word in f.__name__ for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder, commit)
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(other), commit], cwd=ROOT, check=True)
        try:
            print(f"{'what':<60}{commit[:10]:>12}{'here':>12}{'ratio':>8}")
            for name in names:
                rounds = [(timed(other, name), timed(ROOT, name)) for _ in range(ROUNDS)]
                for row in rounds[0][0].keys() & rounds[0][1].keys():
                    before, here = (median(pair[side][row] for pair in rounds) for side in (0, 1))
                    pairs = median(pair[0][row] / pair[1][row] for pair in rounds)
                    print(f"{row:<60}{before:>12.4g}{here:>12.4g}{pairs:>8.2f}", flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(other)], cwd=ROOT, check=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
