"""The one flow of every recipe: fit, read, sweep, calibrate, save, show, track."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from sklearn.utils import Bunch

from steerkit.activations import resolve_layers
from steerkit.calibration import Calibration, calibrate
from steerkit.datasets import bag_of_words_accuracy, expertise_path, load_contrast
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import NothingSteersError
from steerkit.language_model import LanguageModel
from steerkit.plots import check_drawable, figures
from steerkit.reading import EffectReader
from steerkit.recipe import Recipe
from steerkit.steered import SteeredModel
from steerkit.sweep_results import Sweep
from steerkit.sweeps import sweep
from steerkit.tracking import check_installed, log_run
from steerkit.vectors import new_folder

RECIPE = "recipe.yaml"


def _load_data(source: str, labels: Sequence[str]) -> Bunch:
    name, _, subset = source.partition(":")
    return load_contrast(expertise_path(subset) if name == "expertise" else source, labels=labels)


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

    Until then the finished cells are kept beside it, in ``.<output>.cells``, from where a run that was broken off goes
    on.

    Raises
    ------
    OutputExistsError
        ``output`` exists and ``overwrite`` is false, or it is no output of a run; nothing was computed.
    """
    if recipe.track:
        check_installed()
    check_drawable()
    train, test = (_load_data(source, recipe.data.labels) for source in (recipe.data.train, recipe.data.test))
    cells = Path(output).with_name(f".{Path(output).name}.cells")
    with new_folder(output, overwrite=overwrite, holds=RECIPE) as folder:
        options = recipe.model.model_dump()
        model = LanguageModel(options.pop("name"), **options)
        if recipe.sweep.layers != "auto":
            resolve_layers(model, recipe.sweep.layers)
        say(f"Fitting a direction at every layer of {recipe.model.name} to {train.DESCR}")
        estimator = SteeringEstimator(model, **recipe.estimator.model_dump())
        estimator.fit(train.data, train.target, groups=train.groups)
        test_scores = estimator.layer_scores(test.data, test.target)
        say(f"Reading what it answers to {test.DESCR}")
        reader = EffectReader(model, max_new_tokens=recipe.sweep.max_new_tokens)
        reader.fit(test.data, test.target, test.groups)
        say("Steering")
        swept = sweep(estimator, reader=reader, progress=True, resume=cells, **recipe.sweep.model_dump())
        calibration, refusal = None, None
        try:
            calibration = calibrate(swept, **recipe.calibration.model_dump())
        except NothingSteersError as error:
            refusal = str(error)
        steered = _steered(estimator, calibration)
        shown = _show(steered, calibration, recipe, max(map(abs, swept.alphas)))
        drawn = figures(estimator, swept, calibration) if calibration is not None else {}
        swept.save(folder / "sweep")
        steered.save_pretrained(folder / "steered")
        (folder / RECIPE).write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
        for name, figure in drawn.items():
            (folder / "plots").mkdir(exist_ok=True)
            figure.savefig(folder / "plots" / f"{name}.png")
    run_id = None
    if recipe.track:
        say("Logging to MLflow")
        try:
            run_id = log_run(
                recipe.name, parameters=_flat(recipe), estimator=estimator, test_scores=test_scores, sweep=swept,
                calibration=calibration, figures=drawn, steered=Path(output, "steered"), uri=store,
            )  # fmt: skip
        except Exception as error:  # a store that is full or gone must not cost the run, which is on disk by now
            say(f"Not logged to MLflow ({type(error).__name__}: {error}); the results are in {output}.")
    shutil.rmtree(cells)
    words = bag_of_words_accuracy(train, test)
    return Run(recipe, estimator, test_scores, words, reader, swept, calibration, refusal, shown, Path(output), run_id)


def _steered(estimator: SteeringEstimator, calibration: Calibration | None) -> SteeredModel:
    """Return the model to save: at the calibrated layer, at the upper usable alpha; unsteered where nothing steers."""
    if calibration is None:
        return estimator.export(0.0)
    return estimator.export(calibration=calibration)


def _show(
    steered: SteeredModel, calibration: Calibration | None, recipe: Recipe, largest: float
) -> tuple[list[float], list[str]]:
    """Answer one question at seven alphas, from one collapse over the usable range to the other."""
    lower, upper = calibration.alphas if calibration else (-largest / 2, largest / 2)
    ends = [lower or -largest / 2, upper or largest / 2]
    collapse = [2 * ends[0], 2 * ends[1]]
    if calibration:
        row = calibration.layers.loc[calibration.layer]
        seen = [row["collapse_lower"], row["collapse_upper"]]
        beyond = [np.isfinite(s) and abs(s) > abs(end) for s, end in zip(seen, ends, strict=True)]
        collapse = [s if use else c for s, c, use in zip(seen, collapse, beyond, strict=True)]
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
