"""Read profiles: what a run trains and with which parameters, checked against the notebooks before it starts.

A profile is `notebooks/profiles/<name>.yaml`. Its sections hold parameters of the notebooks: `eda` of 01, `baseline`
of 02, `train` and each model of 03, `predict` of 04, `ensemble` of 05, `analysis` of 07, `instances` of 08 (for every
fold model), each model in `yolo` of 09; `parameters` go to every notebook that declares them. A model of 03 may also
have `after: <another model>`: it starts from that model's weights of the same fold, once it is trained, and takes over
its parameters but for those that it names itself. One with `votes: false` only prepares others: it is trained, but
neither predicted nor in the vote. One with 03's parameter `wrist_of: <another model>` is a wrist stage:
it waits for that model's predictions of the same fold.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from utils.files import ROOT, Problems, resolve, shown, unknown
from utils.params import OWN, Parameter, ParameterError, check_values, declared, load_yaml
from utils.pipeline.model_order import check_votes, find_chains, find_wrist_stages, is_voter
from utils.pipeline.open_run import nested_problems

NOTEBOOKS = {
    "eda": "01_eda",
    "baseline": "02_baseline_fcn",
    "train": "03_train",
    "predict": "04_inference_tta",
    "ensemble": "05_ensemble",
    "analysis": "07_analysis",
    "instances": "08_instances",
    "yolo": "09_yolo",
}
"""The notebook of each section."""

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


class Profile(_Strict):
    """A profile file: `models` and `yolo` × `folds`. `threads`: CPU threads of one step; `jobs`: steps at a time."""

    sample: Sample = Sample()
    threads: Annotated[int, Field(ge=1)] = 2
    jobs: Annotated[int, Field(ge=1)] = 1
    parameters: Section = {}
    folds: Annotated[list[Annotated[int, Field(ge=-1)]], Field(min_length=1)] = [0]
    eda: Section = {}
    baseline: Annotated[Section | None, EmptyIfNone] = None
    train: Section = {}
    models: Annotated[dict[ModelName, Section], EmptyIfNone] = {}
    predict: Section = {}
    yolo: Annotated[dict[ModelName, Section], EmptyIfNone] = {}
    ensemble: Section = {}
    analysis: Annotated[Section | None, EmptyIfNone] = None
    instances: Annotated[Section | None, EmptyIfNone] = None

    @property
    def all_models(self) -> list[str]:
        """The names of all models that vote."""
        return [*self.models, *self.yolo]


class Step(BaseModel):
    """One execution of a notebook. `name` is its folder in the run, such as `03_train/unetplusplus/fold0`.

    plugins: the files whose parts its parameters name, with their SHA-256.
    """

    name: str
    parameters: dict[str, Any] = {}
    after: list[str] = []
    plugins: dict[str, str] = {}

    def all_parameters(self) -> dict[str, Any]:
        """Those given, and the notebook's defaults for the others."""
        notebook = self.name.partition("/")[0]
        defaults = declared(ROOT / "notebooks" / f"{notebook}.ipynb")
        return {name: parameter.default for name, parameter in defaults.items()} | self.parameters


def profile_path(name: str) -> Path:
    """The file of a profile. Raises ProfileError with the nearest name if there is none."""
    folder = ROOT / "notebooks" / "profiles"
    path = folder / f"{name}.yaml"
    if not path.exists() or path.parent != folder:
        raise ProfileError(path, [unknown("profile", name, sorted(p.stem for p in folder.glob("*.yaml")))])
    return path


def read_profile(path: str | Path) -> Profile:
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
    problems += [f"yolo.{name}: there is a model of this name" for name in profile.yolo if name in profile.models]
    shared = {"parameters": profile.parameters, "train": profile.train}
    stages = find_wrist_stages(profile.models, shared, chains, problems)
    problems += check_votes(profile.models, bool(profile.yolo), chains, stages)
    if problems:
        raise ProfileError(path, problems)
    plan = list(_plan(profile, chains, stages, run, data_dir))
    notebooks = {section: _declared(NOTEBOOKS[section], problems) for section in dict.fromkeys(s for s, *_ in plan)}
    known = {name for parameters in notebooks.values() for name in parameters}
    for name in profile.parameters:
        if name in OWN:
            problems.append(f"parameters.{name}: set by the run itself")
        elif name not in known:
            problems.append(f"parameters: {unknown('parameter', name, known)}")
    for section, where, step, own in plan:
        notebook = notebooks[section]
        given = {k: v for k, v in profile.parameters.items() if k in notebook}
        for title, values in where.items():
            problems += [f"{title}.{k}: set by the run itself" for k in values if k in own]
            problems += [f"{title}: {p}" for p in [*check_values(notebook, values)[1], *nested_problems(values)]]
            given |= values
        lacking = [k for k in own if k not in notebook] if notebook else []
        problems += [f"notebooks/{NOTEBOOKS[section]}.ipynb does not declare {k}, which a run needs" for k in lacking]
        given = {k: v for k, v in (given | own).items() if k in notebook}
        step.parameters, wrong = check_values(notebook, given)
        problems += [p for p in wrong if not any(q.endswith(p) for q in problems)]
    if problems:
        raise ProfileError(path, problems)
    return [step for _, _, step, _ in plan]


def submitting(planned: list[Step]) -> Step:
    """The step that makes the submission; without one, the last step."""
    return next((step for step in planned if step.parameters.get("submission")), planned[-1])


def _declared(name: str, problems: list[str]) -> dict[str, Parameter]:
    try:
        return declared(ROOT / "notebooks" / f"{name}.ipynb")
    except FileNotFoundError:
        problems.append(f"notebooks/{name}.ipynb is missing")
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
    profile: Profile, chains: dict[str, list[str]], stages: dict[str, str], run: str, data_dir: str
) -> Iterator[tuple[str, dict[str, Section], Step, Section]]:
    """(section, its parameters by their place in the file, the step without them, what the run sets) of each step."""
    common = {"data_dir": data_dir, "output_dir": f"outputs/{run}"}
    submission = {"submission": f"submissions/{run}.csv"}
    yield "eda", {"eda": profile.eda}, Step(name=NOTEBOOKS["eda"]), common
    if profile.baseline is not None:
        own = common if profile.all_models else common | submission  # without other models, the baseline is submitted
        yield "baseline", {"baseline": profile.baseline}, Step(name=NOTEBOOKS["baseline"]), own
    predicted = []
    for fold in profile.folds:
        for model, (*earlier, _) in chains.items():
            own = common | {"model": model, "fold": fold}
            trained, predict = (f"{NOTEBOOKS[s]}/{model}/fold{fold}" for s in ("train", "predict"))
            where = {"train": profile.train, **_sections(profile.models, [*earlier, model])}
            before, start = [], {}
            if earlier:
                before = [f"{NOTEBOOKS['train']}/{earlier[-1]}/fold{fold}"]
                start["init_checkpoint"] = f"outputs/{run}/{NOTEBOOKS['train']}/{earlier[-1]}/fold{{fold}}/best"
            if model in stages:
                before.append(f"{NOTEBOOKS['predict']}/{stages[model]}/fold{fold}")
            yield "train", where, Step(name=trained, after=before), own | start
            if is_voter(profile.models[model]):
                yield "predict", {"predict": profile.predict}, Step(name=predict, after=[trained]), own
                predicted.append(predict)
            if profile.instances is not None:
                step = Step(name=f"{NOTEBOOKS['instances']}/{model}/fold{fold}", after=[trained])
                yield "instances", {"instances": profile.instances}, step, own
        for model, section in profile.yolo.items():
            predicted.append(f"{NOTEBOOKS['yolo']}/{model}/fold{fold}")
            yield "yolo", {f"yolo.{model}": section}, Step(name=predicted[-1]), common | {"model": model, "fold": fold}
    if predicted:
        voters = [m for m in profile.all_models if m not in stages and is_voter(profile.models.get(m, {}))]
        own = common | submission | {"models": voters, "missing": {}}
        yield "ensemble", {"ensemble": profile.ensemble}, Step(name=NOTEBOOKS["ensemble"], after=predicted), own
        if profile.analysis is not None:
            step = Step(name=NOTEBOOKS["analysis"], after=[NOTEBOOKS["ensemble"]])
            yield "analysis", {"analysis": profile.analysis}, step, common


def _structure(error: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        return f"{place}: {error['msg']}, found {error['input']!r}"
    names = Sample.model_fields if error["loc"][0] == "sample" else Profile.model_fields
    return unknown("key", place, [".".join([*map(str, error["loc"][:-1]), name]) for name in names])
