"""Recipes: YAML, checked as a whole, to one fixed flow: fit, read, sweep, calibrate, save, track."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from sklearn.utils import Bunch

from steerkit.calibration import Calibration, calibrate
from steerkit.datasets import EXPERTISE, load_contrast, load_expertise
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import NothingSteersError, OutputExistsError, RecipeError
from steerkit.language_model import LanguageModel
from steerkit.metrics import EffectReader
from steerkit.steered import SteeredModel
from steerkit.sweeps import ALPHAS, Sweep, sweep
from steerkit.vectors import new_folder


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(_Section):
    """Which model, as in `LanguageModel`."""

    name: str = "builtin:tutor"
    revision: str | None = None
    dtype: Literal["auto", "float32", "float16", "bfloat16", "float64"] = "auto"
    device: str | None = None
    chat: bool | Literal["auto"] = "auto"
    blocks: str | None = None


class DataSection(_Section):
    """Contrast sets: ``expertise:train`` and its siblings, or paths beside the recipe."""

    train: str = "expertise:train"
    test: str = "expertise:test"


class EstimatorSection(_Section):
    """As in `SteeringEstimator`."""

    learner: Literal["probe", "mean-diff"] = "probe"
    layers: list[int] | Literal["all"] = "all"
    layer: int | Literal["auto"] = "auto"
    pooling: Literal["last", "mean"] = "last"
    cv: int = Field(default=5, ge=2)


class SweepSection(_Section):
    """As in `sweep`."""

    prompts: list[str] = Field(min_length=1)
    distractors: list[str] = []
    layers: list[int] | Literal["auto"] = "auto"
    alphas: list[FiniteFloat] = Field(default=list(ALPHAS), min_length=1)
    max_new_tokens: int = Field(default=64, ge=1)
    random_state: int = 0


class Recipe(_Section):
    """Everything a run needs; every key has a default but the name and the prompts to steer."""

    name: str = Field(pattern=r"^[\w-]+$")
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    estimator: EstimatorSection = EstimatorSection()
    sweep: SweepSection
    preservation: float = Field(default=0.9, gt=0, le=1)
    show: str = "What is a neutron star?"
    track: bool = True


def load_recipe(path: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; ``settings`` are ``dotted.key=value`` changes to it, their values in YAML.

    Raises
    ------
    RecipeError
        The file is missing or no YAML, or keys are unknown, missing or of a wrong type; all are named at once.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        changes = [(key.split("."), yaml.safe_load(value)) for key, _, value in (s.partition("=") for s in settings)]
    except FileNotFoundError:
        raise RecipeError(f"{path} does not exist; pass the path of a recipe such as recipes/expertise.yaml.") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise RecipeError(f"{path} is no readable YAML ({' '.join(str(error).split())}); mend it.") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path} holds a {type(content).__name__}, a mapping was expected; start with `name: ...`.")
    for (keys, value), setting in zip(changes, settings, strict=True):
        section = content
        for key in keys[:-1]:
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise RecipeError(f"--set {setting}: {key} is no section of the recipe; see the keys in {path}.")
        if "=" not in setting:
            raise RecipeError(f"--set {setting} has no '='; pass it as key=value, such as sweep.random_state=1.")
        section[keys[-1]] = value
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{path}: {'; '.join(map(_problem, error.errors()))}.") from None
    data = {name: _data_path(path, source) for name, source in recipe.data.model_dump().items()}
    return recipe.model_copy(update={"data": DataSection(**data)})


def _problem(error: Any) -> str:
    """Return one problem of a recipe in words; an unknown key comes with the known ones."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        return f"{where}: {error['msg'][0].lower() + error['msg'][1:]}, got {error['input']!r}"
    section: Any = Recipe
    for part in error["loc"][:-1]:
        section = section.model_fields[part].annotation
    return f"{where} is no key of a recipe; the keys there are {', '.join(section.model_fields)}"


def _data_path(recipe: Path, source: str) -> str:
    name, _, subset = source.partition(":")
    if name == "expertise" and subset in EXPERTISE:
        return source
    path = recipe.parent / source
    if not path.is_file():
        known = ", ".join(f"expertise:{name}" for name in EXPERTISE)
        raise RecipeError(f"{path}, named in {recipe}, does not exist; pass an existing CSV or JSONL file, or {known}.")
    return str(path)


def _load_data(source: str) -> Bunch:
    return load_expertise(subset=source.partition(":")[2]) if source.startswith("expertise:") else load_contrast(source)


@dataclass(frozen=True)
class Run:
    """What a recipe gave."""

    recipe: Recipe
    estimator: SteeringEstimator
    test_scores: NDArray[np.float64]
    words_score: float
    reader: EffectReader
    sweep: Sweep
    calibration: Calibration | None
    refusal: str | None
    shown: tuple[list[float], list[str]]
    output: Path
    run_id: str | None


def run(
    recipe: Recipe, *, output: str | Path, overwrite: bool = False, store: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Run:  # fmt: skip
    """Run a recipe and write ``steered/``, ``sweep/``, ``plots/`` and ``recipe.yaml`` to the folder ``output``.

    Raises
    ------
    OutputExistsError
        ``output`` exists and ``overwrite`` is false; nothing was computed.
    """
    if Path(output).exists() and not overwrite:
        raise OutputExistsError(f"{output} exists; pass --overwrite to replace it, or another --output.")
    train, test = _load_data(recipe.data.train), _load_data(recipe.data.test)
    model = LanguageModel(
        recipe.model.name, revision=recipe.model.revision, dtype=recipe.model.dtype, device=recipe.model.device,
        chat=recipe.model.chat, blocks=recipe.model.blocks,
    )  # fmt: skip
    say(f"Fitting a direction at every layer of {recipe.model.name} to {train.DESCR}")
    estimator = SteeringEstimator(model, **recipe.estimator.model_dump())
    estimator.fit(train.data, train.target, groups=train.groups)
    test_scores = estimator.layer_scores(test.data, test.target)
    say(f"Reading what it answers to {test.DESCR}")
    reader = EffectReader(model, max_new_tokens=recipe.sweep.max_new_tokens).fit(test.data, test.target, test.groups)
    say("Steering")
    swept = sweep(estimator, reader=reader, progress=True, **recipe.sweep.model_dump())
    calibration, refusal = None, None
    try:
        calibration = calibrate(swept, preservation=recipe.preservation)
    except NothingSteersError as error:
        refusal = str(error)
    with new_folder(output, overwrite=overwrite) as folder:
        swept.save(folder / "sweep")
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(), sort_keys=False), encoding="utf-8")
        figures = {}
        if calibration is not None:
            from steerkit.plots import figures as draw

            figures = draw(estimator, swept, calibration)
            (folder / "plots").mkdir()
            for name, figure in figures.items():
                figure.savefig(folder / "plots" / f"{name}.png")
        steered = _steered(estimator, calibration)
        steered.save_pretrained(folder / "steered")
        shown = _show(steered, calibration, recipe)
        run_id = None
        if recipe.track:
            from steerkit.tracking import log_run

            say("Logging to MLflow")
            run_id = log_run(
                recipe.name, parameters=_flat(recipe), estimator=estimator, test_scores=test_scores, sweep=swept,
                calibration=calibration, figures=figures, steered=folder / "steered", uri=store,
            )  # fmt: skip
    words = words_baseline(train, test)
    return Run(recipe, estimator, test_scores, words, reader, swept, calibration, refusal, shown, Path(output), run_id)


def words_baseline(train: Bunch, test: Bunch) -> float:
    """Return the test accuracy of a logistic regression on bags of words: what a probe must beat to have read more."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    pipeline = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))
    return float(pipeline.fit(train.data, train.target).score(test.data, test.target))


def _steered(estimator: SteeringEstimator, calibration: Calibration | None) -> SteeredModel:
    """Return the model to save: at the calibrated layer, at the upper usable alpha; unsteered where nothing steers."""
    if calibration is None:
        return estimator.export(0.0)
    return estimator.export(calibration.alphas[1], layer=calibration.layer)


def _show(steered: SteeredModel, calibration: Calibration | None, recipe: Recipe) -> tuple[list[float], list[str]]:
    """Answer one question at seven alphas, from one collapse over the usable range to the other."""
    largest = max(map(abs, recipe.sweep.alphas))
    lower, upper = calibration.alphas if calibration else (-largest / 2, largest / 2)
    ends = [lower or -largest / 2, upper or largest / 2]
    collapse = [2 * ends[0], 2 * ends[1]]
    if calibration:
        row = calibration.layers.loc[calibration.layer]
        seen = [row["collapse_lower"], row["collapse_upper"]]
        collapse = [s if np.isfinite(s) else c for s, c in zip(seen, collapse, strict=True)]
    alphas = [collapse[0], ends[0], ends[0] / 2, 0.0, ends[1] / 2, ends[1], collapse[1]]
    alphas = [round(float(alpha), 4) for alpha in alphas]
    answers = steered.generate([recipe.show] * len(alphas), alpha=alphas, max_new_tokens=recipe.sweep.max_new_tokens)
    return alphas, list(answers)


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Return the parameters of a recipe under dotted names, its prompts counted."""
    flat: dict[str, Any] = {}
    for name, value in recipe.model_dump().items():
        if not isinstance(value, dict):
            flat[name] = value
            continue
        for key, inner in value.items():
            counted = key in ("prompts", "distractors")
            flat[f"{name}.n_{key}" if counted else f"{name}.{key}"] = len(inner) if counted else inner
    return flat
