"""The one flow of every recipe: fit, read, sweep, calibrate, save, show, track."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from sklearn.utils import Bunch

from steerkit.activations import resolve_layers
from steerkit.calibration import Calibration, calibrate
from steerkit.card import Card
from steerkit.datasets import bag_of_words_accuracy, expertise_path, load_contrast
from steerkit.divergence import sweep_divergence
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import NothingSteersError, RecipeError
from steerkit.language_model import LanguageModel
from steerkit.mlflow_requests import layer_vectors
from steerkit.mlflow_store import HOW, autologging_paused, is_installed
from steerkit.neighbourhood import Neighbourhood, neighbourhood
from steerkit.plots import check_drawable, figures, plot_neighbourhood, plot_references
from steerkit.reading import EffectReader
from steerkit.recipe import Recipe
from steerkit.references import sweep_references
from steerkit.reliability import LIMITS, controls_section, reading_section, side_effects_section
from steerkit.report import answers_page
from steerkit.steered import SteeredModel
from steerkit.sweep_results import Sweep
from steerkit.sweeps import sweep
from steerkit.tracking import log_calibration, log_estimator, log_figures, log_steered, log_sweep, open_run
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

    Where the recipe has references, ``references.csv`` holds their likelihood ratios (see `sweep_references`). Until
    all is written the finished cells are kept beside the folder, in ``.<output>.cells``, from where a run that was
    broken off goes on.

    Raises
    ------
    OutputExistsError
        ``output`` exists and ``overwrite`` is false, or it is no output of a run; nothing was computed.
    """
    check_drawable()
    train, test = (_load_data(source, recipe.data.labels) for source in (recipe.data.train, recipe.data.test))
    cells = Path(output).with_name(f".{Path(output).name}.cells")
    with autologging_paused(), new_folder(output, overwrite=overwrite, holds=RECIPE) as folder:
        estimator, reader = _fit(recipe, train, test, say)
        test_scores = estimator.layer_scores(test.data, test.target)
        say("Steering")
        swept = sweep(estimator, reader=reader, progress=True, resume=cells, **recipe.sweep.model_dump())
        calibration, refusal = None, None
        try:
            calibration = calibrate(swept, **recipe.calibration.model_dump())
        except NothingSteersError as error:
            refusal = str(error)
        words = bag_of_words_accuracy(train, test)
        steered = _steered(estimator, calibration, recipe.data.labels)
        steered.card = _card(steered, estimator, swept, calibration, (test_scores, words, reader))
        shown = _show(steered, calibration, recipe, max(map(abs, swept.alphas)))
        drawn = figures(estimator, swept, calibration) if calibration is not None else {}
        if (ratios := _ratios(recipe, estimator, swept)) is not None:
            ratios.to_csv(folder / "references.csv", index=False)
            drawn["references"] = plot_references(ratios, recipe.data.labels, calibration)
        swept.save(folder / "sweep")
        page = answers_page(swept, swept.layers[0] if calibration is None else calibration.layer)
        (folder / "answers.html").write_text(page, encoding="utf-8")
        steered.save_pretrained(folder / "steered")
        (folder / RECIPE).write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
        for name, figure in drawn.items():
            (folder / "plots").mkdir(exist_ok=True)
            figure.savefig(folder / "plots" / f"{name}.png")
    run_id = None
    if not recipe.track:
        say("Not tracked; pass --set track=true to log the run to MLflow.")
    elif not is_installed():
        say(f"Not tracked, as MLflow is not installed; {HOW} to log the run.")
    else:
        say("Logging to MLflow")
        try:
            run_id = _track(recipe, store, (train, test), (estimator, test_scores, swept, calibration), drawn, steered)
        except Exception as error:  # a store that is full or gone must not cost the run, which is on disk by now
            say(f"Not logged to MLflow ({type(error).__name__}: {error}); the results are in {output}.")
    shutil.rmtree(cells)
    return Run(recipe, estimator, test_scores, words, reader, swept, calibration, refusal, shown, Path(output), run_id)


def run_neighbourhood(
    recipe: Recipe, *, ran: str | Path, output: str | Path, overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Neighbourhood:  # fmt: skip
    """Turn the direction that a run recommends, and write ``neighbourhood.csv`` and ``neighbourhood.png`` to a folder.

    Raises
    ------
    RecipeError
        ``ran`` is not the output of this recipe.
    NothingSteersError
        The run recommended nothing.
    """
    check_drawable()
    written = Path(ran, RECIPE)
    if not written.is_file() or yaml.safe_load(written.read_text(encoding="utf-8")) != recipe.model_dump(mode="json"):
        raise RecipeError(
            f"{ran} is no output of this recipe with these settings; run it first (steerkit run RECIPE), or pass the "
            "folder of its output."
        )
    swept = Sweep.load(Path(ran, "sweep"))
    found = calibrate(swept, **recipe.calibration.model_dump())
    train, test = (_load_data(source, recipe.data.labels) for source in (recipe.data.train, recipe.data.test))
    with new_folder(output, overwrite=overwrite, holds="neighbourhood.csv") as folder:
        estimator, reader = _fit(recipe, train, test, say)
        say(f"Turning the direction at layer {found.layer}")
        options = recipe.sweep.model_dump(include={"distractors", "max_new_tokens", "random_state", "n_jobs"})
        near = neighbourhood(
            estimator, recipe.sweep.prompts, reader=reader, layer=found.layer, alphas=found.alphas, data=train.data,
            target=train.target, progress=True, **options,
        )  # fmt: skip
        near.table.to_csv(folder / "neighbourhood.csv", index=False)
        plot_neighbourhood(near).savefig(folder / "neighbourhood.png")
    return near


def _fit(
    recipe: Recipe, train: Bunch, test: Bunch, say: Callable[[str], None]
) -> tuple[SteeringEstimator, EffectReader]:
    """Return the estimator of a recipe, and the reader of its effects."""
    options = recipe.model.model_dump()
    model = LanguageModel(options.pop("name"), **options)
    if recipe.sweep.layers != "auto":
        resolve_layers(model, recipe.sweep.layers)
    say(f"Fitting a direction at every layer of {recipe.model.name} to {train.DESCR}")
    estimator = SteeringEstimator(model, **recipe.estimator.model_dump())
    estimator.fit(train.data, train.target, groups=train.groups)
    say(f"Reading what it answers to {test.DESCR}")
    reader = EffectReader(model, max_new_tokens=recipe.sweep.max_new_tokens)
    return estimator, reader.fit(test.data, test.target, test.groups)


def _ratios(recipe: Recipe, estimator: SteeringEstimator, swept: Sweep) -> pd.DataFrame | None:
    """Return what the cells of a sweep do to the likelihood of the recipe's references; None where it has none."""
    prompts = [prompt for prompt in recipe.sweep.prompts if prompt in recipe.references]
    if not prompts:
        return None
    answers = [[recipe.references[prompt][label] for prompt in prompts] for label in recipe.data.labels]
    return sweep_references(
        estimator, prompts, dict(zip(estimator.classes_, answers, strict=True)), alphas=swept.alphas,
        layers=swept.layers, random_state=recipe.sweep.random_state,
    )  # fmt: skip


def _card(
    steered: SteeredModel, estimator: SteeringEstimator, swept: Sweep, calibration: Calibration | None,
    read: tuple[NDArray[np.float64], float, EffectReader],
) -> Card:  # fmt: skip
    """Return the card of a run: what the export knows, and what the sweep and given text showed."""
    card = steered.card or Card("")
    scores, words, reader = read
    layer = steered.vectors[0].layer
    sections = [*card.sections, reading_section(float(scores[estimator.layers_.index(layer)]), words, reader.accuracy_)]
    if calibration is not None:
        bare = swept.cells[(swept.cells["direction"] == "unsteered") & (swept.cells["text"].str.strip() != "")]
        said = list(zip(bare["prompt"], bare["text"], strict=True))
        moved = sweep_divergence(estimator, said, alphas=calibration.alphas, layers=[layer])
        sections += [controls_section(swept, calibration), side_effects_section(moved, "the unsteered answers")]
    return Card(card.title, [*sections, LIMITS])


def _steered(estimator: SteeringEstimator, calibration: Calibration | None, labels: Sequence[str]) -> SteeredModel:
    """Return the model to save: at the calibrated layer, at the upper usable alpha; unsteered where nothing steers."""
    if calibration is None:
        return estimator.export(0.0, classes=labels)
    return estimator.export(calibration=calibration, classes=labels)


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


def _track(
    recipe: Recipe, store: str | None, data: tuple[Bunch, Bunch],
    found: tuple[SteeringEstimator, NDArray[np.float64], Sweep, Calibration | None], drawn: Mapping[str, Any],
    steered: SteeredModel,
) -> str:  # fmt: skip
    """Log a run to the experiment of its recipe's name; return its id in MLflow."""
    estimator, test_scores, swept, calibration = found
    train, test = data
    title = f"{recipe.model.name} {recipe.estimator.learner}"
    with open_run(uri=store, name=recipe.name, title=title) as (mlflow, run_id):
        mlflow.log_dict(recipe.model_dump(mode="json"), RECIPE)
        mlflow.log_params(recipe.calibration.model_dump())  # even where nothing steers, or they would seem to differ
        if calibration is not None:  # first, as the page that compares runs shows the first metric
            log_calibration(calibration)
        log_estimator(estimator, train=train, test=test, test_scores=test_scores)
        log_sweep(swept)
        log_figures(drawn)
        log_steered(steered, vectors=layer_vectors(estimator))
    return run_id
