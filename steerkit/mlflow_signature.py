"""What a saved steered model says of itself to MLflow: its signature, an example, what the registry shows."""

from typing import Any

from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Object, Property

from steerkit.mlflow_prompts import PROMPT
from steerkit.mlflow_requests import single
from steerkit.steered import SteeredModel


def signature_of(steered: SteeredModel) -> ModelSignature:
    """Return the signature: prompts (text or chat messages) to answers, alpha and its like as parameters.

    The type of a prompt is any, as a column has but one; so the scoring server takes JSON and no CSV.
    """
    alpha: Any = DataType.double
    names = _names(steered)
    if len(steered.vectors) > 1:
        alpha = Object([Property(name, DataType.double, required=False) for name in names])
    layer = steered.vectors[0].layer if len(steered.vectors) == 1 else None
    params = [
        ParamSpec("alpha", alpha, _strength(steered)),
        ParamSpec("max_new_tokens", DataType.long, None),
        ParamSpec("temperature", DataType.double, None),
        ParamSpec("layer", DataType.long, layer),
    ]
    prompts = Schema([ColSpec(AnyType(), PROMPT)])
    return ModelSignature(inputs=prompts, outputs=Schema([ColSpec(DataType.string)]), params=ParamSchema(params))


def example_of(steered: SteeredModel) -> Any:
    """Return a request that shows what to ask and which strengths there are."""
    alpha = _strength(steered)
    if alpha is None or alpha == {}:  # MLflow infers no type of these
        alpha = {_names(steered)[-1]: 0.07} if len(steered.vectors) > 1 else 0.07
    return ["What is a neutron star?"], {"alpha": alpha, "max_new_tokens": 64}


def _strength(steered: SteeredModel) -> Any:
    """Return the default alpha: a number of one direction, by their names of several."""
    if len(steered.vectors) == 1:
        return single(steered.alpha)
    return steered.alpha if isinstance(steered.alpha, dict) else dict.fromkeys(_names(steered), steered.alpha)


def _names(steered: SteeredModel) -> list[str]:
    """Return the names of the strengths; vectors at several layers may share one."""
    return list(dict.fromkeys(vector.classes[1] for vector in steered.vectors))


def metadata_of(steered: SteeredModel) -> dict[str, Any]:
    """Return what the registry shows of a model besides its signature."""
    return {
        "base_model": steered.model.name or type(steered.model.model).__name__,
        "fingerprint": steered.model.fingerprint.to_dict(),
        "layers": [vector.layer for vector in steered.vectors],
        "classes": [list(vector.classes) for vector in steered.vectors],
        "operation": steered.operation,
    }
