"""What can be wrong with a data folder: each kind of problem, how severe it is, and what to do about it."""

from typing import NamedTuple

from utils.files import Problems


class DataError(Problems):
    """Data that can't be used; the message lists every problem found and what to do."""


def refuse(title: str, problems: list[str]) -> None:
    """Raise DataError if there are problems."""
    if problems:
        raise DataError(title, problems)


class Kind(NamedTuple):
    """severity: "error" stops a run, "warning" does not. advice: what to do."""

    severity: str
    advice: str


_REDRAW = "correct the annotation"
KINDS = {
    # the folder as a whole; --skip-bad does not help here
    "no images": Kind("error", "the layout is <data>/train/DCM/<ID>/<name>.png, and the same below test"),
    "no test images": Kind("warning", "models are trained and scored out of fold, and there is no submission"),
    "classes": Kind("error", "classes.txt holds one class a line, each once; without it the 29 hand bones are meant"),
    "metadata": Kind(
        "error", "correct meta_data.xlsx or remove it; notebook 01 and models with the option metadata use it"
    ),
    "people": Kind("error", "choose a smaller n_folds, or add people: a person is in one fold only"),
    "label fixes": Kind(
        "error", "correct the file of label fixes: numbers and labels are those in the annotation file"
    ),
    "solution": Kind("error", "make solution.csv from these test images, or remove it; only the local score needs it"),
    # images
    "empty image": Kind("error", "copy the file again"),
    "wrong format": Kind("error", "convert it to PNG; a new name alone does not"),
    "truncated": Kind("error", "copy the file again"),
    "damaged": Kind("error", "copy the file again"),
    "no pixels": Kind("error", "export the image again"),
    "too many pixels": Kind("error", "export it at its real size; decoding it could fill the memory"),
    "unreadable": Kind("error", "make the file readable for this user"),
    "unusable name": Kind("error", "rename image and annotation: a submission names images by plain text"),
    "same name": Kind("error", "rename one of them: a submission names an image by its file name only"),
    "16 bits": Kind("warning", "its grey values are scaled so that the largest becomes 255; better export 8 bits"),
    "not read": Kind("warning", "only <split>/DCM/<ID>/<name> as PNG, JPEG, BMP, TIFF or WebP is read; move it"),
    "ID in both splits": Kind("warning", "if it is one person, the test score is too high; if not, rename one of them"),
    # annotation files
    "no annotation": Kind("error", "add the annotation, or remove the image"),
    "no image": Kind("error", "add the image, or remove the annotation"),
    "unreadable annotation": Kind("error", "make the file readable for this user"),
    "too large a file": Kind("error", "simplify the outlines"),
    "not UTF-8": Kind("error", "save the file as UTF-8"),
    "broken JSON": Kind("error", "copy the file again, or export the annotation again"),
    "no list of annotations": Kind("error", 'expected {"annotations": [{"label": …, "points": [[x, y], …]}, …]}'),
    "no polygons": Kind("warning", "all classes count as absent from this image; remove it if they are not"),
    # polygons
    "not an object": Kind("error", 'expected {"label": …, "points": [[x, y], …]}'),
    "label": Kind("error", "correct the label, or add the class to classes.txt"),
    "points": Kind("error", _REDRAW),
    "coordinate": Kind("error", _REDRAW),
    "too many points": Kind("error", "simplify the outline"),
    "outside": Kind("error", _REDRAW),
    "partly outside": Kind("warning", "it is cut at the image's border; look whether it belongs to this image"),
    "crosses itself": Kind("warning", "where its loops overlap, fillPoly leaves a hole; look at the image"),
    "no area": Kind("warning", "it is drawn as a line; probably a slip"),
    "drawn twice": Kind("warning", "harmless within a class; between classes one of the labels is wrong"),
    # metadata
    "no metadata": Kind(
        "warning",
        "notebook 01 leaves this person out of bone sizes; models with the option metadata know nothing of them",
    ),
    "metadata only": Kind("warning", "harmless; or are these people's images missing?"),
}
"""Every kind of problem. Errors would stop a run later or falsify its labels; warnings may be as intended."""


class Finding(NamedTuple):
    """One problem. file, image: relative to the data folder, "" where it concerns no single one; label: the class."""

    kind: str
    problem: str
    file: str = ""
    image: str = ""
    label: str = ""

    @property
    def is_error(self) -> bool:
        """Whether it stops a run."""
        return KINDS[self.kind].severity == "error"

    def __str__(self) -> str:
        """The problem with the file it is in."""
        return f"{self.file}: {self.problem}" if self.file else self.problem
