"""`SteeringEstimator`: from labelled texts to a direction at every layer, a choice of layer, and a steered model."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_memory

import steerkit
from steerkit.activations import pooled_activations, resolve_layers
from steerkit.exceptions import ContrastSetError, NotFittedError
from steerkit.language_model import LanguageModel
from steerkit.layerwise import LayerwiseDirections, check_labels
from steerkit.learners import make_learner
from steerkit.prompts import check_prompts
from steerkit.steered import SteeredModel
from steerkit.vectors import SteeringVector

Floats = NDArray[np.float64]


def _activations(
    model: LanguageModel, texts: list[Any], layers: list[int], pooling: str, batch_size: int | str
) -> NDArray[np.float32]:
    return pooled_activations(model, model.encode(texts), layers=layers, pooling=pooling, batch_size=batch_size)


class SteeringEstimator(ClassifierMixin, TransformerMixin, BaseEstimator):
    """Fit a direction at every layer of a language model to texts of two classes.

    Parameters
    ----------
    model : str or LanguageModel
    learner : str or scikit-learn classifier
        ``"probe"``, ``"mean-diff"``, or any classifier (pipelines too) with an affine decision function.
    layers : "all", int or list of int
        Where directions are fitted.
    layer : "auto" or int
        Where `predict` reads and `export` steers. ``"auto"``: of the layers whose cross-validated accuracy is
        within one standard error of the best, the one nearest to the middle of the model, since the edges steer
        weakly. It is a guess from reading; a `sweep` measures.
    pooling : {"last", "mean"}
    cv : int or splitter
        Folds for ``accuracies_``; groups are kept together.
    batch_size : "auto" or int
    memory : str or joblib.Memory, optional
        Where to keep activations between fits.

    Attributes
    ----------
    classes_ : ndarray of shape (2,)
    layers_ : list of int, and layer_ : int
    directions_ : ndarray of shape (n_layers, hidden size), float32
        Unit vectors from ``classes_[0]`` to ``classes_[1]``; row i belongs to ``layers_[i]``, as below.
    norms_, offsets_, accuracies_, accuracy_errors_ : ndarray of shape (n_layers,)
        As in `LayerwiseDirections`.
    learners_ : list of fitted learners
    n_layers_ : int

    Examples
    --------
    >>> from steerkit import SteeringEstimator, load_expertise
    >>> train = load_expertise(subset="train")
    >>> estimator = SteeringEstimator("builtin:tutor").fit(train.data, train.target, groups=train.groups)
    """

    # With metadata routing on, groups reach fit; with it off this changes nothing.
    __metadata_request__fit = {"groups": True}  # noqa: RUF012

    def __init__(
        self,
        model: str | LanguageModel = "builtin:tutor",
        *,
        learner: Any = "probe",
        layers: Any = "all",
        layer: int | str = "auto",
        pooling: str = "last",
        cv: Any = 5,
        batch_size: int | str = "auto",
        memory: Any = None,
    ) -> None:
        self.model = model
        self.learner = learner
        self.layers = layers
        self.layer = layer
        self.pooling = pooling
        self.cv = cv
        self.batch_size = batch_size
        self.memory = memory

    def fit(self, X: Sequence[str], y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit one direction per layer.

        Parameters
        ----------
        X : sequence of str
        y : array-like of shape (n_samples,)
            Two distinct labels; the directions point to the one that sorts last.
        groups : array-like of shape (n_samples,), optional
            For the cross-validation: samples of one group are never on both sides of a fold.

        Raises
        ------
        ContrastSetError, PromptError, LayerError, NonFiniteError
        """
        texts = check_prompts(X)
        labels = np.asarray(y)
        check_labels(labels)
        if len(texts) != len(labels) or (groups is not None and len(np.asarray(groups)) != len(texts)):
            n_groups = "" if groups is None else f", {len(np.asarray(groups))} groups"
            raise ContrastSetError(
                f"X has {len(texts)} texts, y has {len(labels)} labels{n_groups}; pass one of each per text."
            )
        make_learner(self.learner)
        model = LanguageModel.of(self.model)
        layers = resolve_layers(model, self.layers)
        chosen = None if self.layer == "auto" else model.check_layer(self.layer)
        if chosen is not None:
            layers = sorted({*layers, chosen})
        activations = self._activations(texts, layers)
        layerwise = LayerwiseDirections(self.learner, cv=self.cv).fit(activations, labels, groups)
        self.layerwise_, self.layers_ = layerwise, layers
        self.classes_ = layerwise.classes_
        self.directions_ = layerwise.directions_
        self.offsets_, self.norms_ = layerwise.offsets_, layerwise.norms_
        self.accuracies_, self.accuracy_errors_ = layerwise.accuracies_, layerwise.accuracy_errors_
        self.learners_ = layerwise.learners_
        self.n_layers_ = len(self.layers_)
        self.layer_ = self._most_readable(model.n_layers) if chosen is None else chosen
        self.fingerprint_ = model.fingerprint
        return self

    def transform(self, X: Sequence[str]) -> Floats:
        """Return the signed distance from each layer's boundary, ``(n_samples, n_layers)``, in units of alpha."""
        return self._readings(X)

    def decision_function(self, X: Sequence[str]) -> Floats:
        """Return the column of `transform` at ``layer_``, ``(n_samples,)``; positive means ``classes_[1]``."""
        return self._readings(X)[:, self._place(None)]

    def predict(self, X: Sequence[str]) -> NDArray[Any]:
        """Return the class of each text as read at ``layer_``, ``(n_samples,)``."""
        sides = self.decision_function(X) > 0
        return np.asarray(self.classes_[sides.astype(int)])

    def layer_scores(self, X: Sequence[str], y: ArrayLike) -> Floats:
        """Return the accuracy at each layer on other texts, ``(n_layers,)``."""
        sides = self._readings(X) > 0
        return np.asarray((self.classes_[sides.astype(int)] == np.asarray(y)[:, None]).mean(axis=0))

    def vector(self, layer: int | None = None) -> SteeringVector:
        """Return the direction at a fitted layer, by default ``layer_``."""
        place = self._place(layer)
        if not self.directions_[place].any():
            raise ContrastSetError(
                f"the learner finds no difference between the classes at layer {self.layers_[place]}, so there is no "
                "direction; choose another layer or pass other texts."
            )
        return SteeringVector(
            direction=self.directions_[place],
            layer=self.layers_[place],
            norm=float(self.norms_[place]),
            offset=float(self.offsets_[place]),
            classes=(str(self.classes_[0]), str(self.classes_[1])),
            fingerprint=self.fingerprint_,
            provenance={
                "steerkit": steerkit.__version__,
                "learner": " ".join(repr(self.learner).split()),
                "pooling": self.pooling,
                "accuracy": float(self.accuracies_[place]),
            },
        )

    def export(self, alpha: float = 0.07, *, layer: int | None = None, operation: str = "add") -> SteeredModel:
        """Return the steered model, by default at ``layer_``."""
        return SteeredModel(LanguageModel.of(self.model), self.vector(layer), alpha=alpha, operation=operation)

    def get_feature_names_out(self, input_features: object = None) -> NDArray[Any]:
        """Return the names of the columns of `transform`."""
        self._check_fitted()
        return np.array([f"layer{layer}" for layer in self.layers_], dtype=object)

    def _readings(self, X: Sequence[str]) -> Floats:
        """What `transform` returns, as an array even where set_output asks for data frames."""
        self._check_fitted()
        return np.asarray(self.layerwise_.readings(self._activations(check_prompts(X), self.layers_)))

    def _activations(self, texts: list[Any], layers: list[int]) -> NDArray[np.float32]:
        extract = check_memory(self.memory).cache(_activations)
        return np.asarray(extract(LanguageModel.of(self.model), texts, layers, self.pooling, self.batch_size))

    def _most_readable(self, depth: int) -> int:
        scores = self.accuracies_
        best = int(np.nanargmax(scores)) if np.isfinite(scores).any() else 0
        floor = np.nan_to_num(scores[best] - self.accuracy_errors_[best])
        readable = [layer for layer, score in zip(self.layers_, scores, strict=True) if not score < floor]
        return min(readable, key=lambda layer: abs(layer - (depth - 1) / 2))

    def _place(self, layer: int | None) -> int:
        self._check_fitted()
        layer = self.layer_ if layer is None else LanguageModel.of(self.model).check_layer(layer)
        if layer not in self.layers_:
            raise NotFittedError(f"no direction was fitted at layer {layer}; fit with layers that include it.")
        return self.layers_.index(layer)

    def _check_fitted(self) -> None:
        if not hasattr(self, "layerwise_"):
            raise NotFittedError("SteeringEstimator is not fitted; call fit first.")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.classifier_tags.multi_class = False
        return tags
