"""Submission files: reading, checking, scoring, voting and comparing, in Python and from the command line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests import reference
from utils import submission
from utils.data.competition import DataError
from utils.masks import rle
from utils.submission import checker, combine

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ["Radius", "Ulna", "Lunate"]
SIZES = {"ID2/a.png": (8, 10), "ID10/b.png": (7, 5), "ID2/c.png": (8, 10)}
ORDER = ["b.png", "a.png", "c.png"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    for name, (height, width) in SIZES.items():
        path = folder / "test/DCM" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (width, height)).save(path)
    return folder


def masks(seed: int) -> dict[tuple[str, str], np.ndarray]:
    """Masks by image and class in the competition's order; the first is empty."""
    rng = np.random.default_rng(seed)
    sizes = {Path(name).name: size for name, size in SIZES.items()}
    found = {(name, label): rng.random(sizes[name]) < 0.5 for name in ORDER for label in CLASSES}
    found["b.png", "Radius"][:] = False
    return found


def table(seed: int = 0) -> pd.DataFrame:
    rows = [(*key, rle.encode(mask)) for key, mask in masks(seed).items()]
    return pd.DataFrame(rows, columns=["image_name", "class", "rle"])


def saved(frame: pd.DataFrame, path: Path) -> Path:
    submission.write(frame, path)
    return path


def run(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "utils.submission", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    frame = table()
    frame.loc[0, "image_name"] = 'odd, "quoted".png'
    frame.loc[1, "rle"] = None
    frame["more"] = 1
    path = saved(frame.sample(frac=1, random_state=0), tmp_path / "made/s.csv")
    again = submission.read(path)
    assert list(again.columns) == submission.COLUMNS
    expected = frame.sample(frac=1, random_state=0).fillna("")[submission.COLUMNS]
    assert again.to_numpy().tolist() == expected.to_numpy().tolist()
    assert again.index.tolist() == list(range(2, 11))
    assert pd.read_csv(path)["rle"].isna().sum() == 2  # as the competition's server reads it
    assert [p.name for p in path.parent.iterdir()] == ["s.csv"]


def test_windows_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_bytes(b"\xef\xbb\xbfimage_name,class,rle\r\na.png,Ulna,1 2\r\n\r\na.png,Radius,\r\n")
    frame = submission.read(path)
    assert frame.to_numpy().tolist() == [["a.png", "Ulna", "1 2"], ["a.png", "Radius", ""]]
    assert frame.index.tolist() == [2, 4]


def test_expected_rows_follow_sorted_paths_then_classes(data: Path) -> None:
    rows = submission.expected_rows(data)
    assert rows["image_name"].tolist() == [name for name in ORDER for _ in CLASSES]
    assert rows["class"].tolist() == CLASSES * 3
    assert rows[["height", "width"]].drop_duplicates().to_numpy().tolist() == [[7, 5], [8, 10]]


def test_a_good_submission_passes(data: Path, tmp_path: Path) -> None:
    assert submission.check(saved(table(), tmp_path / "s.csv"), data) == []


FIELD = st.text(st.characters(codec="utf-8", exclude_characters=',"\r\n'), max_size=5)


@given(st.lists(st.tuples(FIELD, FIELD, FIELD)), st.integers(0, 2))
def test_a_plain_file_is_read_field_by_field(tmp_path_factory, rows: list[tuple], blank_lines: int) -> None:
    path = tmp_path_factory.mktemp("plain") / "s.csv"
    lines = ["image_name,class,rle", *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n" * blank_lines, encoding="utf-8", newline="")
    found = submission.read(path)
    assert found.to_numpy().tolist() == [list(row) for row in rows]
    assert found.index.tolist() == list(range(2, len(rows) + 2))


BAD_FILES = {
    "missing": (None, "not a readable CSV file, .*No such file"),
    "an image": (b"\x89PNG\r\n\x1a\n", "not a readable CSV file, expected text with the columns image_name,class,rle"),
    "nothing": (b"", "line 1: expected the columns image_name,class,rle, found ''"),
    "other columns": (b"ID,Class,RLE\n", "found 'ID,Class,RLE'"),
    "an index column": (b",image_name,class,rle\n0,a.png,Ulna,1 2\n", "found ',image_name,class,rle'"),
    "short line": (b"image_name,class,rle\na.png,Ulna,1 2\na.png,Ul", "line 3: expected 3 fields .* found 2"),
    "two fields": (b"image_name,class,rle\na.png,Ulna\n", "line 2: expected 3 fields .* found 2"),
    "commas": (b"image_name,class,rle\na.png,Ulna,1,2\n", "line 2: expected 3 fields .* found 4"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_what_is_no_submission_file_is_said(kind: str, data: Path, tmp_path: Path) -> None:
    content, message = BAD_FILES[kind]
    path = tmp_path / "s.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        submission.read(path)
    assert submission.check(path, data) == refused.value.problems


def edited(row: int, column: str, value: str) -> pd.DataFrame:
    frame = table()
    frame.loc[row, column] = value
    return frame


BAD_ROWS = {
    "folder in the name": (
        edited(3, "image_name", "ID2/a.png"),
        "1 rows with an unknown image_name, first line 5: 'ID2/a.png'; .* such as 'a.png'",
    ),
    "unknown class": (
        edited(4, "class", "ulna"),
        "1 rows with an unknown class, first line 6: 'ulna'; expected one of 3, such as 'Ulna'",
    ),
    "missing": (table().drop([2, 5]), "2 of 9 rows are missing, in 2 images, first b.png, Lunate; a.png, Lunate"),
    "repeated": (table().iloc[[0, 1, 1, *range(1, 9)]], "2 repeated rows, first b.png, Ulna in lines 3, 4, 5"),
    "malformed": (edited(1, "rle", "1 2 3"), "line 3, b.png, Ulna: malformed RLE: 3 numbers"),
    "too long": (edited(8, "rle", "80 2"), "line 10, c.png, Lunate: a run ends at pixel 81, past the 80 pixels"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_bad_rows_are_described(kind: str, data: Path, tmp_path: Path) -> None:
    frame, message = BAD_ROWS[kind]
    problems = submission.check(saved(frame, tmp_path / "s.csv"), data)
    assert pd.Series(problems).str.contains(message).any(), problems


def test_all_problems_are_found_at_once(data: Path, tmp_path: Path) -> None:
    frame = table()
    frame.loc[0, "class"] = "Humerus"
    frame.loc[1, "rle"] = "-1 2"
    frame.loc[2, "rle"] = "35 2"
    frame.loc[4] = frame.loc[3]
    text = "\n".join(submission.check(saved(frame, tmp_path / "s.csv"), data))
    for part in ("'Humerus'", "repeated", "2 of 9 rows are missing", "malformed RLE: '-1'", "past the 35 pixels"):
        assert part in text


def test_many_problems_of_a_kind_are_counted(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "EXAMPLES", 2)
    problems = submission.check(saved(table().assign(rle="1"), tmp_path / "s.csv"), data)
    assert len(problems) == 3
    assert problems[-1] == "… and 7 more rows with a bad RLE"


def test_score_matches_rows_by_name(data: Path, tmp_path: Path) -> None:
    solution, shuffled = table(0), table(1).sample(frac=1, random_state=0)
    found = submission.score(saved(shuffled, tmp_path / "s.csv"), solution, data)
    truth, predicted = masks(0), masks(1)
    expected = [float(reference.dice(predicted[key], truth[key])) for key in truth]
    assert list(zip(found["image_name"], found["class"], strict=True)) == list(truth)
    assert found["dice"].tolist() == pytest.approx(expected, rel=1e-6)
    assert found["dice"][0] == 1  # both empty
    assert submission.score(shuffled, solution)["dice"].tolist() == found["dice"].tolist()


def test_score_refuses_other_rows_and_bad_masks(data: Path, tmp_path: Path) -> None:
    path = saved(table(), tmp_path / "s.csv")
    with pytest.raises(DataError, match=r"s\.csv: other rows than table 1: .*unknown image_name, first line 5"):
        submission.score(path, table().replace("a.png", "x.png"))
    with pytest.raises(DataError, match=r"1 rows that are not expected, first line 5: a\.png, Radius"):
        submission.score(path, table().drop(3))
    with pytest.raises(
        DataError, match=r"malformed masks\n.*table 2: line 6, a.png, Ulna: malformed RLE: run 1 has start 0"
    ):
        submission.score(edited(4, "rle", "0 1"), path)
    with pytest.raises(DataError, match="past the 80 pixels"):
        submission.score(edited(4, "rle", "90 1"), path, data)
    with pytest.raises(DataError, match="table 1: 1 repeated rows"):
        submission.score(path, table().iloc[[0, *range(9)]])


@pytest.mark.parametrize("min_votes", [None, 1, 3])
@pytest.mark.parametrize("rows_at_a_time", [2, 256])
def test_vote_equals_that_of_pixels(
    min_votes: int | None, rows_at_a_time: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(combine, "ROWS_AT_A_TIME", rows_at_a_time)
    frames = [table(seed).sample(frac=1, random_state=seed) for seed in range(3)]
    paths = [saved(frame, tmp_path / f"{i}.csv") for i, frame in enumerate(frames)]
    found = submission.vote(paths, min_votes)
    drawn = [masks(seed) for seed in range(3)]
    assert found[["image_name", "class"]].to_numpy().tolist() == frames[0][["image_name", "class"]].to_numpy().tolist()
    for row in found.to_dict("records"):
        votes = sum(m[row["image_name"], row["class"]].astype(int) for m in drawn)
        assert row["rle"] == reference.encode(votes >= (min_votes or 2))


def test_compare_counts_identical_rows(tmp_path: Path) -> None:
    other = edited(5, "rle", "1 1").sample(frac=1, random_state=0)
    found = submission.compare(saved(table(), tmp_path / "a.csv"), saved(other, tmp_path / "b.csv"))
    assert found["identical"].tolist() == [True] * 5 + [False] + [True] * 3
    assert (found["dice"] == 1).tolist() == found["identical"].tolist()


def test_check_command(data: Path, tmp_path: Path) -> None:
    path = saved(table(), tmp_path / "s.csv")
    good = run("check", "s.csv", "--data", data, cwd=tmp_path)  # relative to the caller's folder
    assert (good.returncode, good.stdout) == (0, "OK: 3 images × 3 classes\n")
    saved(edited(1, "rle", "1 2 3"), path)
    bad = run("check", "s.csv", "--data", data, cwd=tmp_path)
    assert bad.returncode == 1
    assert bad.stderr.startswith(f"s.csv: not a valid submission for {data}\n  - line 3, b.png, Ulna: malformed RLE")
    nowhere = run("check", path, "--data", tmp_path / "nowhere")
    assert nowhere.returncode == 1
    assert "nowhere: no such data folder" in nowhere.stderr
    assert run("check", path).returncode == 2


def test_score_vote_and_diff_commands(data: Path, tmp_path: Path) -> None:
    for seed in range(3):
        saved(table(seed), tmp_path / f"{seed}.csv")
    scored = run("score", "1.csv", "0.csv", "--data", data, cwd=tmp_path)
    mean = submission.score(tmp_path / "1.csv", tmp_path / "0.csv")["dice"].mean()
    assert scored.stdout.startswith(f"mean Dice {mean:.4f}, 3 images")
    assert all(label in scored.stdout for label in CLASSES)
    voted = run("vote", "0.csv", "1.csv", "2.csv", "--out", "out/v.csv", cwd=tmp_path)
    assert (voted.returncode, voted.stdout) == (0, "out/v.csv: 9 rows from 3 files\n")
    assert submission.check(tmp_path / "out/v.csv", data) == []
    differing = run("diff", "0.csv", "0.csv", cwd=tmp_path)
    assert differing.stdout.startswith("9 of 9 rows are identical\nmean Dice 1.0000")
    refused = run("vote", "0.csv", "1.csv", "--out", "x.csv", "--min-votes", 3, cwd=tmp_path)
    assert (refused.returncode, "expected 1 to 2" in refused.stderr) == (1, True)
    saved(table().drop(2), tmp_path / "1.csv")
    refused = run("vote", "0.csv", "1.csv", "--out", "x.csv", cwd=tmp_path)
    assert refused.returncode == 1
    assert "1.csv: other rows than 0.csv" in refused.stderr
    assert "1 of 9 rows are missing" in refused.stderr
    assert not (tmp_path / "x.csv").exists()


def test_it_starts_without_torch() -> None:
    code = "import sys, utils.submission; print([m for m in ('torch', 'cv2', 'scipy', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_table_with_missing_masks_is_scored_as_empty_ones():
    truth = pd.DataFrame({"image_name": ["a.png"] * 2, "class": ["x", "y"], "rle": ["1 5", np.nan]})
    assert combine.score(truth.assign(rle=[None, np.nan]), truth)["dice"].tolist() == pytest.approx([0, 1], abs=1e-4)
