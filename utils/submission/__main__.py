"""The commands on submission files.

python -m utils.submission check FILE --data DIR
python -m utils.submission score FILE SOLUTION [--data DIR]
python -m utils.submission vote FILE FILE … --out FILE [--min-votes K] [--data DIR]
python -m utils.submission diff FILE FILE [--data DIR]
"""

import argparse
import sys

import pandas as pd

from utils.data.competition import DataError
from utils.submission import check, compare, expected_rows, find_warnings, score, vote, write
from utils.submission.checker import EXAMPLES


def main() -> None:
    """The command line: status 0 for a valid file, also with warnings; 1 with errors; 2 for a wrong command."""
    parser = argparse.ArgumentParser(prog="python -m utils.submission", description="Submission files (CSV).")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("check", help="is this a valid submission, and is it a likely one?")
    command.add_argument("file")
    command.add_argument("--data", required=True, help="data folder, whose test images are expected")
    command = commands.add_parser("score", help="mean Dice against a solution, and per class")
    command.add_argument("file")
    command.add_argument("solution")
    with_data = [command]
    command = commands.add_parser("vote", help="hard vote of several submissions")
    command.add_argument("files", nargs="+")
    command.add_argument("--out", required=True)
    command.add_argument("--min-votes", type=int, help="files that must set a pixel (default: more than half)")
    with_data.append(command)
    command = commands.add_parser("diff", help="where do two submissions differ?")
    command.add_argument("files", nargs=2)
    with_data.append(command)
    for command in with_data:
        command.add_argument("--data", help="data folder: also check that the files fit its test images")
    options = parser.parse_args()
    try:
        {"check": _check, "score": _score, "vote": _vote, "diff": _diff}[options.command](options)
    except (DataError, OSError) as error:
        sys.exit(str(error))


def _check(options: argparse.Namespace) -> None:
    """Errors and warnings go to the error output, each under its own heading."""
    problems, warnings = check(options.file, options.data), find_warnings(options.file, options.data)
    for title, found in ((f"not a valid submission for {options.data}", problems), ("warnings", warnings)):
        if found:
            print(DataError(f"{options.file}: {title}", found, shown=50), file=sys.stderr)
    if problems:
        sys.exit(1)
    rows = expected_rows(options.data)
    print(f"OK: {rows['image_name'].nunique()} images × {rows['class'].nunique()} classes")


def _score(options: argparse.Namespace) -> None:
    _print_per_class(score(options.file, options.solution, options.data))


def _vote(options: argparse.Namespace) -> None:
    voted = vote(options.files, options.min_votes, options.data)
    write(voted, options.out)
    print(f"{options.out}: {len(voted)} rows from {len(options.files)} files")


def _diff(options: argparse.Namespace) -> None:
    table = compare(*options.files, options.data)
    print(f"{table['identical'].sum()} of {len(table)} rows are identical")
    _print_per_class(table)
    print("most different rows:")
    for row in table.sort_values("dice", kind="stable").head(EXAMPLES).to_dict("records"):
        print(f"  {row['image_name']}, {row['class']}: {row['dice']:.4f}")


def _print_per_class(table: pd.DataFrame) -> None:
    print(f"mean Dice {table['dice'].mean():.4f}, {table['image_name'].nunique()} images, classes from worst to best:")
    for label, value in table.groupby("class")["dice"].mean().sort_values(kind="stable").items():
        print(f"  {label:<16} {value:.4f}")


if __name__ == "__main__":
    main()
