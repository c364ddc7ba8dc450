"""`sweep`: steer at layers × alphas × prompts, beside controls, measure every answer, and go on after a break."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from steerkit.bracketing import bracketed_alphas
from steerkit.cell_runner import run_cells
from steerkit.cell_store import CellStore
from steerkit.cells import Bench, Cell
from steerkit.checks import check_count
from steerkit.controls import check_alphas, control_directions, steered_layers
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import InvalidInputError, NotFittedError
from steerkit.language_model import LanguageModel
from steerkit.metrics import Metric, as_metrics
from steerkit.observed import observable
from steerkit.prompts import Prompt, check_prompts
from steerkit.reading import EffectReader
from steerkit.sweep_results import Sweep, measured_cells

STEERING = "steering"
SCOUTS = 4
"""Prompts by which the alphas are found where none are given."""


@observable
def sweep(
    estimator: SteeringEstimator,
    prompts: Sequence[Prompt],
    *,
    reader: EffectReader,
    layers: Any = "auto",
    alphas: Sequence[float] | None = None,
    distractors: Sequence[Prompt] = (),
    controls: Sequence[str] = ("random",),
    directions: Mapping[str, ArrayLike] | None = None,
    prompting: Mapping[str, str] | None = None,
    metrics: Sequence[Metric | Callable[[Any, str], float]] = (),
    random_state: int = 0,
    max_new_tokens: int = 64,
    batch_rows: int = 64,
    resume: str | Path | None = None,
    n_jobs: int | None = None,
    progress: bool = False,
    **generation: Any,
) -> Sweep:
    """Steer at every layer × alpha × prompt and measure the answers.

    Each row of a batch has its own layer, alpha and direction. Unsteered answers are generated once.

    Parameters
    ----------
    estimator : fitted SteeringEstimator
    prompts : sequence of str
        Questions that say nothing of either class.
    reader : fitted EffectReader
        Fitted on other prompts than the estimator.
    layers : "auto", int or list of int
        ``"auto"``: all layers that have a direction.
    alphas : sequence of float, optional
        Fractions of the layer's norm; 0 is always measured besides. Default: from where next to nothing happens to
        where the answers to a few of the prompts have collapsed at all layers, found by doubling.
    distractors : sequence of str
        More questions from which `question_likelihoods` has to tell the true one.
    controls : sequence of {"random", "shuffled"}
        Directions to compare with, of equal norm at the same layers and alphas: a random one for each layer and
        prompt, which `calibrate` needs; what the learner finds when the labels are shuffled. May be empty.
    directions : dict of array, optional
        More directions to compare with, by name: ``(hidden size,)``, or one for each steered layer, ascending. They are
        brought to the fitted direction's norm.
    prompting : dict of str, optional
        The prompting baseline: a name, such as that of a class, and what is asked instead of each prompt, such as
        ``"Explain in simple words: {prompt}"``. The cells have the direction ``"prompted <name>"``.
    metrics : sequence of Metric or function
        What to measure besides `METRICS`, as in `Sweep.measure`.
    random_state : int
        Of the random directions, and of sampled answers (``do_sample=True``, ``temperature=...``): each prompt has its
        own stream of chance, the same at every layer and alpha, however the rows are batched.
    batch_rows : int
        Most answers generated at once.
    resume : str or Path, optional
        Folder in which finished cells are kept. A sweep with the same folder, after a kill or with more layers or
        alphas, computes only what is missing. Several sweeps may share it, also at the same time.
    n_jobs : int, optional
        Batches at a time, in processes of joblib's backend; each loads the model once. A killed worker costs its
        batch. Inside ``joblib.parallel_config("dask")`` the batches run on a Dask cluster.
    progress : bool
        Show a progress bar.
    **generation
        As in ``transformers``' ``generate``.

    Raises
    ------
    InvalidInputError, NotFittedError, NonFiniteError
        Before any work is done.
    StoreError
        The folder ``resume`` cannot be written; what was finished is kept.
    """
    steered = steered_layers(estimator, layers)
    if not hasattr(reader, "layer_"):
        raise NotFittedError("the reader is not fitted; call its fit with prompts that the direction has not seen.")
    if "num_return_sequences" in generation:
        raise InvalidInputError("num_return_sequences is not supported, a cell is one answer; sweep again with a seed.")
    model = LanguageModel.of(estimator.model)
    checked, others = check_prompts(prompts), check_prompts(distractors)
    if len(set(map(str, [*checked, *others]))) < 2 or len(set(map(str, checked))) < len(checked):
        raise InvalidInputError(
            f"{len(checked)} prompts and {len(others)} distractors came, no prompt twice and at least two different "
            "questions in all were expected; preservation is told by finding the question among others."
        )
    wordings, extra = _check_prompting(prompting or {}, checked), as_metrics(metrics)
    check_count("random_state", random_state, least=0)
    steps = control_directions(estimator, steered, controls, checked, int(random_state), directions or {})
    generation = {"max_new_tokens": max_new_tokens, **generation}
    bench = Bench(model, reader, checked, others, generation, int(random_state))
    given = None if alphas is None else check_alphas(alphas)
    settings = {
        "model": model.name,
        "fingerprint": model.fingerprint.to_dict(),
        "random_state": int(random_state),
        "generation": generation,
        "distractors": len(others),
        "prompting": wordings,
        "reader_accuracy": reader.accuracy_,
        "reader_layer": reader.layer_,
    }

    def measured(strengths: Sequence[float], kinds: Iterable[str], places: Sequence[int], task: str) -> Sweep:
        cells = [Cell("unsteered", -1, 0.0, place) for place in places]
        cells += [
            Cell(kind, layer, alpha, place, alpha * steps[kind](layer, place))
            for kind in kinds for layer in steered for alpha in strengths for place in places
        ]  # fmt: skip
        if task == STEERING:
            asked = [(name, text, place) for name, text in wordings.items() for place in places]
            cells += [Cell(f"prompted {name}", -1, 0.0, place, None, text) for name, text, place in asked]
        contents = run_cells(bench, cells, batch_rows, store, n_jobs, task if progress else None)
        return Sweep(measured_cells(cells, contents, checked), settings)

    places = range(len(checked))
    scouts = places[:: -(-len(places) // SCOUTS)]
    with TemporaryDirectory() as scratch:
        # Without a folder of the caller's, what is measured while alphas are looked for is kept for the sweep.
        store = CellStore(resume or scratch) if resume or given is None else None
        found = given or bracketed_alphas(lambda a: measured([-a, a], ["fitted"], scouts, "looking for alphas"))
        return _measured_further(measured(found, steps, places, STEERING), extra)


def _measured_further(swept: Sweep, metrics: Sequence[Metric]) -> Sweep:
    """Return the sweep with more metrics; one that fails costs its own column, not the answers."""
    for metric in metrics:
        try:
            swept = swept.measure(metric)
        except Exception as error:  # whatever a function of the caller's may raise
            warnings.warn(
                f"metric {metric.name!r} failed ({type(error).__name__}: {error}), so its column is empty; mend it and "
                "call measure on the sweep.",
                stacklevel=4,
            )
            swept = Sweep(swept.cells.assign(**{metric.name: np.nan}), swept.settings)
    return swept


def _check_prompting(prompting: Mapping[str, str], prompts: Sequence[Prompt]) -> dict[str, str]:
    for name, text in prompting.items():
        if "{prompt}" not in str(text):
            raise InvalidInputError(
                f"prompting[{name!r}]={text!r} lacks {{prompt}}, where the prompt is to stand; put it in."
            )
    if prompting and not all(isinstance(prompt, str) for prompt in prompts):
        raise InvalidInputError("prompting rewords prompts that are texts, lists of messages came; pass strings.")
    return dict(prompting)
