"""Requests to a served steered model: prompts in any of MLflow's shapes, parameters checked, answered one at a time."""

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from numbers import Integral, Real
from typing import Any

import pandas as pd

from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import ContrastSetError, InvalidInputError, LayerError, SteerkitError
from steerkit.mlflow_prompts import PARAMS, PROMPT, prompts_of
from steerkit.steered import SteeredModel
from steerkit.vectors import SteeringVector

COLDEST = 1e-9
"""The smallest temperature, by which the scores of words are divided."""


class Served:
    """A steered model behind MLflow's ``predict``.

    Parameters
    ----------
    steered : SteeredModel
    vectors : sequence of SteeringVector
        The directions at other layers, for requests with a ``layer``.
    """

    def __init__(self, steered: SteeredModel, vectors: Sequence[SteeringVector] = ()) -> None:
        self.steered = steered
        self._at_layer: dict[int, SteeredModel] = {}
        if len(steered.vectors) == 1:
            alpha = single(steered.alpha)
            self._at_layer = {
                vector.layer: SteeredModel(
                    steered.model, vector, alpha={} if alpha is None else alpha, operation=steered.operation
                )
                for vector in vectors
            } | {steered.vectors[0].layer: steered}

    def get_raw_model(self) -> SteeredModel:
        """Return the steered model itself, as MLflow's ``unwrap`` functions expect."""
        return self.steered

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[str]:
        """Return one answer per prompt."""
        prompts, options = prompts_of(model_input), self.options(params)
        steered = self._layer(options.pop("layer", None))
        with steered.model.held():  # one request at a time, from the tokenizer to the text: nothing is shared
            return list(steered.generate(prompts, **options))

    def options(self, params: object) -> dict[str, Any]:
        """Return the parameters of a request, or raise `InvalidInputError` if this model has none of the name or value.

        Where several directions are steered, one alpha is meant for each; where one is, the dict of its name is a
        number.
        """
        options = check_params(params)
        self._layer(options.get("layer"))
        if "alpha" in options:
            alpha = options["alpha"]
            self.steered._alphas(alpha, 1)
            if len(self.steered.vectors) > 1 and not isinstance(alpha, dict):
                options["alpha"] = {vector.classes[1]: alpha for vector in self.steered.vectors}
            elif len(self.steered.vectors) == 1 and (number := single(alpha)) is None:
                name = self.steered.vectors[0].classes[1]
                raise InvalidInputError(f"alpha={{}} names no strength; pass a number, or {{{name!r}: 0.07}}.")
            elif len(self.steered.vectors) == 1:
                options["alpha"] = number
        return options

    def _layer(self, layer: int | None) -> SteeredModel:
        if layer is None:
            return self.steered
        if layer not in self._at_layer:
            known = ", ".join(map(str, sorted(self._at_layer))) or "none: it has several directions"
            raise LayerError(f"layer={layer!r} has no direction in this model; pass one of its layers ({known}).")
        return self._at_layer[layer]


def single(alpha: Any) -> float | None:
    """Return the strength of a single direction as a number; None for a dict that leaves it out."""
    return next(iter(alpha.values()), None) if isinstance(alpha, dict) else alpha


def check_params(params: object) -> dict[str, Any]:
    """Return the parameters that were given, or raise `InvalidInputError` for unknown ones and wrong types."""
    if params is None:
        return {}
    if not isinstance(params, Mapping):
        raise InvalidInputError(
            f"params is a {type(params).__name__}, an object was expected; pass {{'alpha': 0.07}} or the like."
        )
    if unknown := [str(name) for name in params if name not in CHECKS]:
        raise InvalidInputError(
            f"{', '.join(map(repr, unknown))} is no parameter of this model; pass some of {', '.join(CHECKS)}."
        )
    return {str(name): CHECKS[name](name, value) for name, value in params.items() if value is not None}


def _number(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    except OverflowError:  # a whole number that no float holds
        number = math.inf
    if not math.isfinite(number):
        raise InvalidInputError(
            f"{name}={reprlib.repr(value)} is a {type(value).__name__}, a finite number was expected; pass one such "
            "as 0.07."
        )
    return number


def _strength(name: str, value: Any) -> Any:
    return {key: _number(name, inner) for key, inner in value.items()} if isinstance(value, dict) else _number(
        name, value
    )  # fmt: skip


def _temperature(name: str, value: Any) -> float:
    if (number := _number(name, value)) < 0:
        raise InvalidInputError(f"{name}={value!r} is below 0; pass 0 for the likeliest answer, or more to sample.")
    if 0 < number < COLDEST:
        raise InvalidInputError(
            f"{name}={value!r} is too small to divide by; pass 0 for the likeliest answer, or at least {COLDEST:g}."
        )
    return number


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not (isinstance(value, Integral) or (isinstance(value, float) and value % 1 == 0)):
        raise InvalidInputError(
            f"{name}={value!r} is a {type(value).__name__}, a whole number was expected; pass one such as 8."
        )
    return int(value)


CHECKS: dict[str, Callable[[str, Any], Any]] = dict(zip(PARAMS, (_strength, _whole, _temperature, _whole), strict=True))


def layer_vectors(estimator: SteeringEstimator) -> list[SteeringVector]:
    """Return the directions of an estimator at all layers that have one; none with more than two classes."""
    found = []
    for layer in estimator.layers_ if estimator.directions_.ndim == 2 else []:
        try:
            found.append(estimator.vector(layer))
        except ContrastSetError:  # nothing parts the classes at this layer
            continue
    return found


def check_requests(pyfunc_model: Any, mlflow_exception: Any) -> None:
    """Let MLflow hand requests to our models unchanged, and answer the bad ones with our sentence and status 400.

    MLflow drops parameters that it does not know with a warning only, in the server's log; whoever misspells ``alpha``
    would get an answer of the default strength. And any error that is not MLflow's own becomes a traceback.
    """
    original = pyfunc_model.predict
    if hasattr(original, "of_steerkit"):
        return

    @wraps(original)
    def predict(self: Any, data: Any, params: Any = None) -> Any:
        if not isinstance(self._model_impl, Served):
            return original(self, data, params)
        try:
            table = pd.DataFrame({PROMPT: pd.Series(prompts_of(data), dtype=object)})
            return original(self, table, self._model_impl.options(params))
        except (SteerkitError, TypeError) as error:
            raise mlflow_exception.invalid_parameter_value(str(error)) from error

    predict.of_steerkit = True  # type: ignore[attr-defined]
    pyfunc_model.predict = predict
