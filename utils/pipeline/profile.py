"""Read profiles: what a run trains and with which parameters, checked against the notebooks before it starts.

A profile is `notebooks/profiles/<name>.yaml`. Its sections hold parameters of the notebooks, see `pipeline.steps`:
`eda` of 01, `baseline` of 02, `train` and each model of 03, `predict` of 04, `ensemble` of 05, `zoo` of 06, `analysis`
of 07, `instances` of 08 and `export` of 10 (for every fold model), each model in `yolo` of 09; `parameters` go to every
notebook that declares them. A model of 03 may also have `after: <another model>`: it starts from that model's weights
of the same fold, once it is trained, and takes over its parameters but for those that it names itself. One with
`votes: false` only prepares others: it is trained, but neither predicted nor in the vote. One that refines another
waits for that model's predictions of the same fold, see `pipeline.model_order`.
"""

from collections.abc import Iterator
from itertools import groupby, product
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from utils.files import ROOT, Problems, resolve, shown, unknown
from utils.params import OWN, Parameter, ParameterError, check_values, declared, load_yaml
from utils.pipeline.model_order import check_votes, find_chains, find_stages, is_voter
from utils.pipeline.open_run import nested_problems
from utils.pipeline.steps import PREDICT, ROWS, TRAIN, Row, Step

EmptyIfNone = BeforeValidator(lambda value: {} if value is None else value)
Section = Annotated[dict[str, Any], EmptyIfNone]
"""A section of which the YAML file has only the heading is read as None."""


ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]


class ProfileError(Problems):
    """A profile that can't be run; the message lists every problem."""

    def __init__(self, where: str | Path, problems: list[str]):
        super().__init__(f"{shown(where)} can't be run:", problems)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def _inside(folder: str) -> str:
    if not resolve(folder).is_relative_to(ROOT / "data"):
        raise ValueError("expected a folder below data/")
    return folder


class Sample(_Strict):
    """The synthetic data set that is made if no `--data` is given; folder: relative to the repository."""

    folder: Annotated[str, AfterValidator(_inside)] = "data/sample"
    train_people: Annotated[int, Field(ge=2)] = 40
    test_people: Annotated[int, Field(ge=1)] = 12
    image_size: Annotated[int, Field(ge=128)] = 2048
    seed: Annotated[int, Field(ge=0)] = 0
    label_errors: Annotated[int, Field(ge=0)] = 0
    artefacts: Annotated[float, Field(ge=0, le=1)] = 0.0


class _Profile(_Strict):
    """A profile file: models × `folds`. `threads`: CPU threads of one step; `jobs`: steps at a time."""

    sample: Sample = Sample()
    threads: Annotated[int, Field(ge=1)] = 2
    jobs: Annotated[int, Field(ge=1)] = 1
    parameters: Section = {}
    folds: Annotated[list[Annotated[int, Field(ge=-1)]], Field(min_length=1)] = [0]

    @property
    def all_models(self) -> list[str]:
        """The names of all models, those of every section that has some."""
        return [name for section in MODEL_SECTIONS for name in getattr(self, section)]


MODEL_SECTIONS = list(dict.fromkeys(row.models for row in ROWS if row.models))
"""The sections of a profile that hold models, each with its own parameters."""


def profile_class() -> type[_Profile]:
    """The class of profiles, with a section for each row of the table of steps.

    One that is not always in a run is None where the profile does not name it.
    """
    of_models = Annotated[dict[ModelName, Section], EmptyIfNone]
    fields = {
        row.section: (Section, {}) if row.always else (Annotated[Section | None, EmptyIfNone], None) for row in ROWS
    }
    return create_model("Profile", __base__=_Profile, **fields | dict.fromkeys(MODEL_SECTIONS, (of_models, {})))


Profile = profile_class()


def profile_path(name: str) -> Path:
    """The file of a profile. Raises ProfileError with the nearest name if there is none."""
    folder = ROOT / "notebooks" / "profiles"
    path = folder / f"{name}.yaml"
    if not path.exists() or path.parent != folder:
        raise ProfileError(path, [unknown("profile", name, sorted(p.stem for p in folder.glob("*.yaml")))])
    return path


def read_profile(path: str | Path) -> _Profile:
    """Read a profile file and check its structure. Raises ProfileError with all unknown keys and wrong values."""
    try:
        raw = load_yaml(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, ValueError) as error:  # a UnicodeDecodeError is one, too
        raise ProfileError(path, [str(error)]) from None
    if not isinstance(raw, dict):
        raise ProfileError(path, ["expected sections such as `train:` and `models:`"])
    try:
        return Profile.model_validate(raw)
    except ValidationError as error:
        raise ProfileError(path, [_structure(e) for e in error.errors(include_url=False)]) from None


def run_name(profile: str, data: str | Path | None) -> str:
    """The profile's name, such as `sample`; with a data folder, for example `sample-nuclei`."""
    return profile if data is None else f"{profile}-{Path(data).name}"


def steps(path: str | Path, run: str, data_dir: str) -> list[Step]:
    """The run's steps, earlier ones first, with their checked parameters.

    `run`: name of the run; `data_dir`: the data folder as the notebooks get it. Raises ProfileError with every
    parameter that a notebook does not declare or that is not of the declared type.
    """
    profile, problems = read_profile(path), []
    chains = find_chains(profile.models, problems)
    others = [section for section in MODEL_SECTIONS if section != TRAIN.models]
    for section in others:
        twice = [name for name in getattr(profile, section) if name in profile.models]
        problems += [f"{section}.{name}: there is a model of this name" for name in twice]
    shared = {"parameters": profile.parameters, TRAIN.section: profile.train}
    stages = find_stages(profile.models, shared, chains, problems)
    problems += check_votes(profile.models, any(getattr(profile, s) for s in others), chains, stages)
    if problems:
        raise ProfileError(path, problems)
    plan = list(_plan(profile, chains, stages, run, data_dir))
    notebooks = {path: _declared(path, problems) for path in dict.fromkeys(step.notebook for _, step, _ in plan)}
    known = {name for parameters in notebooks.values() for name in parameters}
    for name in profile.parameters:
        if name in OWN:
            problems.append(f"parameters.{name}: set by the run itself")
        elif name not in known:
            problems.append(f"parameters: {unknown('parameter', name, known)}")
    for where, step, own in plan:
        notebook = notebooks[step.notebook]
        given = {k: v for k, v in profile.parameters.items() if k in notebook}
        for title, values in where.items():
            problems += [f"{title}.{k}: set by the run itself" for k in values if k in own]
            problems += [f"{title}: {p}" for p in [*check_values(notebook, values)[1], *nested_problems(values)]]
            given |= values
        lacking = [k for k in own if k not in notebook] if notebook else []
        problems += [f"{step.notebook} does not declare {k}, which a run needs" for k in lacking]
        given = {k: v for k, v in (given | own).items() if k in notebook}
        step.parameters, wrong = check_values(notebook, given)
        problems += [p for p in wrong if not any(q.endswith(p) for q in problems)]
    if problems:
        raise ProfileError(path, problems)
    return [step for _, step, _ in plan]


def _declared(path: str, problems: list[str]) -> dict[str, Parameter]:
    try:
        return declared(ROOT / path)
    except FileNotFoundError:
        problems.append(f"{path} is missing")
    except ParameterError as error:
        problems += error.problems
    return {}


def _sections(models: dict[str, Section], chain: list[str]) -> dict[str, Section]:
    """The parameters of the models of a chain, by their place in the file; later ones count. What a model starts from
    is not what the models after it start from."""
    own = {"after", "votes"}
    other = {name: own if name == chain[-1] else {*own, "init_checkpoint"} for name in chain}
    return {f"models.{m}": {k: v for k, v in models[m].items() if k not in other[m]} for m in chain}


def _plan(
    profile: _Profile, chains: dict[str, list[str]], stages: dict[str, str], run: str, data_dir: str
) -> Iterator[tuple[dict[str, Section], Step, Section]]:
    """(its parameters by their place in the file, the step without them, what the run sets) of each step."""
    voters = [name for name in profile.all_models if is_voter(profile.models.get(name, {}))]
    rows = _planned_rows(profile, voters)
    submits = [row for row in rows if "submission" in row.own][-1:]  # without other models, the baseline is submitted
    of_run = {"submission": f"submissions/{run}.csv", "models": [m for m in voters if m not in stages], "missing": {}}
    names: dict[str, list[str]] = {row.section: [] for row in ROWS}
    for models, of_models in groupby(rows, key=lambda row: row.models):
        of_models = list(of_models)
        each = (
            product(profile.folds, chains if models == TRAIN.models else getattr(profile, models))
            if models
            else [(0, "")]
        )
        for (fold, model), row in product(each, of_models):
            if row.votes and model not in voters:
                continue
            own = {"data_dir": data_dir, "output_dir": f"outputs/{run}"} | (
                {"model": model, "fold": fold} if models else {}
            )
            own |= {name: of_run[name] for name in row.own if name != "submission" or row in submits}
            where = {row.section: getattr(profile, row.section)}
            step = Step(name=row.name(model, fold), after=_after(row, model, fold, names))
            if row.section == models:
                where = {f"{models}.{model}": where[models][model]}
            elif row is TRAIN:
                where |= _sections(profile.models, chains[model])
                if earlier := chains[model][-2:-1]:
                    step.after.append(TRAIN.name(earlier[0], fold))
                    own["init_checkpoint"] = f"outputs/{run}/{TRAIN.notebook}/{earlier[0]}/fold{{fold}}/best"
                if model in stages:
                    step.after.append(PREDICT.name(stages[model], fold))
            names[row.section].append(step.name)
            yield where, step, own


def _planned_rows(profile: _Profile, voters: list[str]) -> list[Row]:
    """The rows of the table that this profile executes: one made once needs at least one of the steps it asks for."""
    planned: list[Row] = []
    for row in ROWS:
        models = [m for m in getattr(profile, row.models) if not row.votes or m in voters] if row.models else [""]
        needed = not row.needs or {earlier.section for earlier in planned} & {*row.needs}
        if models and needed and getattr(profile, row.section) is not None:
            planned.append(row)
    return planned


def _after(row: Row, model: str, fold: int, names: dict[str, list[str]]) -> list[str]:
    """The steps that a step needs: of those made for each fold model, that of its own."""
    found = [name for section in row.needs for name in names[section]]
    return [name for name in found if not row.models or "/" not in name or name.endswith(f"/{model}/fold{fold}")]


def _structure(error: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        return f"{place}: {error['msg']}, found {error['input']!r}"
    names = Sample.model_fields if error["loc"][0] == "sample" else Profile.model_fields
    return unknown("key", place, [".".join([*map(str, error["loc"][:-1]), name]) for name in names])
