"""The ablation: what a technique is worth, told from chance and from the seeds, in words, a table and a figure."""

import numpy as np
import pandas as pd
import pytest

from tests.test_analysis import FOLDS, IMAGES, NAMES, dice, make_run
from utils import figures
from utils.analysis.__main__ import main
from utils.analysis.ablation import VARIANTS, as_text, find_repeats, judge_techniques, seed_noise
from utils.analysis.results import Scores
from utils.files import ROOT, Problems, read_json, write_json
from utils.inference.variants import Variant, write_variants
from utils.pipeline.profile import profile_path, read_profile, steps

SEEDS = {"base": -0.002, "seed-1": 0.0, "seed-2": 0.002}
GAINS = {"better": 0.02, "worse": -0.02, "lucky": 0.002, "nothing": 0.0}
"""`lucky` is better on every person, but by no more than another seed makes."""


def make_ablation(folder, gains, after=None):
    """A run whose models gain what `gains` says, in parameters that differ from those of base by one each."""
    tables = {name: dice(gain, seed=number, noise=1e-4) for number, (name, gain) in enumerate(gains.items())}
    run = make_run(folder, tables)
    for name in gains:
        seed = {"seed": int(name[-1])} if name.startswith("seed-") else {"seed": 0}
        changed = {} if name == "base" or name.startswith("seed-") else {"loss": name}
        for path in run.glob(f"03_train/{name}/*/metrics.json"):
            given = {"loss": "bce", "model": name, "fold": 0, **seed, **changed}
            write_json(path, read_json(path) | {"parameters": given})
    write_json(run / "run.json", read_json(run / "run.json") | {"after": after or {}})
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs") / "ablation"
    return make_ablation(folder, SEEDS | GAINS, {"better": ["worse"]})


def test_a_technique_is_told_from_chance_and_from_another_seed(run):
    found = judge_techniques(run, "base")
    table = found.table.set_index("technique")
    assert found.repeats == ["seed-1", "seed-2"] and list(table.index) == list(GAINS)
    assert table["verdict"].tolist() == ["better", "worse", "not shown", "not shown"]
    assert table.loc["lucky", "low"] > 0 and table.loc["lucky", "p"] < 0.01 and 0.0023 < found.noise < 0.02
    gains = [GAINS[name] for name in table.index]
    assert table["difference"].tolist() == pytest.approx(gains, abs=3e-4), "from the mean over the seeds"
    assert table["dice"].tolist() == pytest.approx([found.dice + gain for gain in gains], abs=3e-4)
    assert table["bent"].tolist() == pytest.approx(gains, abs=3e-4)
    assert table["minutes"].tolist() == [88, 44, 44, 44] and table["trained"].all()


def test_without_other_seeds_the_test_by_person_decides_and_it_is_said(tmp_path):
    found = judge_techniques(make_ablation(tmp_path / "run", {"base": 0.0} | GAINS), "base")
    assert found.table["verdict"].tolist() == ["better", "worse", "better", "not shown"] and np.isnan(found.noise)
    assert "No model repeats the base" in as_text(found)
    with pytest.raises(Problems, match="nothing to compare base with"):
        judge_techniques(make_ablation(tmp_path / "alone", {"base": 0.0}), "base")
    with pytest.raises(Problems, match="unknown predicted model 'bse': did you mean base"):
        find_repeats(tmp_path / "run", "bse")


def test_a_way_to_predict_is_compared_with_the_trainings_that_it_uses(tmp_path):
    run = make_ablation(tmp_path / "run", SEEDS | GAINS)
    variants = [
        Variant("TTA hflip", ("base",), dice(SEEDS["base"] + 0.003, 0, 1e-4), 0.5),
        Variant("vote", tuple(SEEDS), dice(0.003, 1, 1e-4), 0.25),
        Variant("vote with a model that is gone", ("base", "gone"), dice(), 0.25),
    ]
    write_variants(run / VARIANTS, iter(variants))
    table = judge_techniques(run, "base").table.iloc[len(GAINS) :].set_index("technique")
    assert list(table.index) == ["TTA hflip", "vote"] and not table["trained"].any()
    assert table["difference"].tolist() == pytest.approx([0.003, 0.003], abs=2e-4)
    assert table["verdict"].tolist() == ["better", "better"], "the trainings are the same: seeds are no excuse"
    assert table["minutes"].tolist() == [0.5, 0.25]


def test_the_noise_of_the_seeds_holds_for_95_of_100_trainings():
    rng, inside = np.random.default_rng(0), 0
    images = FOLDS.set_index("image_name")[["ID", "bent", "fold"]]
    easy = rng.normal(0.9, 0.05, IMAGES)
    for _ in range(400):
        moved = rng.normal(0, 0.01, (4, 4))  # of each training (seed) and fold
        values = easy + moved[:, FOLDS["fold"]]
        made = [Scores("x/y", ROOT, pd.DataFrame({"a": row}, index=NAMES), images) for row in values]
        distance = abs(values[3].mean() - values[:3].mean())
        inside += distance < seed_noise(made[:3])
    assert 0.92 < inside / 400 < 0.98
    assert np.isnan(seed_noise(made[:1]))


def test_of_many_techniques_without_effect_hardly_any_is_named(tmp_path):
    tables = {"base": dice(0, 98)} | {f"t{number}": dice(0, number) for number in range(40)}
    run = make_run(tmp_path / "many", tables)
    found = judge_techniques(run, "base").table
    assert (found["p"] < 0.05).sum() > 0 and (found["verdict"] != "not shown").sum() == 0


def test_the_command_prints_a_table_for_a_readme(run, tmp_path, capsys):
    main(["ablation", "ablation/base", "--outputs", str(run.parent), "--csv", str(tmp_path / "table.csv")])
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert "technique" in lines[0] and "difference [95 %]" in lines[0] and lines[0].startswith("|")
    assert lines[2].startswith("| base, mean of 3 seeds") and "| worse " in shown and "Another seed alone" in shown
    assert pd.read_csv(tmp_path / "table.csv")["technique"].tolist()[:4] == list(GAINS)


def test_the_figure_shows_every_technique_and_the_seeds(run):
    found = judge_techniques(run, "base")
    figure = figures.ablation(found)
    axis = figure.axes[0]
    assert [t.get_text() for t in axis.get_yticklabels()] == found.table["technique"].tolist()
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["another seed alone (95 %)", "bent wrists"]
    drawn = axis.collections[1].get_offsets()[:, 0]
    assert drawn.tolist() == pytest.approx(found.table["difference"].tolist())


def test_every_model_of_the_profile_differs_from_base_by_one_thing():
    profile = read_profile(profile_path("ablation"))
    planned = steps(profile_path("ablation"), "ablation", "data/sample")
    train = {s.name.split("/")[1]: s.all_parameters() for s in planned if s.name.startswith("03_train")}
    assert next(iter(profile.models)) == "base" and next(iter(train)) == "base"
    own = ("model", "fold", "init_checkpoint")
    seen = []
    for name, given in train.items():
        differing = {k: v for k, v in given.items() if v != train["base"][k] and k not in own}
        assert differing.keys() == profile.models[name].keys() - {"after"}, name
        seen.append(sorted(map(str, differing.items())))
    assert all(seen.count(one) == 1 for one in seen)
    samples = {name: given["epochs"] * (1 + given["wrist_crops"]) for name, given in train.items()}
    others = {name for name, count in samples.items() if count != samples["base"]}
    assert others == {"ladder"}, "all others see as many samples"
