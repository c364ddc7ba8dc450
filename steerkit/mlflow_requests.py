"""Requests to a served steered model: prompts in any of MLflow's shapes, parameters checked, answered one at a time."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from numbers import Integral, Real
from typing import Any

import pandas as pd

from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import ContrastSetError, InvalidInputError, LayerError, PromptError, SteerkitError
from steerkit.prompts import is_conversation
from steerkit.steered import SteeredModel
from steerkit.vectors import SteeringVector

PROMPT = "prompt"
COLUMNS = (PROMPT, "messages", "inputs", "input")
"""Names under which prompts may come, in a column or a key; the last ones are those of OpenAI's bodies."""


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
        self._at_layer = {
            vector.layer: SteeredModel(steered.model, vector, alpha=steered.alpha, operation=steered.operation)
            for vector in vectors
            if not isinstance(steered.alpha, dict)
        }
        if len(steered.vectors) == 1:
            self._at_layer[steered.vectors[0].layer] = steered

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

        Where several directions are steered, one alpha is meant for each.
        """
        options = check_params(params)
        self._layer(options.get("layer"))
        if "alpha" in options:
            self.steered._alphas(options["alpha"], 1)
            if isinstance(self.steered.alpha, dict) and not isinstance(options["alpha"], dict):
                options["alpha"] = {vector.classes[1]: options["alpha"] for vector in self.steered.vectors}
        return options

    def _layer(self, layer: int | None) -> SteeredModel:
        if layer is None:
            return self.steered
        if layer not in self._at_layer:
            known = ", ".join(map(str, sorted(self._at_layer))) or "none: it has several directions"
            raise LayerError(f"layer={layer!r} has no direction in this model; pass one of its layers ({known}).")
        return self._at_layer[layer]


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
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise InvalidInputError(
            f"{name}={value!r} is a {type(value).__name__}, a finite number was expected; pass one such as 0.07."
        )
    return float(value)


def _strength(name: str, value: Any) -> Any:
    return {key: _number(name, inner) for key, inner in value.items()} if isinstance(value, dict) else _number(
        name, value
    )  # fmt: skip


def _temperature(name: str, value: Any) -> float:
    if (number := _number(name, value)) < 0:
        raise InvalidInputError(f"{name}={value!r} is below 0; pass 0 for the likeliest answer, or more to sample.")
    return number


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not (isinstance(value, Integral) or (isinstance(value, float) and value % 1 == 0)):
        raise InvalidInputError(
            f"{name}={value!r} is a {type(value).__name__}, a whole number was expected; pass one such as 8."
        )
    return int(value)


CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "alpha": _strength,
    "max_new_tokens": _whole,
    "temperature": _temperature,
    "layer": _whole,
}


def prompts_of(data: Any) -> list[Any]:
    """Return the prompts of a request: one or many, texts or conversations, in a list, an array, a table or a body.

    Raises
    ------
    PromptError
        It is none of these.
    """
    data = _plain(data)
    if isinstance(data, str) or (is_conversation(data) and all("role" in message for message in data)):
        return [data]
    if isinstance(data, pd.DataFrame):
        column = next((name for name in COLUMNS if name in data), data.columns[0] if data.shape[1] == 1 else None)
        if column is None:
            raise PromptError(
                f"the table has the columns {', '.join(map(repr, data.columns))}, 'prompt' was expected; name the "
                "column of the prompts so."
            )
        return prompts_of(data[column].tolist()) if len(data) else []
    if isinstance(data, Mapping):
        return _of_body(data)
    if not isinstance(data, list | tuple):
        raise PromptError(f"the input is a {type(data).__name__}; pass text, chat messages, or a list of either.")
    records = bool(data) and all(isinstance(record, Mapping) for record in data)
    return [prompt for record in data for prompt in _of_body(record)] if records else list(data)


def _plain(data: Any) -> Any:
    """Return Python's own values: MLflow makes arrays of the lists, and even of the words, of a JSON body."""
    if isinstance(data, list | tuple):
        return [_plain(item) for item in data]
    if isinstance(data, Mapping):
        return {key: _plain(value) for key, value in data.items()}
    return _plain(data.tolist()) if hasattr(data, "tolist") else data


def _of_body(body: Mapping[str, Any]) -> list[Any]:
    """Return the prompts of a JSON object."""
    names = [name for name in COLUMNS if name in body]
    if unknown := [name for name in body if name not in COLUMNS]:
        raise PromptError(
            f"{', '.join(map(repr, unknown))} is neither a prompt nor a parameter; pass 'prompt' or 'messages', and "
            f"some of {', '.join(CHECKS)}."
        )
    if len(names) != 1:
        raise PromptError(f"the input has {len(names)} of the keys {', '.join(COLUMNS)}; pass one of them.")
    return prompts_of(body[names[0]])


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
