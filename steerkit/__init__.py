"""steerkit: find a direction in a language model's residual stream, add it while the model generates, measure."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "ActivationExtractor": "activations",
    "Calibration": "calibration",
    "EffectReader": "reading",
    "Judge": "judges",
    "LanguageModel": "language_model",
    "LayerwiseDirections": "layerwise",
    "LogisticProbe": "logistic_probe",
    "MassMean": "learners",
    "MeanDifference": "learners",
    "Metric": "metrics",
    "OptimisedDirection": "optimised_direction",
    "PrincipalDifference": "learners",
    "Similarity": "similarity",
    "SparseAutoencoder": "sparse_autoencoder",
    "SparseFeatures": "sparse_features",
    "SparseProbe": "sparse_probe",
    "SteeredModel": "steered",
    "SteeringEstimator": "estimator",
    "SteeringVector": "vectors",
    "Sweep": "sweep_results",
    "autolog": "autologging",
    "calibrate": "calibration",
    "lint_contrast": "lint",
    "load_contrast": "datasets",
    "load_expertise": "datasets",
    "neighbourhood": "neighbourhood",
    "sweep": "sweeps",
    "sweep_divergence": "divergence",
    "sweep_references": "references",
}
__all__ = sorted([*_HOMES, "__version__"])

if TYPE_CHECKING:
    from steerkit.activations import ActivationExtractor as ActivationExtractor
    from steerkit.autologging import autolog as autolog
    from steerkit.calibration import Calibration as Calibration
    from steerkit.calibration import calibrate as calibrate
    from steerkit.datasets import load_contrast as load_contrast
    from steerkit.datasets import load_expertise as load_expertise
    from steerkit.divergence import sweep_divergence as sweep_divergence
    from steerkit.estimator import SteeringEstimator as SteeringEstimator
    from steerkit.judges import Judge as Judge
    from steerkit.language_model import LanguageModel as LanguageModel
    from steerkit.layerwise import LayerwiseDirections as LayerwiseDirections
    from steerkit.learners import MassMean as MassMean
    from steerkit.learners import MeanDifference as MeanDifference
    from steerkit.learners import PrincipalDifference as PrincipalDifference
    from steerkit.lint import lint_contrast as lint_contrast
    from steerkit.logistic_probe import LogisticProbe as LogisticProbe
    from steerkit.metrics import Metric as Metric
    from steerkit.optimised_direction import OptimisedDirection as OptimisedDirection
    from steerkit.reading import EffectReader as EffectReader
    from steerkit.references import sweep_references as sweep_references
    from steerkit.similarity import Similarity as Similarity
    from steerkit.sparse_autoencoder import SparseAutoencoder as SparseAutoencoder
    from steerkit.sparse_features import SparseFeatures as SparseFeatures
    from steerkit.sparse_probe import SparseProbe as SparseProbe
    from steerkit.steered import SteeredModel as SteeredModel
    from steerkit.sweep_results import Sweep as Sweep
    from steerkit.sweeps import sweep as sweep
    from steerkit.vectors import SteeringVector as SteeringVector


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562), so that ``import steerkit`` stays instant."""
    if name in ("autolog", "mlflow") and not (stores := import_module("steerkit.mlflow_store")).is_installed():
        if name == "mlflow":  # so that hasattr may ask
            raise AttributeError(stores.MISSING)
        return stores.check_installed  # to import it asks for nothing, to call it says what is missing
    if name in ("mlflow", "tracking"):  # `import steerkit` is enough to write steerkit.mlflow.log_model
        return import_module(f"steerkit.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'steerkit' has no attribute {name!r}")
    return getattr(import_module(f"steerkit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
