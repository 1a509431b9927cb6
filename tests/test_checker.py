"""The checker: broken files are found whatever is wrong with them, and unlikely masks are pointed out."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tests.test_submission import CLASSES, ORDER, SIZES, data, run, saved, table  # noqa: F401  (data is a fixture)
from utils import submission
from utils.data.competition import HAND_BONES, DataError, read_index
from utils.hand.plausibility import FILE_NAME, find_unlikely, side_letters, what_is_usual
from utils.hand.sides import hand_sides
from utils.masks import rle
from utils.masks.masks import Masks
from utils.submission import shapes


def valid_for_a_server(path, sizes):
    """Whether a file is a right submission: pandas reads it, Python's int its numbers, and every pixel is drawn."""
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError):
        return False
    if list(frame.columns) != submission.COLUMNS or not isinstance(frame.index, pd.RangeIndex):
        return False
    rows = frame[["image_name", "class"]].to_numpy().tolist()
    if sorted(map(tuple, rows)) != sorted((name, label) for name in ORDER for label in CLASSES):
        return False
    for (name, _), text in zip(rows, frame["rle"], strict=True):
        try:
            words = text.split(" ") if text else []
            numbers = [int(word) for word in words]
        except ValueError:
            return False
        if len(numbers) % 2 or not all(word.isascii() and word.isdigit() for word in words):
            return False
        drawn = np.zeros(np.prod(sizes[name]), int)
        previous = 0
        for start, length in zip(numbers[::2], numbers[1::2], strict=True):
            if start < 1 or length < 1 or start <= previous or start - 1 + length > drawn.size:
                return False
            drawn[start - 1 : start - 1 + length] += 1
            previous = start
        if drawn.max(initial=0) > 1:
            return False
    return True


RLES = [
    *("1", "1 2 3", "0 3", "1 0", "-1 2", "1 -2", "1.0 2", "1e1 2", "nan", "NaN 1", "1 2 2 3", "9 1 2 1", "1 9 3 1"),
    *("80 2", "81 1", "35 2", "99999999999999999999 1", "1 18446744073709551617", f"1 {2**63}", "1 1099511627777"),
    *(" 1 2", "1 2 ", "1  2", "1\t2", "1 2\u00a0", "１ ２", "0x1 2", "1_0 2", "+1 2", "1,2", '"1 2', '1 2"', '"1 2"'),
    *("", " ", "1 35", "001 2", "1 2\r", "1 2\n", "\x00", "None", "[]", "1 2;", "1 " * 3000),
]
CELL = st.sampled_from([*RLES, *ORDER, *CLASSES, "a.PNG", "ID2/a.png", "a.png ", "Ulna ", "ulna", "A" * 5000, "\ufeff"])


@st.composite
def mutations(draw):
    """Changes of a valid file: of rows, of cells, of its bytes."""
    rows = table(draw(st.integers(0, 3))).to_numpy().tolist()
    for _ in range(draw(st.integers(0, 2))):
        kind, row = draw(st.sampled_from(["drop", "double", "swap", "cell"])), draw(st.integers(0, len(rows) - 1))
        if kind == "drop":
            del rows[row]
        elif kind == "double":
            rows.insert(draw(st.integers(0, len(rows))), list(rows[row]))
        elif kind == "swap":
            rows.append(rows.pop(row))
        else:
            rows[row][draw(st.integers(0, 2))] = draw(CELL)
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    quote = draw(st.sampled_from(["", "", '"']))
    lines = ["image_name,class,rle", *(",".join(quote + cell + quote for cell in row) for row in rows)]
    content = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"])) + (end.join(lines) + end).encode()
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(content)))
        piece = draw(st.sampled_from([b"", b'"', b",", b"\n", b"\r", b"\x00", b"\xff", b" ", b"0", b"9", b"-", b'""']))
        content = content[:at] + piece + content[at + draw(st.integers(0, 2)) :]
    if draw(st.integers(0, 9)) == 0:
        content = draw(st.one_of(st.binary(max_size=40), st.just(content[: draw(st.integers(0, len(content)))])))
    return content


@settings(max_examples=250)
@given(mutations())
def test_no_broken_file_passes_and_the_checker_never_crashes(data, tmp_path_factory, content):  # noqa: F811
    path = tmp_path_factory.mktemp("fuzz") / "s.csv"
    path.write_bytes(content)
    problems, warnings = submission.check(path, data), submission.find_warnings(path, data)
    assert all(isinstance(text, str) and text.isprintable() and len(text) < 2000 for text in [*problems, *warnings])
    sizes = {name.split("/")[1]: size for name, size in SIZES.items()}
    if not problems:
        assert valid_for_a_server(path, sizes)
        again = pd.read_csv(path, dtype=str, keep_default_na=False)
        assert again.to_numpy().tolist() == submission.read(path).to_numpy().tolist()
    elif valid_for_a_server(path, sizes):  # refused though a lenient reader takes it: only for the form of the text
        form = "malformed RLE|not a readable CSV|expected 3 fields|line 1: expected the columns .* found ''"
        assert all(re.search(form, text) for text in problems)


@pytest.mark.parametrize("text", [text for text in RLES if not re.fullmatch(r'|1 35|001 2|"1 2"|1 2[\r\n]', text)])
def test_every_malformed_rle_is_an_error(data, tmp_path, text):  # noqa: F811
    frame = table().astype(object)
    frame.loc[1, "rle"] = text
    path = tmp_path / "s.csv"
    lines = [",".join(row) for row in frame.fillna("").to_numpy().tolist()]
    path.write_bytes("\n".join(["image_name,class,rle", *lines]).encode())
    assert not valid_for_a_server(path, {name.split("/")[1]: size for name, size in SIZES.items()})
    assert len(submission.check(path, data)) >= 1


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 12), st.integers(1, 4))
def test_masks_are_measured_as_by_pixels(seed, height, width, count):
    rng = np.random.default_rng(seed)
    masks = [rng.random((height, width)) < rng.choice([0, 0.2, 0.5, 0.9, 1]) for _ in range(count)]
    found = shapes.measure(Masks.from_dense(masks))
    for number, mask in enumerate(masks):
        labels, pieces = ndimage.label(mask, np.ones((3, 3)))
        sizes = np.bincount(labels.ravel())[1:]
        assert found["area"][number] == mask.sum() and found["pieces"][number] == pieces
        assert found["smaller"][number] == mask.sum() - sizes.max(initial=0)
        if mask.any():
            y, x = np.nonzero(mask)
            assert (found["x"][number], found["y"][number]) == pytest.approx((x.mean(), y.mean()))


@pytest.fixture(scope="module")
def hands(tmp_path_factory):
    """A synthetic data set with enough people to know what is usual, and its solution by image and class."""
    from utils.sample.generator import make_sample

    folder = make_sample(tmp_path_factory.mktemp("hands") / "s", train_people=16, test_people=4, image_size=256)
    return folder, submission.read(folder / "solution.csv").set_axis(range(4 * 2 * 29))


SIZE = (256, 256)


def rewritten(frame, change, rows):
    """The masks of some rows, changed as pixels."""
    changed = [rle.encode(np.ascontiguousarray(change(rle.decode(text, SIZE)))) for text in frame.loc[rows, "rle"]]
    return frame.assign(rle=frame["rle"].where(~rows, pd.Series(changed, index=frame.index[rows])))


def warnings_of(frame, folder, tmp_path):
    path = saved(frame, tmp_path / "s.csv")
    assert submission.check(path, folder) == []
    return submission.find_warnings(path, folder)


def test_the_true_masks_are_likely(hands, tmp_path):
    folder, truth = hands
    assert warnings_of(truth, folder, tmp_path) == []


def test_another_order_is_a_warning(hands, tmp_path):
    folder, truth = hands
    (found,) = warnings_of(truth.iloc[::-1], folder, tmp_path)
    assert "another order than the competition's from line 2" in found and "the score stays the same" in found
    assert submission.score(tmp_path / "s.csv", folder / "solution.csv", folder)["dice"].min() == 1


def test_empty_small_and_broken_masks_are_pointed_out(hands, tmp_path):
    folder, truth = hands
    names = truth["image_name"].unique()
    ulna, radius, lunate = (truth["class"] == name for name in ("Ulna", "Radius", "Lunate"))
    first, second = truth["image_name"] == names[0], truth["image_name"] == names[1]
    broken = truth.assign(rle=truth["rle"].where(~(ulna & first), ""))
    starts, ends = Masks.from_texts([truth.loc[radius & second, "rle"].item()])[0]
    longest = int(np.argmax(ends - starts))
    run_of_radius = f"{starts[longest] + 1} {ends[longest] - starts[longest]}"
    broken["rle"] = broken["rle"].where(~(radius & second), run_of_radius)

    def with_speck(mask):
        mask[0, 0] = True
        return mask

    broken = rewritten(broken, with_speck, lunate & first)
    empty, area, pieces = warnings_of(broken, folder, tmp_path)
    line = {name: int(np.flatnonzero(truth["class"] == name)[0]) + 2 for name in ("Ulna", "Lunate")}
    assert empty.startswith("1 masks are empty, though at least 90% of the training images have their class (Ulna 1)")
    assert f"line {line['Ulna']}, {names[0]}, Ulna" in empty
    assert area.startswith("1 masks have areas far from those of their class in training (Radius 1), such as line ")
    assert f"{names[1]}, Radius: {run_of_radius.split()[1]} pixels, 0.0" in area
    assert pieces.startswith("1 masks have several pieces, where training images have one (Lunate 1)")
    assert f"line {line['Lunate']}, {names[0]}, Lunate: 2 separate pieces, 1 of" in pieces


def test_a_flip_that_was_not_undone_is_found(hands, tmp_path):
    """A mirrored image shows the other hand, so that the person seems to have two right or two left hands."""
    folder, truth = hands
    index = read_index(folder, splits=("test",))
    name, person = index[["image_name", "ID"]].iloc[2]
    mirrored = rewritten(truth, np.fliplr, truth["image_name"] == name)
    (found,) = warnings_of(mirrored, folder, tmp_path)
    assert found.startswith("1 people have two images of the same hand") and person in found and "flip" in found


def measured(truth, side):
    """A submission of images of `side` × `side` pixels with the shapes of its masks."""
    sides = (np.full(len(truth), side),) * 2
    return truth.assign(**shapes.measure(Masks.from_texts(truth["rle"].tolist(), sides)))


def test_a_hand_that_contradicts_its_name_is_found(hands):
    _, truth = hands
    found = measured(truth, 256)
    side = hand_sides(found)[0]
    image, value = side.index[0], side.iloc[0]
    for letter, expected in (("R", value < 0), ("L", value > 0)):
        named = found.assign(image_name=found["image_name"].replace(image, f"hand_{letter}.png"))
        index = pd.DataFrame({"image_name": named["image_name"].unique(), "ID": "one", "height": 256, "width": 256})
        index["side"] = side_letters(named, index["image_name"])
        odd = find_unlikely(named, index, what_is_usual(named, index))
        assert odd["image_name"].tolist() == ([f"hand_{letter}.png"] if expected else []) and set(odd["rule"]) <= {
            FILE_NAME
        }


@pytest.mark.parametrize(
    "swapped",
    [
        {"Radius": "Ulna", "Ulna": "Radius"},
        {f"finger-{i}": f"finger-{20 - i}" for i in range(1, 20)},
        {"Trapezium": "Hamate", "Hamate": "Trapezium", "Scaphoid": "Triquetrum", "Triquetrum": "Scaphoid"},
    ],
    ids=["forearm", "fingers", "carpals"],
)
def test_bones_whose_order_contradicts_the_others_are_named(hands, tmp_path, swapped):
    folder, truth = hands
    rows = truth["image_name"] == truth["image_name"].iloc[-1]
    masks = truth[rows].set_index("class")["rle"]
    changed = truth.copy()
    changed.loc[rows, "rle"] = [masks[swapped.get(label, label)] for label in truth.loc[rows, "class"]]
    found = [text for text in warnings_of(changed, folder, tmp_path) if "left and right exchanged" in text]
    assert len(found) == 1 and truth["image_name"].iloc[-1] in found[0]


def test_the_side_of_a_hand_is_told_in_every_bent_wrist(tmp_path):
    """The thumb's side, which is known from the annotations' fingers, is that of all pairs of bones together."""
    from utils.sample.generator import make_sample
    from utils.submission.unlikely import read_usual

    folder = make_sample(tmp_path / "s", train_people=2, test_people=30, image_size=128)
    truth = submission.read(folder / "solution.csv")
    found = measured(truth, 128)
    side, votes = hand_sides(found)
    x = found.set_index(["image_name", "class"])["x"]
    thumb_left = [x[name, "finger-1"] < x[name, "finger-16"] for name in side.index]
    assert (side > 0).tolist() == thumb_left and len(set(thumb_left)) == 2
    assert not votes.mul(side, axis=0).lt(0).any(axis=None)
    assert read_usual(folder).both_sides == 1


def test_other_data_is_not_judged_as_hands(data, tmp_path):  # noqa: F811
    (found,) = submission.find_warnings(saved(table(), tmp_path / "s.csv"), data)
    assert found.startswith(
        "empty masks, areas and pieces are not compared with the training annotations: there are no"
    )


def test_the_command_keeps_errors_and_warnings_apart(hands, tmp_path):
    folder, truth = hands
    path = saved(truth.assign(rle=truth["rle"].where(truth["class"] != "Ulna", "")), tmp_path / "s.csv")
    likely = run("check", path, "--data", folder)
    assert (likely.returncode, likely.stdout) == (0, "OK: 8 images × 29 classes\n")
    assert likely.stderr.startswith(f"{path}: warnings\n  - 8 masks are empty")
    saved(submission.read(path).iloc[1:], path)
    broken = run("check", path, "--data", folder)
    assert (broken.returncode, broken.stdout) == (1, "")
    assert re.match(f"{path}: not a valid submission for .*\n  - 1 of 232 rows are missing", broken.stderr)
    assert f"\n{path}: warnings\n  - 8 masks are empty" in broken.stderr


def test_files_that_do_not_fit_each_other_are_refused_with_all_problems(hands, tmp_path):
    folder, truth = hands
    good = saved(truth, tmp_path / "good.csv")
    other_class = saved(truth.replace({"class": {"Ulna": "Elbow"}}), tmp_path / "class.csv")
    malformed = truth.drop(5)
    malformed.loc[3, "rle"] = "1 2 3"
    saved(malformed, tmp_path / "malformed.csv")
    with pytest.raises(DataError) as refused:
        submission.vote([good, other_class, tmp_path / "malformed.csv"])
    text = str(refused.value)
    assert "class.csv: other rows than" in text and "'Elbow'" in text
    assert "malformed.csv: other rows than" in text and "1 of 232 rows are missing" in text and "3 numbers" in text
    with pytest.raises(DataError, match=r"(?s)a\.csv: not a readable.*b\.csv: not a readable"):
        submission.compare(tmp_path / "a.csv", tmp_path / "b.csv")
    half = truth.assign(
        rle=[rle.encode(np.ascontiguousarray(rle.decode(text, SIZE)[::2, ::2])) for text in truth["rle"]]
    )
    saved(half, tmp_path / "half.csv")
    for refuse in (
        lambda: submission.vote([good, good, tmp_path / "half.csv"]),
        lambda: submission.compare(good, tmp_path / "half.csv"),
        lambda: submission.score(tmp_path / "half.csv", good),
    ):
        with pytest.raises(
            DataError, match=r"masks of other image sizes than .* in 8 images, first .*: about 128 pixels wide"
        ):
            refuse()
    too_long = truth.copy()
    too_long.loc[0, "rle"] = "65536 2"
    saved(too_long, tmp_path / "long.csv")
    assert len(submission.vote([good, good, good], data_dir=folder)) == len(HAND_BONES) * 8
    for command in (
        ["vote", good, tmp_path / "long.csv", "--out", tmp_path / "v.csv"],
        ["diff", good, tmp_path / "long.csv"],
    ):
        refused = run(*command, "--data", folder)
        assert refused.returncode == 1 and "long.csv: line 2" in refused.stderr and "past the 65536" in refused.stderr
    assert not (tmp_path / "v.csv").exists()


def test_evenly_spaced_parts_are_no_other_image_size(tmp_path):
    bars, joined, small = np.zeros((3, 300, 300), bool)
    for x in (50, 100, 150):
        bars[20:280, x : x + 10] = True
    joined[20:280, 50:160] = True
    small[10:140, 25:80] = True
    half = np.ascontiguousarray(small[:150, :150])
    columns = {"image_name": ["a.png"], "class": ["tooth"]}
    bars, joined, half = (pd.DataFrame(columns | {"rle": [rle.encode(mask)]}) for mask in (bars, joined, half))
    assert submission.score(bars, joined)["dice"][0] == pytest.approx(2 * 30 / (30 + 110))
    assert submission.score(joined, bars)["dice"][0] == pytest.approx(2 * 30 / (30 + 110))
    with pytest.raises(DataError, match=r"masks of other image sizes than .* in 1 images, first a\.png: about 150"):
        submission.score(half, joined)


def test_two_test_images_of_one_name_end_in_no_traceback(hands, tmp_path):
    folder, truth = hands
    copy = tmp_path / "data"
    shutil.copytree(folder, copy)
    first, *others = sorted((copy / "test" / "DCM").rglob("*.png"))
    other = next(path for path in others if path.parent != first.parent)
    other.rename(other.with_name(first.name))
    path = saved(truth[truth["image_name"] != other.name], tmp_path / "some.csv")
    done = run("check", path, "--data", copy)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("rows", [slice(0, 0), slice(0, 1), slice(3, 9), slice(None)], ids=str)
def test_parts_of_a_submission_are_judged_without_a_crash(hands, tmp_path, rows):
    folder, truth = hands
    part = truth.iloc[rows]
    for frame in (part, part.assign(rle=""), part.assign(rle="1 65536"), part.assign(rle="1 65537")):
        path = saved(frame, tmp_path / "s.csv")
        assert (submission.check(path, folder) == []) == (rows == slice(None) and "1 65537" not in set(frame["rle"]))
        assert all(text.isprintable() for text in submission.find_warnings(path, folder))


def test_broken_training_annotations_do_not_stop_the_checker(hands, tmp_path):
    source, truth = hands
    folder = tmp_path / "data"
    shutil.copytree(source, folder)
    annotations = sorted((folder / "train/outputs_json").glob("*/*.json"))
    for number, path in enumerate(annotations):
        path.write_text(["", "{}", '{"annotations": [{"label": "Elbow", "points": [[1, 2]]}]}'][number % 3])
    (found,) = warnings_of(truth, folder, tmp_path)
    assert found.endswith("no polygon in the training annotations can be read")
    annotations[0].write_text('{"annotations": []}')
    (found,) = warnings_of(truth, folder, tmp_path)
    assert found.endswith("no polygon in the training annotations can be read")
