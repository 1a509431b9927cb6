"""What notebook 05 says about a vote, and what 07 judges: masks as they were voted, techniques of an ablation."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from utils.analysis.ablation import VARIANTS, Ablation, find_repeats, judge_techniques
from utils.analysis.results import ENSEMBLE
from utils.data.cache import Cache
from utils.data.records import Ensemble
from utils.device import choose_device
from utils.inference.ensemble import FoldModel, find_fold_models, vote_images
from utils.inference.refinement_weight import Stage, refine
from utils.inference.variants import score_variants, write_variants
from utils.inference.weights import Vote
from utils.masks.dice import mean_dice
from utils.pipeline.run import Run


def describe_vote(
    voting: Vote, fold_models: Sequence[FoldModel], stages: Sequence[Stage], test_dice: Mapping[str, float | None]
) -> dict[str, Any]:
    """What the record of a vote, `data.records.Ensemble`, says about its models: their scores and weights.

    stages: the refining models that were judged. test_dice: by model, and of "ensemble".
    """
    oof = {name: mean_dice(table) for name, table in voting.tables.items()}
    refined = {stage.model: oof.get(stage.first) if stage.weight else None for stage in stages}
    return {
        "oof_dice": oof.get(ENSEMBLE),
        "oof_dice_cross_fitted": voting.crossed,
        "test_dice": test_dice.get(ENSEMBLE),
        "fold_models": [
            {"model": m.model, "fold": m.fold, "weight": voting.weights[m.model], "val_dice": m.config.score}
            for m in fold_models
        ],
        "models": {
            name: {"oof_dice": oof.get(name), "test_dice": test_dice.get(name), "weight": weight}
            for name, weight in voting.weights.items()
        },
        "wrist_stages": {stage.model: {"oof_dice": refined[stage.model], **stage.summary()} for stage in stages},
    }


def judged_masks(run: Run, judged: str, vote: Ensemble) -> tuple[Callable, Cache]:
    """How the out-of-fold masks of a result are made, and the cache with their truth.

    judged: "ensemble", whose fold models vote with the weights, refinements, threshold and kind of vote of `vote`, or a
    model, which votes alone. The function gets names of images and `folds`, the fold of each, see `vote_images`.
    """
    weights = {name: model["weight"] for name, model in vote.models.items()} if judged == ENSEMBLE else {judged: 1.0}
    fold_models = find_fold_models(run.output_dir, list(weights))
    if judged == ENSEMBLE:
        fold_models = refine(run.output_dir, fold_models, vote.refining_weights)
    voted = {name: vote.parameters[name] for name in ("threshold", "vote")}
    masks = partial(vote_images, fold_models, split="oof", weights=weights, **voted)
    return masks, run.cache(fold_models[0].config.image_size)


def judge_ablation(run: Run, base: str, device: str) -> Ablation:
    """What each technique is worth: the run's models against `base`, and other ways to predict with its trainings.

    The latter are predicted on `device`, as far as they are not yet stored. base: a model's name.
    """
    cache = run.cache(find_fold_models(run.output_dir, [base])[0].config.image_size)
    trained, folders = [base, *find_repeats(run.output_dir, base)], (run.output_dir, run.folder / "probabilities")
    variants = score_variants(trained, run.folds, cache, *folders, choose_device(device))
    write_variants(run.output_dir / VARIANTS, variants)
    return judge_techniques(run.output_dir, base)
