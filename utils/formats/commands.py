"""Convert data folders from and to other formats, check and score COCO files: `python -m utils.formats --help`."""

import argparse
import sys
from collections import Counter

from utils.data.competition import DataError, read_classes, read_index
from utils.data.findings import refuse
from utils.files import write_table
from utils.formats import class_maps, coco, cvat, labelme, yolo_dataset
from utils.formats.coco_read import class_names, is_dataset, read_dataset, read_results
from utils.formats.imported_shapes import Options

IMPORTS = {
    "from-coco": (coco.from_coco, "FILE", "a COCO file, also of Label Studio or CVAT"),
    "from-yolo": (yolo_dataset.from_yolo, "SOURCE", "a YOLO segmentation dataset: its folder, or its YAML file"),
    "from-labelme": (labelme.from_labelme, "SOURCE", "a folder of labelme's JSON files"),
    "from-cvat": (cvat.from_cvat, "FILE", 'an XML file exported by CVAT as "CVAT for images 1.1"'),
}


def main() -> None:
    """The command line; if something can't be used, print all problems and exit with status 1."""
    parser = argparse.ArgumentParser(prog="python -m utils.formats", description="COCO, YOLO, PNG, labelme, CVAT.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_exports(commands)
    for name, (_, source, about) in IMPORTS.items():
        command = commands.add_parser(name, help=f"{about}, to a data folder")
        _add_import(command, source, about)
        if name != "from-yolo":
            command.add_argument("--images", default="", metavar="DIR", help="their folder (default: the labels')")
    command = commands.add_parser("check-coco", help="is this a valid COCO file, or are these valid COCO results?")
    command.add_argument("file", metavar="FILE")
    command.add_argument("--truth", default="", metavar="FILE", help="the COCO file that results belong to")
    command.add_argument("--data", default="", metavar="DIR", help="data folder whose classes the ids must follow")
    command = commands.add_parser("score-coco", help="precision, recall and mAP of boxes and masks, per class")
    command.add_argument("truth", metavar="TRUTH", help="COCO file with the true instances")
    command.add_argument("prediction", metavar="PREDICTION", help="COCO results, list or {annotations: list}")
    command = commands.add_parser("score-png", help="IoU and pixel accuracy of class maps, per class")
    command.add_argument("truth", metavar="DATASET", help="a folder that to-png wrote")
    command.add_argument("prediction", metavar="PREDICTION", help="a folder of class maps, named as the true ones")
    for name in ("score-coco", "score-png"):
        text = "also write the table to this file"
        commands.choices[name].add_argument("--csv", default="", metavar="FILE", help=text)
    options = parser.parse_args()
    try:
        print(_run(options))
    except (DataError, OSError) as error:
        sys.exit(str(error))


def _add_exports(commands: argparse._SubParsersAction) -> None:
    about = {
        "to-coco": "data folder to COCO",
        "to-yolo": "data folder to YOLO's segmentation format",
        "to-png": "data folder to PNG class maps",
    }
    for name, text in about.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("data", metavar="DATA", help="data folder")
        command.add_argument("out", metavar="OUT.json" if name == "to-coco" else "OUTDIR")
        without = "OUT_train.json, OUT_val.json; default: one file" if name == "to-coco" else "default: people in five"
        command.add_argument("--folds", metavar="FILE", help=f"a run's folds.csv ({without})")
        command.add_argument("--fold", type=int, help="the fold to validate on; -1: none (default: 0)")
    command = commands.choices["to-coco"]
    command.add_argument("--rle", action="store_true", help="masks as compressed RLE instead of polygons")
    command.add_argument("--each-polygon", action="store_true", help="an instance for each polygon, not for each class")
    text = "test: with the masks of solution.csv, if there is one"
    command.add_argument("--split", choices=("train", "test"), default="train", help=text)
    command.add_argument("--submission", metavar="CSV", help="write its masks of the split as COCO results instead")
    command.add_argument("--dictionary", action="store_true", help='results as {"annotations": […]}, not as a list')
    command = commands.choices["to-png"]
    text = "an extra class for each pair of classes with at least this mean IoU (0.02 without a number)"
    command.add_argument("--pairs", type=float, nargs="?", const=0.02, metavar="IOU", help=text)
    text = "write 255 where classes without a pair overlap"
    command.add_argument("--ignore-overlaps", action="store_true", help=text)


def _add_import(command: argparse.ArgumentParser, source: str, about: str) -> None:
    command.add_argument("source", metavar=source, help=about)
    command.add_argument("out", metavar="OUTDIR", help="the new data folder")
    command.add_argument("--classes", default="", metavar="FILE", help="the classes in their order, one a line")
    text = "whose an image is: its folder's name, or each its own person's (auto: folders, if there are several)"
    command.add_argument("--people", choices=("auto", "folder", "image"), default="auto", help=text)
    command.add_argument("--boxes", action="store_true", help="take boxes without outline as rectangles")
    command.add_argument("--skip-bad", action="store_true", help="leave out what can't be used, and say so")


def _run(options: argparse.Namespace) -> str:
    if options.command in IMPORTS:
        convert, _, _ = IMPORTS[options.command]
        images = getattr(options, "images", "")
        chosen = Options(images, options.classes, options.people, options.boxes, options.skip_bad)
        return convert(options.source, options.out, chosen)
    return {
        "to-coco": _to_coco,
        "to-yolo": lambda o: yolo_dataset.to_yolo(o.data, o.out, o.folds, o.fold or 0),
        "to-png": _to_png,
        "check-coco": _check_coco,
        "score-coco": _score,
        "score-png": _score,
    }[options.command](options)


def _to_coco(options: argparse.Namespace) -> str:
    if options.fold is not None and options.folds is None:
        raise DataError("--fold alone changes nothing", ["name the run's folds.csv with --folds FILE"])
    if not options.submission:
        style = "rle" if options.rle else "polygon"
        paths = coco.to_coco(
            options.data, options.out, style, options.each_polygon, options.split, options.folds, options.fold or 0
        )
        return "\n".join(map(str, paths))
    table, classes = read_index(options.data, (options.split,)), read_classes(options.data)
    results = coco.results_of_submission(options.submission, table, classes)
    coco.write_results(results, options.out, options.dictionary)
    return f"{options.out}: {len(results)} masks"


def _to_png(options: argparse.Namespace) -> str:
    cost = class_maps.to_png(
        options.data, options.out, options.folds, options.fold or 0, options.pairs, options.ignore_overlaps
    )
    return f"{options.out}: written\n{'warning: ' if cost.lost else ''}{cost}"


def _check_coco(options: argparse.Namespace) -> str:
    if options.truth or not is_dataset(options.file):
        if not options.truth:
            raise DataError(f"{options.file}: these are results", ["name their COCO file with --truth FILE"])
        results = read_results(options.file, read_dataset(options.truth))
        images = len({result.image_id for result in results})
        return f"OK: {len(results)} results in {images} images"
    dataset = read_dataset(options.file)
    names = class_names(dataset, options.file)
    if options.data and names != (classes := read_classes(options.data)):
        differing = [
            f"{i}: {a} here, {b} there" for i, (a, b) in enumerate(zip(names, classes, strict=False)) if a != b
        ]
        differing += [f"{len(names)} here, {len(classes)} there"] if len(names) != len(classes) else []
        refuse(f"{options.file}: other classes, or another order, than in {options.data}", differing)
    kinds = Counter(
        "polygons" if a.polygons else "RLE" if a.rle is not None else "boxes only" for a in dataset.annotations
    )
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "no annotations"
    return f"OK: {len(dataset.images)} images, {len(names)} categories, {counts}"


def _score(options: argparse.Namespace) -> str:
    from tabulate import tabulate

    from utils.formats.score_tables import score_class_maps, score_coco

    if options.command == "score-coco":
        table = score_coco(options.truth, options.prediction)
    else:
        names, pairs = class_maps.read_pairs(options.truth, options.prediction)
        table = score_class_maps(pairs, names)
    if options.csv:
        write_table(options.csv, table, index=False)
    return tabulate(table, headers="keys", floatfmt=".3f", showindex=False, tablefmt="simple")
