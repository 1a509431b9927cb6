"""Numbers behind the exploratory notebook, computed from the tables of a survey (`utils.eda.survey`)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from utils.data.cache import RESAMPLE, make_entry
from utils.eda.survey import Survey
from utils.masks import upsampling
from utils.masks.dice import dice_per_class


def class_statistics(found: Survey) -> pd.DataFrame:
    """By class, in their order: images that have it, polygons per image, mean, min and max area, share of the image.

    Areas in pixels, over the images that have the class; share: mean area divided by the image's pixels.
    """
    pixels = found.images.set_index("image_name")[["height", "width"]].prod(axis=1)
    bones = found.bones.assign(share=found.bones["area"] / found.bones["image_name"].map(pixels).astype(float))
    table = bones.groupby("class").agg(
        images=("area", "size"),
        polygons=("polygons", "mean"),
        mean_area=("area", "mean"),
        min_area=("area", "min"),
        max_area=("area", "max"),
        share=("share", "mean"),
    )
    return table.reindex(found.classes)


def overlap_table(found: Survey) -> pd.DataFrame:
    """Pairs of classes that overlap anywhere, most overlapping first.

    Columns a, b, images (how many they overlap in), of (how many have both), iou (mean over those with both).
    """
    present = pd.crosstab(found.bones["image_name"], found.bones["class"])
    groups = found.pairs.groupby(["a", "b"]).agg(images=("iou", "size"), iou=("iou", "sum")).reset_index()
    groups["of"] = [int((present[a] & present[b]).sum()) for a, b in zip(groups["a"], groups["b"], strict=True)]
    groups["iou"] /= groups["of"]
    return groups.sort_values("iou", ascending=False, ignore_index=True)[["a", "b", "images", "of", "iou"]]


def argmax_cost(found: Survey) -> pd.DataFrame:
    """The best mean Dice per class if every pixel could have one class only, from the truth itself.

    Columns smaller (a pixel of several classes goes to the one with the smallest mask) and first (to the first in
    class order, as numpy's arg-max breaks ties); an upper bound for any model that ends in arg-max instead of one
    sigmoid per class. Classes in order; a class absent from an image counts 1 there, as in the competition's score.
    """
    images = int((found.images["annotation"] != "").sum())
    kept = found.bones.groupby("class")[["kept_smaller", "kept_first"]].sum().reindex(found.classes, fill_value=0.0)
    present = found.bones.groupby("class").size().reindex(found.classes, fill_value=0)
    kept = kept.add(images - present, axis=0) / max(images, 1)
    return kept.rename(columns={"kept_smaller": "smaller", "kept_first": "first"})


def bone_sizes(found: Survey) -> pd.DataFrame:
    """By person with metadata: hand_size (pixels) beside age, sex, weight_kg and height_cm; empty without metadata.

    hand_size is the mean over the person's images of the square root of the area of all classes but Radius and Ulna,
    which the image's border cuts anywhere.
    """
    measures = [c for c in ("age", "weight_kg", "height_cm") if c in found.images]
    if not measures or "sex" not in found.images:
        return pd.DataFrame(columns=["hand_size"])
    whole = found.bones[~found.bones["class"].isin(["Radius", "Ulna"])]
    size = np.sqrt(whole.groupby(["ID", "image_name"])["area"].sum()).groupby("ID").mean().rename("hand_size")
    people = found.images.drop_duplicates("ID").set_index("ID")[["sex", *measures]]
    return people.join(size, how="inner").dropna(subset=["hand_size"])


def correlations(sizes: pd.DataFrame) -> pd.Series:
    """Pearson's correlation of hand_size with age, weight, height and being male, from `bone_sizes`."""
    measures = sizes.assign(male=(sizes["sex"] == "M").astype(float)).drop(columns=["sex"])
    return measures.corr()["hand_size"].drop("hand_size")


def describe_folds(folds: pd.DataFrame, found: Survey) -> pd.DataFrame:
    """By fold: images, people, the share of people with a bent wrist, and where known mean age and share of women."""
    people = folds.drop_duplicates("ID")
    table = people.groupby("fold").agg(people=("ID", "nunique"), bent=("bent", "mean"))
    table.insert(0, "images", folds.groupby("fold").size())
    if "sex" in found.images:
        known = people.merge(found.images.drop_duplicates("ID")[["ID", "age", "sex"]], on="ID").groupby("fold")
        table["mean_age"] = known["age"].mean()
        table["women"] = known["sex"].apply(lambda sex: (sex == "F").mean())
    return table


def pick_examples(images: pd.DataFrame, count: int) -> pd.DataFrame:
    """About `count` rows of people spread evenly over the IDs, all images of a person together."""
    people = images["ID"].unique()
    wanted = min(len(people), max(1, round(count * len(people) / len(images))))
    chosen = people[np.linspace(0, len(people) - 1, wanted).round().astype(int)]
    return images[images["ID"].isin(chosen)].head(count)


def picture_items(
    images: pd.DataFrame, titles: Sequence[str], classes: list[str], image_size: int = 512
) -> list[tuple]:
    """What `figures.overlays` draws, (title, image, rles, size), for annotated rows of the index."""
    items = []
    for row, title in zip(images.itertuples(), titles, strict=True):
        entry = make_entry(row.image, row.annotation, classes, (image_size, image_size))
        items.append((title, entry.image, entry.truth, entry.size))
    return items


def label_fidelity(images: pd.DataFrame, classes: list[str], sizes: Sequence[int]) -> pd.DataFrame:
    """What labels alone keep: mean Dice between the true masks and their labels at a network's resolution, upsampled
    bilinearly and cut at 0.5. A row per resolution (side, pixels), a column per way of resampling (`cache.RESAMPLE`).

    No network trained on labels can score better than what they keep, but by luck. `images`: annotated index rows.
    """
    kept: dict[str, dict[int, float]] = {way: {} for way in RESAMPLE}
    for way in RESAMPLE:
        for side in sorted(set(sizes)):
            scores = []
            for row in images.itertuples():
                entry = make_entry(row.image, row.annotation, classes, (side, side), way)
                masks = upsampling.encode_masks(entry.label.dense() / np.float32(255), entry.size, 0.5)
                scores.append(dice_per_class(masks, entry.truth).mean())
            kept[way][side] = float(np.mean(scores))
    return pd.DataFrame(kept).rename_axis("pixels")
