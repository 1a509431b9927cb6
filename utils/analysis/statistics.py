"""Compute the statistics of the exploratory notebook from the tables of a survey (`utils.analysis.survey`)."""

import numpy as np
import pandas as pd

from utils.analysis.survey import Survey


def class_statistics(found: Survey) -> pd.DataFrame:
    """One row per class: images that have it, polygons per image, mean, min and max area, share of the image.

    Areas in pixels, over the images that have the class, NaN where none has; share: mean area divided by the image's
    pixels.
    """
    groups = found.bones.assign(share=image_shares(found)).groupby("class")
    areas = groups["area"].agg(images="size", mean_area="mean", min_area="min", max_area="max")
    areas.insert(1, "polygons", groups["polygons"].mean())
    table = areas.assign(share=groups["share"].mean()).reindex(found.classes)
    return table.fillna({"images": 0, "polygons": 0, "share": 0}).astype({"images": int})


def image_shares(found: Survey) -> pd.Series:
    """The area of each row of `found.bones` as a share (0 to 1) of its image's pixels."""
    pixels = found.images.set_index("image_name")[["height", "width"]].prod(axis=1)
    return found.bones["area"] / found.bones["image_name"].map(pixels).astype(float)


def overlap_table(found: Survey) -> pd.DataFrame:
    """Pairs of classes that overlap in any image, the pair with the largest IoU first.

    Columns a, b, images (how many they overlap in), of (how many have both), iou (mean over those with both).
    """
    present = pd.crosstab(found.bones["image_name"], found.bones["class"])
    groups = found.pairs.groupby(["a", "b"]).agg(images=("iou", "size"), iou=("iou", "sum")).reset_index()
    groups["of"] = [int((present[a] & present[b]).sum()) for a, b in zip(groups["a"], groups["b"], strict=True)]
    groups["iou"] /= groups["of"]
    return groups.sort_values("iou", ascending=False, ignore_index=True)[["a", "b", "images", "of", "iou"]]


def argmax_cost(found: Survey) -> pd.DataFrame:
    """The mean Dice (0 to 1) per class of the true masks if every pixel could have one class only.

    Columns smaller (a pixel of several classes goes to the one with the smallest mask) and first (to the first in
    class order, as numpy's arg-max does); an upper bound for any model that ends in arg-max instead of one sigmoid per
    class. Classes in order; a class absent from an image counts 1 there, as in the competition's score.
    """
    images = int((found.images["annotation"] != "").sum())
    kept = found.bones.groupby("class")[["kept_smaller", "kept_first"]].sum().reindex(found.classes, fill_value=0.0)
    present = found.bones.groupby("class").size().reindex(found.classes, fill_value=0)
    kept = kept.add(images - present, axis=0) / max(images, 1)
    return kept.rename(columns={"kept_smaller": "smaller", "kept_first": "first"})


def bone_sizes(found: Survey) -> pd.DataFrame:
    """One row per person with metadata: sex, age, weight_kg, height_cm and hand_size (pixels); empty without metadata.

    hand_size is the mean over the person's images of the square root of the area of all classes but Radius and Ulna,
    which the image's border cuts off at any length.
    """
    if "sex" not in found.images:
        return pd.DataFrame(columns=["hand_size"])
    whole = found.bones[~found.bones["class"].isin(["Radius", "Ulna"])]
    size = np.sqrt(whole.groupby(["ID", "image_name"])["area"].sum()).groupby("ID").mean().rename("hand_size")
    people = found.images.drop_duplicates("ID").set_index("ID")[["sex", "age", "weight_kg", "height_cm"]]
    return people.join(size, how="inner").dropna(subset=["hand_size"])


def correlations(sizes: pd.DataFrame) -> pd.Series:
    """Pearson's correlation of hand_size with age, weight, height and sex (male = 1); `sizes`: see `bone_sizes`."""
    measures = sizes.assign(male=sizes["sex"].map({"F": 0.0, "M": 1.0})).drop(columns=["sex"])
    return measures.corr()["hand_size"].drop("hand_size")


def describe_folds(folds: pd.DataFrame, found: Survey) -> pd.DataFrame:
    """One row per fold: images, people, bent (share of people) and, with metadata, mean_age and women (share)."""
    people = folds.drop_duplicates("ID")
    table = people.groupby("fold").agg(people=("ID", "nunique"), bent=("bent", "mean"))
    table.insert(0, "images", folds.groupby("fold").size())
    if "sex" in found.images:
        known = people.merge(found.images.drop_duplicates("ID")[["ID", "age", "sex"]], on="ID").groupby("fold")
        table["mean_age"] = known["age"].mean()
        table["women"] = known["sex"].apply(lambda sex: (sex.dropna() == "F").mean())
    return table


def pick_examples(images: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` rows: all images of people that are spread evenly over the IDs."""
    people = images["ID"].unique()
    wanted = min(len(people), max(1, round(count * len(people) / len(images))))
    chosen = people[np.linspace(0, len(people) - 1, wanted).round().astype(int)]
    return images[images["ID"].isin(chosen)].head(count)
