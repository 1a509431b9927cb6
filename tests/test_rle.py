"""Run-length strings and their intervals against pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests import reference
from utils.masks import rle
from utils.masks.dice import dice_of_masks
from utils.masks.masks import Masks, majority

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@st.composite
def masks(draw: st.DrawFn, count: int = 1) -> list[np.ndarray]:
    """Masks of one shape: empty, full, one pixel, or scattered, which touch borders and run on from row to row."""
    shape = draw(SHAPES)
    some = arrays(bool, shape)
    empty, full = np.zeros(shape, bool), np.ones(shape, bool)
    one = empty.copy()
    one[draw(st.integers(0, shape[0] - 1)), draw(st.integers(0, shape[1] - 1))] = True
    return [draw(st.one_of(st.sampled_from([empty, full, one]), some)) for _ in range(count)]


@given(masks())
def test_encode_is_the_baselines_and_decode_undoes_it(drawn: list[np.ndarray]) -> None:
    (mask,) = drawn
    text = rle.encode(mask)
    assert text == reference.encode(mask)
    assert (rle.decode(text, mask.shape) == mask).all()
    assert (reference.decode(text, mask.shape) == mask).all()
    assert Masks.from_texts([text], mask.shape).areas.tolist() == [mask.sum()]


@given(st.integers(1, 6).flatmap(masks), st.data())
def test_masks_hold_their_pixels(drawn: list[np.ndarray], data: st.DataObject) -> None:
    size = drawn[0].shape
    texts = [reference.encode(mask) for mask in drawn]
    found = Masks.from_dense(drawn)
    assert found.texts() == texts == Masks.from_texts(texts, size).texts() == Masks.from_runs(list(found), size).texts()
    assert found.areas.tolist() == [mask.sum() for mask in drawn]
    for number, mask in enumerate(drawn):
        assert (found.dense(number) == mask).all()
        part, (top, left) = found.region(number)
        whole = np.zeros_like(mask)
        whole[top : top + part.shape[0], left : left + part.shape[1]] = part
        assert (whole == mask).all()
        assert not part.size or (part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any())
    assert Masks.from_arrays(found.arrays(), size).texts() == texts
    numbers = data.draw(st.lists(st.integers(0, len(drawn) - 1), max_size=5))
    assert found.select(numbers).texts() == [texts[number] for number in numbers]


@given(st.lists(masks(3), min_size=1, max_size=5))
def test_masks_of_images_of_different_sizes_equal_their_pixels(rows: list[list[np.ndarray]]) -> None:
    sizes = tuple(np.array([mask[0].shape for mask in rows]).T)
    columns = [Masks.from_texts([rle.encode(mask) for mask in column], sizes) for column in zip(*rows, strict=True)]
    a, b, _ = columns
    assert a.intersections(b).tolist() == [(one & other).sum() for one, other, _ in rows]
    assert a.same(b).tolist() == [(one == other).all() for one, other, _ in rows]
    assert a.difference(b).texts() == [reference.encode(one & ~other) for one, other, _ in rows]
    assert majority(columns, [1, 1, 1], 0).texts() == [reference.encode(np.any(row, axis=0)) for row in rows]
    weights = [0.5, 0.3, 0.2]
    sums = [sum(weight * mask for weight, mask in zip(weights, row, strict=True)) for row in rows]
    assert majority(columns, weights, 0.45).texts() == [reference.encode(total > 0.45) for total in sums]
    assert a.select(slice(1)).size[0].tolist() == [rows[0][0].shape[0]]


def test_damaged_runs_are_refused() -> None:
    arrays = Masks.from_texts(["6 1", "", "2 3 6 1"], (2, 3)).arrays()
    for name, value in (("starts", [5, 1]), ("ends", [6, 4, 99]), ("offsets", [0, 2, 1, 3]), ("offsets", [0, 1, 1, 9])):
        with pytest.raises(ValueError, match="damaged"):
            Masks.from_arrays(arrays | {name: np.array(value)}, (2, 3))


def test_masks_past_the_end_of_their_image_are_refused() -> None:
    with pytest.raises(ValueError, match="mask 1: the last run ends at pixel 7, past the end of an image of 2 rows"):
        Masks.from_texts(["6 1", "5 3"], (2, 3))
    with pytest.raises(ValueError, match=r"mask 0: .* 1099511627777, past the end of an image of 2 rows"):
        Masks.from_texts(["1 1 1099511627776 2", "5 3"], (np.array([2, 8]), np.array([3, 8])))
    with pytest.raises(ValueError, match="does not fit"):
        Masks.from_regions([(np.ones((2, 2), bool), (1, 0))], (2, 2))
    with pytest.raises(ValueError, match=r"expected a bool \(H, W\) array"):
        Masks.from_dense([np.zeros((2, 2))])
    assert Masks.empty(3).texts() == [""] * 3 and Masks.empty(0).texts() == []
    with pytest.raises(IndexError):
        Masks.empty(2)[2]


@given(st.lists(masks(3), min_size=1, max_size=5), st.integers(1, 3))
def test_columns_equal_pixels(rows: list[list[np.ndarray]], min_votes: int) -> None:
    columns = [Masks.from_texts([rle.encode(mask) for mask in column]) for column in zip(*rows, strict=True)]
    expected = [reference.encode(sum(map(np.int64, r)) >= min_votes) for r in rows]
    assert majority(columns, [1, 1, 1], min_votes - 1).texts() == expected
    expected = [float(reference.dice(a, b)) for a, b, _ in rows]
    assert dice_of_masks(*columns[:2]).tolist() == pytest.approx(expected, rel=1e-6)


@given(
    st.lists(st.tuples(st.from_regex("[0-9]{1,8}|[0-9]{9,12}", fullmatch=True), st.integers(1, 3))), st.integers(0, 2)
)
def test_numbers_are_read_as_python_reads_them(words: list[tuple[str, int]], before: int) -> None:
    text = " " * before + "".join(word + " " * blanks for word, blanks in words)
    numbers, ends = rle.read_numbers(text.encode())
    assert numbers.tolist() == [int(word) for word in text.split()]
    assert [text[:end].split()[-1] for end in ends] == text.split() and all(text[end:][:1] in " " for end in ends)


@given(st.lists(st.lists(st.one_of(st.integers(0, 2000), st.integers(0, 2**40)), max_size=8), max_size=6))
def test_many_strings_at_once_are_those_of_each(positions: list[list[int]]) -> None:
    edges = [np.array(sorted(set(mask)), np.int64) for mask in positions]
    runs = [edge[: len(edge) // 2 * 2] for edge in edges]  # start, end, start, end …
    expected = [" ".join(f"{i + 1} {j - i}" for i, j in zip(run[::2], run[1::2], strict=True)) for run in runs]
    starts, ends = (np.concatenate([np.empty(0, np.int64), *(run[i::2] for run in runs)]) for i in (0, 1))
    assert rle.write_column(starts, ends, np.cumsum([0, *(len(run) // 2 for run in runs)])) == expected


def test_a_full_size_mask_round_trips() -> None:
    mask = np.random.default_rng(0).random((700, 900)) < 0.5
    mask[:100], mask[600:] = False, False
    text = rle.encode(mask)
    assert text == reference.encode(mask)
    assert (rle.decode(text, mask.shape) == mask).all()


@pytest.mark.parametrize("empty", ["", "  ", None, float("nan"), np.nan])
def test_every_spelling_of_an_empty_mask(empty: object) -> None:
    assert not rle.decode(empty, (2, 3)).any()
    columns = [Masks.from_texts([text]) for text in (empty, "1 2", "2 2")]
    assert majority(columns, [1, 1, 1], 1).texts() == ["2 1"]
    found = dice_of_masks(Masks.from_texts([empty, empty, "1 1"]), Masks.from_texts(["", "2 3", "1 1"]))
    assert found.tolist() == pytest.approx([1, 1e-4 / 3.0001, 1])


def test_touching_runs_are_merged() -> None:
    assert [x.tolist() for x in Masks.from_texts(["1 2 3 4 8 1"])[0]] == [[0, 7], [6, 8]]
    masks = Masks.from_texts(["1 2 3 4", "7 2 9 1", "5 1"])
    assert (masks.starts.tolist(), masks.ends.tolist(), masks.row.tolist()) == ([0, 6, 4], [6, 9, 5], [0, 1, 2])


BAD = {
    "1 2 3": "3 numbers",
    "1 2 x": "'x' is not",
    "1 2.5": "'2.5' is not",
    "-1 2": "'-1' is not",
    "+1 2": r"'\+1' is not",
    "1\t2": "is not",
    "1 ²": "'²' is not",
    "0 3": "run 1 has start 0",
    "4 2 9 0": "run 2 has length 0",
    "1 99999999999999999999999": "run 1 has length",
    "5 3 1 1": r"run 2 \(start 1\) comes before run 1 \(start 5\)",
    "1 5 3 1": r"run 2 \(start 3\) overlaps run 1 \(start 1\)",
    7: "an RLE is text",
}


@pytest.mark.parametrize("text", BAD)
def test_malformed_text_is_refused_and_says_why(text: object) -> None:
    with pytest.raises(ValueError, match=BAD[text]):
        rle.decode(text, (9, 9))
    column = ["1 2", text, "", " 1  2 3 1 ", None]
    *_, row, wrong = rle.parse_column(column)
    assert wrong == [1]
    assert np.unique(row).tolist() == [0, 3]
    with pytest.raises(ValueError, match=f"mask 1: .*{BAD[text]}"):
        Masks.from_texts(column)


def test_several_malformed_masks_are_found_together() -> None:
    column = ["1", "x", "3 1", "0 1", "2 1 1 1", "1 2"]
    *_, row, wrong = rle.parse_column(column)
    assert (row.tolist(), wrong) == ([2, 5], [0, 1, 3, 4])


def test_decode_refuses_runs_past_the_end() -> None:
    assert rle.decode("6 1", (2, 3)).sum() == 1
    with pytest.raises(ValueError, match="pixel 7, past the end of an image of 2 rows × 3 columns"):
        rle.decode("5 3", (2, 3))


@pytest.mark.parametrize("mask", [np.zeros((2, 2)), np.zeros((1, 2, 2), bool), np.zeros(4, bool), [[True]]])
def test_encode_refuses_what_is_no_mask(mask: object) -> None:
    with pytest.raises(ValueError, match=r"expected a bool \(H, W\) array"):
        rle.encode(mask)
