"""Recipes: YAML, checked as a whole, with every problem named at once. `experiment` runs them."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from steerkit.datasets import EXPERTISE
from steerkit.exceptions import RecipeError

LONGEST_PART = 24


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("text is empty")
    return text


def _distinct(texts: list[str]) -> list[str]:
    if len(set(texts)) < len(texts):
        raise ValueError("a prompt occurs twice")
    return texts


Text = Annotated[str, AfterValidator(_filled)]


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
    labels: tuple[str, str] = Field(default=("novice", "expert"), description="from, to")


class EstimatorSection(_Section):
    """As in `SteeringEstimator`."""

    learner: Literal["probe", "mean-diff", "mass-mean", "pca", "sparse-probe"] = "probe"
    layers: list[int] | Literal["all"] = "all"
    layer: int | Literal["auto"] = "auto"
    pooling: int | Annotated[str, Field(pattern=r"^(mean|last(-[1-9]\d*)?)$")] = "last"
    cv: int = Field(default=5, ge=2)
    n_bootstrap: int = Field(default=0, ge=0)


class SweepSection(_Section):
    """As in `sweep`."""

    prompts: Annotated[list[Text], AfterValidator(_distinct)] = Field(min_length=2)
    distractors: list[Text] = []
    layers: list[int] | Literal["auto"] = "auto"
    alphas: Annotated[list[FiniteFloat], Field(min_length=1)] | None = None
    controls: list[Literal["random", "shuffled"]] = ["random"]
    prompting: dict[str, Text] = {}
    max_new_tokens: int = Field(default=64, ge=1)
    random_state: int = 0
    n_jobs: int | None = None


class CalibrationSection(_Section):
    """As in `calibrate`."""

    preservation: float = Field(default=0.9, gt=0, le=1)
    perplexity: float = Field(default=2.0, gt=1)


class Recipe(_Section):
    """Everything a run needs; every key has a default but the name and the prompts to steer."""

    name: str = Field(pattern=r"^[\w-]+$")
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    estimator: EstimatorSection = EstimatorSection()
    sweep: SweepSection
    calibration: CalibrationSection = CalibrationSection()
    references: dict[Text, dict[str, Text]] = Field(
        default={}, description="by prompt, an answer of either label; those of prompts that are not swept are left out"
    )
    show: Text = "What is a neutron star?"
    track: bool = True

    @field_validator("references")
    @classmethod
    def _check_references(
        cls, references: dict[str, dict[str, str]], others: ValidationInfo
    ) -> dict[str, dict[str, str]]:
        labels = list(others.data["data"].labels) if "data" in others.data else []  # else data has a problem of its own
        for prompt, answers in references.items():
            if labels and set(answers) != set(labels):
                raise ValueError(f"references of {prompt!r} are for {list(answers)}, for {labels} were expected")
        return references


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
    data = {name: _data_path(path, getattr(recipe.data, name)) for name in ("train", "test")}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=data)})


def output_name(recipe: Recipe, settings: Sequence[str] = ()) -> str:
    """Return the name of a run's output folder: the recipe's, with what was changed, so that variants lie side by side.

    ``expertise`` and ``estimator.learner=mean-diff`` give ``expertise-learner-mean-diff``.
    """
    changes = [setting for setting in settings if not setting.startswith(("name=", "track="))]
    said = [change.partition("=")[0].rpartition(".")[2] + "-" + change.partition("=")[2] for change in changes]
    parts = [re.sub(r"-*[^\w.+-]+-*", "-", part).strip("-")[:LONGEST_PART] for part in said]
    if parts != said:  # what names no folder was left out, so two different changes may look alike
        parts.append(hashlib.sha256("\n".join(changes).encode()).hexdigest()[:8])
    return "-".join([recipe.name, *parts])


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
    path = (recipe.parent / source).resolve()
    if not path.is_file():
        known = ", ".join(f"expertise:{name}" for name in EXPERTISE)
        raise RecipeError(f"{path}, named in {recipe}, does not exist; pass an existing CSV or JSONL file, or {known}.")
    return str(path)
