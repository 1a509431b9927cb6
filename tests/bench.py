"""Benchmarks: each of our steps beside its plain reference, in one run: `bash tests/run.sh bench [words of a name]`.

Prints a table. Without words it also writes outputs/benchmarks.json, a list of {"name", "ours_s", "reference_s",
"ratio", "note"}; reference_s and ratio are null where a step is measured alone. To add benchmarks, append a function
that returns rows to BENCHMARKS.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests import bench_data, bench_formats, bench_masks, bench_network, bench_training
from utils.files import ROOT, write_json

BENCHMARKS = [
    bench_masks.full_size,
    bench_training.training_samples,
    bench_training.cache_building,
    bench_training.stored_probabilities,
    bench_training.fed_steps,
    bench_network.network_steps,
    bench_network.network_profile,
    bench_masks.submission_files,
    bench_formats.conversions,
    bench_data.data_report,
]


def main(words: list[str]) -> None:
    """Run the benchmarks whose names hold one of the words, or all."""
    torch.set_num_threads(2)
    rows = []
    print(f"{'what':<50}{'ours s':>10}{'reference s':>13}{'ratio':>8}   note")
    for benchmark in BENCHMARKS:
        if words and not any(word in benchmark.__name__ for word in words):
            continue
        for row in benchmark():
            numbers = (row["ours_s"], row["reference_s"], row["ratio"])
            shown = [f"{x:.4g}" if x is not None else "-" for x in numbers]
            print(f"{row['name']:<50}{shown[0]:>10}{shown[1]:>13}{shown[2]:>8}   {row['note']}", flush=True)
            rows.append(row)
    if not words:
        write_json(ROOT / "outputs/benchmarks.json", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
