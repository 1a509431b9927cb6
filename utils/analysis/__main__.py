"""Judge results from the command line, from the tables that the notebooks wrote.

    python -m utils.analysis [table]           every result of every run, with intervals
    python -m utils.analysis compare A B       a paired test of two results, and the verdict
    python -m utils.analysis report RESULT     one result: bent or straight, by class, the worst images
    python -m utils.analysis ablation RESULT   all models of its run against it: what each technique is worth
    python -m utils.analysis label-fidelity DATA   the Dice that labels keep at several resolutions

A result is <run>, <run>/<model>, <run>/ensemble or <run>/baseline; the run a folder below outputs/, or a path.
"""

import argparse
import sys
from collections.abc import Sequence

import pandas as pd
from tabulate import tabulate

from utils.analysis import ablation
from utils.analysis.comparison import compare_scores
from utils.analysis.experiments import as_text, experiments
from utils.analysis.label_fidelity import label_fidelity
from utils.analysis.results import OUTPUTS, Scores, data_folder, open_scores
from utils.analysis.scores import ALL, by_class, by_image, summary
from utils.data.competition import read_classes, read_index
from utils.data.records import Analysis, Ensemble, read_record
from utils.files import Problems, read_json, read_table, resolve, shown, write_table
from utils.hand.bend import AUTO, bent_share
from utils.masks.surface import Distances


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line, by default the process's own; problems are printed and end it with status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.analysis", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command")
    parser.set_defaults(command="table", outputs=OUTPUTS, csv="")
    table = commands.add_parser("table", help="every result of every run")
    table.add_argument("--csv", default="", help="also write the table, one column per parameter, to this file")
    two = commands.add_parser("compare", help="a paired test of two results")
    two.add_argument("a")
    two.add_argument("b")
    one = commands.add_parser("report", help="one result in detail")
    one.add_argument("result")
    one.add_argument("--worst", type=int, default=5, help="images to list (default: 5)")
    base = commands.add_parser("ablation", help="all models of a run against one of them")
    base.add_argument("result", help="such as ablation/base")
    base.add_argument("--csv", default="", help="also write the table to this file")
    labels = commands.add_parser("label-fidelity", help="the Dice that labels keep at several resolutions")
    labels.add_argument("data", help="a data folder")
    labels.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024], help="sides of the labels, pixels")
    labels.add_argument("--images", type=int, default=8, help="annotated images to measure, evenly spread (default: 8)")
    for command in (two, one):
        command.add_argument("--bent-share", type=float, default=AUTO, help="of the test images (default: measured)")
    for command in (table, two, one, base):
        command.add_argument("--outputs", default=OUTPUTS, help="folder of the runs (default: outputs)")
    given = parser.parse_args(arguments)
    try:
        _COMMANDS[given.command](given)
    except (Problems, ValueError, OSError) as error:
        sys.exit(str(error))


def _label_fidelity(given: argparse.Namespace) -> None:
    table = read_index(given.data, ("train",))
    spread = table.iloc[:: max(len(table) // given.images, 1)].head(given.images)
    print(label_fidelity(spread, read_classes(given.data), given.sizes).round(5).to_string())


def _table(given: argparse.Namespace) -> None:
    found = experiments(given.outputs)
    print(as_text(found))
    if given.csv:
        write_table(given.csv, found, index=False)


def _compare(given: argparse.Namespace) -> None:
    a, b = (open_scores(name, given.outputs) for name in (given.a, given.b))
    found = compare_scores(a, b, pd.Series([_share(scores, given.bent_share)[0] for scores in (a, b)]).mean())
    print(f"a = {a.name}, b = {b.name}\n")
    print(_lines(found.rows), "\nclasses that gain and lose most:", sep="\n")
    some = found.classes if len(found.classes) <= 6 else pd.concat([found.classes.head(3), found.classes.tail(3)])
    print(_lines(some), "", sep="\n")
    print(*(f"note: {note}" for note in found.notes), found.verdict, sep="\n")


def _ablation(given: argparse.Namespace) -> None:
    base = open_scores(given.result, given.outputs)
    found = ablation.judge_techniques(base.run, base.name.rpartition("/")[2])
    print(ablation.as_text(found))
    if given.csv:
        write_table(given.csv, found.table, index=False)


def _report(given: argparse.Namespace) -> None:
    scores = open_scores(given.result, given.outputs)
    share, how = _share(scores, given.bent_share)
    distances = _distances(scores)
    print(f"{scores.name}: out-of-fold Dice of {len(scores.dice)} images, 95 % intervals by person")
    print(how)
    print("", _lines(summary(scores, share)), "", sep="\n")
    print(_lines(by_class(scores, share, distances)), "\nworst images:", sep="\n")
    print(_lines(by_image(scores, distances).head(given.worst)))


def _distances(scores: Scores) -> dict[str, pd.DataFrame]:
    """The tables of distances that notebook 07 made of these very scores; {} if it judged another result, or earlier
    predictions of this one."""
    analysed = read_record(scores.run / Analysis.notebook, Analysis, empty=True)
    dice = summary(scores).loc[ALL, "dice"]
    if analysed.result != scores.name or analysed.oof_dice is None or abs(analysed.oof_dice - dice) > 1e-9:
        return {}
    paths = {name: analysed.folder / f"{name}.csv" for name in Distances._fields}
    tables = {name: read_table(path, index_col="image_name") for name, path in paths.items() if path.exists()}
    return {name: t.loc[scores.dice.index] for name, t in tables.items() if set(scores.dice.index) <= set(t.index)}


def _lines(table: pd.DataFrame) -> str:
    """A table as text: Dice with four decimals, differences with their sign, distances in pixels."""
    forms = {"difference": "+.4f", "hd95": ".2f", "msd": ".2f"}
    shown = table.astype(object).copy()
    for column in table.select_dtypes("floating"):
        shown[column] = [f"{v:{forms.get(column, '.4f')}}" if v == v else "" for v in table[column]]
    left = [c for c in table if not pd.api.types.is_numeric_dtype(table[c]) or table[c].dtype == bool]
    align = ["left", *("left" if column in left else "right" for column in table)]
    return tabulate(shown, "keys", "simple", disable_numparse=True, colalign=align)


def _share(scores: Scores, given: float) -> tuple[float, str]:
    """The share of bent test images, by default measured on the run's submission, and how it was found."""
    folder = data_folder(scores.run)
    if given == AUTO and not any((folder / "test" / "DCM").glob("*/*.png")):
        return float("nan"), f"not re-weighted: there are no test images in {shown(folder)}"
    submission = resolve(read_record(scores.run / Ensemble.notebook, Ensemble, empty=True).submission or "none")
    skipped = read_json(scores.run / "data.json", {}).get("skipped", ())
    images = read_index(folder, ("test",), skipped) if given == AUTO else pd.DataFrame()
    return bent_share(given, submission, images, scores.dice.mean())


_COMMANDS = {
    "table": _table,
    "compare": _compare,
    "report": _report,
    "ablation": _ablation,
    "label-fidelity": _label_fidelity,
}

if __name__ == "__main__":
    main()
