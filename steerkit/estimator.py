"""`SteeringEstimator`: from labelled texts to a direction at every layer, a choice of layer, and a steered model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import Tags
from sklearn.utils.validation import check_memory

from steerkit.activations import check_texts, remembered_activations, resolve_layers
from steerkit.exceptions import ContrastSetError, InvalidInputError
from steerkit.fingerprint import digest_weights
from steerkit.fitted_directions import FittedDirections, Floats
from steerkit.labels import check_labels
from steerkit.language_model import LanguageModel
from steerkit.layerwise import LayerwiseDirections
from steerkit.learners import GivenDirections, make_learner
from steerkit.reliability import estimator_card
from steerkit.steered import SteeredModel


def _activations(
    model: LanguageModel, weights: str, texts: list[Any], layers: list[int], pooling: str | int, batch_size: int | str
) -> NDArray[np.float32]:
    """What joblib keeps on disk under its arguments; hence the digest of the weights, which is not used."""
    return remembered_activations(model, texts, layers=layers, pooling=pooling, batch_size=batch_size)


class SteeringEstimator(FittedDirections, ClassifierMixin, TransformerMixin, BaseEstimator):
    """Fit a direction at every layer of a language model to texts of two classes or more.

    Parameters
    ----------
    model : str or LanguageModel
    learner : str or scikit-learn classifier
        A name in `LEARNERS`, or any classifier (pipelines too) with an affine decision function.
    layers : "all", int or list of int
        Where directions are fitted.
    layer : "auto" or int
        Where `predict` reads and `export` steers. ``"auto"``: of the layers whose cross-validated accuracy is
        within one standard error of the best, the one nearest to the middle of the model, since the edges steer
        weakly. It is a guess from reading; a `sweep` measures.
    pooling : {"last", "mean", "last-k"} or int
        As in `ActivationExtractor`.
    cv : int or splitter
        Folds for ``accuracies_``; groups are kept together.
    n_bootstrap : int
        Resamples for ``stability_``; 0 takes the folds instead.
    batch_size : "auto" or int
    memory : str or joblib.Memory, optional
        Where to keep activations on disk. In memory they are kept as long as the model is.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    layers_ : list of int, and layer_ : int
    directions_ : ndarray of shape (n_layers, hidden size), float32
        Unit vectors from ``classes_[0]`` to ``classes_[1]``; row i belongs to ``layers_[i]``, as below. With more
        than two classes ``(n_classes, n_layers, hidden size)``, from all others to each class.
    shuffled_directions_ : ndarray of the same shape
        From shuffled labels: a control for `sweep`.
    norms_, offsets_, accuracies_, accuracy_errors_, aucs_, stability_ : ndarray of shape (n_layers,)
        As in `LayerwiseDirections`.
    learners_ : list of fitted learners
    n_layers_ : int
    n_samples_ : list of int
        Texts of each class.

    Examples
    --------
    >>> from steerkit import SteeringEstimator, load_expertise
    >>> train = load_expertise(subset="train")
    >>> estimator = SteeringEstimator("builtin:tutor").fit(train.data, train.target, groups=train.groups)
    """

    # With metadata routing on, these reach fit; with it off this changes nothing.
    __metadata_request__fit = {"groups": True, "pairs": True}  # noqa: RUF012

    def __init__(
        self,
        model: str | LanguageModel = "builtin:tutor",
        *,
        learner: Any = "probe",
        layers: Any = "all",
        layer: int | str = "auto",
        pooling: str | int = "last",
        cv: Any = 5,
        n_bootstrap: int = 0,
        batch_size: int | str = "auto",
        memory: Any = None,
    ) -> None:
        self.model = model
        self.learner = learner
        self.layers = layers
        self.layer = layer
        self.pooling = pooling
        self.cv = cv
        self.n_bootstrap = n_bootstrap
        self.batch_size = batch_size
        self.memory = memory

    def fit(
        self, X: Sequence[Any], y: ArrayLike, groups: ArrayLike | None = None, pairs: ArrayLike | None = None
    ) -> Self:
        """Fit one direction per layer.

        Parameters
        ----------
        X : sequence of str, of chat messages, or of (prompt, completion) tuples
            The activations of a completion are those of its own tokens.
        y : array-like of shape (n_samples,)
            Labels. Of two, the directions point to the one that sorts last; of more, to each from all others.
        groups : array-like of shape (n_samples,), optional
            For the cross-validation: samples of one group are never on both sides of a fold.
        pairs : array-like of shape (n_samples,), optional
            Equal values join two samples of different classes, for learners that use pairs (``"pca"``).

        Raises
        ------
        ContrastSetError, PromptError, LayerError, NonFiniteError
        """
        texts = check_texts(X)
        labels = np.asarray(y)
        check_labels(labels)
        if len(texts) != len(labels) or (groups is not None and len(np.asarray(groups)) != len(texts)):
            n_groups = "" if groups is None else f", {len(np.asarray(groups))} groups"
            raise ContrastSetError(
                f"X has {len(texts)} texts, y has {len(labels)} labels{n_groups}; pass one of each per text."
            )
        learner = make_learner(self.learner)
        model = LanguageModel.of(self.model)
        layers = resolve_layers(model, self.layers)
        chosen = None if self.layer == "auto" else model.check_layer(self.layer)
        if chosen is not None:
            layers = sorted({*layers, chosen})
        activations = self._activations(texts, layers)
        if hasattr(learner, "optimise"):
            learner = _optimised(learner, model, texts, labels, layers, activations)
        layerwise = LayerwiseDirections(learner, cv=self.cv, n_bootstrap=self.n_bootstrap).fit(
            activations, labels, groups, pairs
        )
        self.layerwise_, self.layers_ = layerwise, layers
        self.classes_ = layerwise.classes_
        self.directions_, self.shuffled_directions_ = layerwise.directions_, layerwise.shuffled_directions_
        self.offsets_, self.norms_ = layerwise.offsets_, layerwise.norms_
        self.accuracies_, self.accuracy_errors_ = layerwise.accuracies_, layerwise.accuracy_errors_
        self.aucs_, self.stability_ = layerwise.aucs_, layerwise.stability_
        self.learners_ = layerwise.learners_
        self.n_layers_ = len(self.layers_)
        self.layer_ = self._most_readable(model.n_layers) if chosen is None else chosen
        self.fingerprint_ = model.fingerprint
        self.n_samples_ = [int((labels == label).sum()) for label in self.classes_]
        return self

    def set_params(self, **params: Any) -> Self:
        """Set parameters; ``learner__C`` and the like work with a learner's short name too."""
        if any(name.startswith("learner__") for name in params):
            learner = make_learner(params.pop("learner", self.learner))
            nested = {name: params.pop(name) for name in [*params] if name.startswith("learner__")}
            params["learner"] = learner.set_params(**{name.removeprefix("learner__"): v for name, v in nested.items()})
        return super().set_params(**params)

    def transform(self, X: Sequence[Any]) -> Floats:
        """Return the signed distance from each layer's boundary, ``(n_samples, n_layers)``, in units of alpha.

        With more than two classes ``(n_samples, n_classes * n_layers)``, class by class.
        """
        readings = self._readings(X)
        return readings.reshape(len(readings), -1)

    def decision_function(self, X: Sequence[Any]) -> Floats:
        """Return the readings at ``layer_``, ``(n_samples,)``, positive towards ``classes_[1]``.

        With more than two classes ``(n_samples, n_classes)``.
        """
        return self._readings(X)[..., self._place(None)]

    def predict(self, X: Sequence[Any]) -> NDArray[Any]:
        """Return the class of each text as read at ``layer_``, ``(n_samples,)``."""
        return self._classes_of(self.decision_function(X))

    def layer_scores(self, X: Sequence[Any], y: ArrayLike) -> Floats:
        """Return the accuracy at each layer on other texts, ``(n_layers,)``."""
        readings = self._readings(X)
        return np.array([accuracy_score(y, self._classes_of(readings[..., i])) for i in range(self.n_layers_)])

    def export(
        self,
        alpha: float | Mapping[str, float] | None = None,
        *,
        layer: int | None = None,
        operation: str = "add",
        target: Any = None,
        calibration: Any = None,
        classes: Sequence[str] | None = None,
    ) -> SteeredModel:
        """Return the steered model, by default at ``layer_`` and with alpha 0.07.

        What ``calibration``, as `calibrate` returns it, has found comes before these: its layer, and the end of its
        alphas that is farther from 0, the upper of equals.

        ``classes`` names the classes, in the order of ``classes_``, where their labels are but numbers.

        With more than two classes and no ``target``, the model has one vector per class, and alpha is a dict of one
        strength per class, by default an empty one; classes left out are not steered to.
        """
        model = LanguageModel.of(self.model)
        self._check_fitted()
        if calibration is not None:
            alpha = max(reversed(calibration.alphas), key=abs) if alpha is None else alpha
            layer = calibration.layer if layer is None else layer
        names = [str(name) for name in (self.classes_ if classes is None else classes)]
        if len(names) != len(self.classes_):
            raise InvalidInputError(
                f"classes={classes!r} names {len(names)} of {len(self.classes_)} classes; name each, in the order of "
                f"{self.classes_.tolist()}."
            )
        strength = 0.07 if alpha is None else alpha
        about = {"alpha": strength, "operation": operation} | ({} if target is None else {"towards": target})
        card = estimator_card(self, self.layers_[self._place(layer)], names, calibration, **about)
        if self.directions_.ndim == 2 or target is not None:
            vector = self.vector(layer, target=target)
            if classes is not None and len(names) == 2:
                vector = replace(vector, classes=(names[0], names[1]))
            return SteeredModel(model, vector, alpha=strength, operation=operation, card=card)
        if alpha is not None and not isinstance(alpha, Mapping):
            raise InvalidInputError(
                f"alpha={alpha!r} is one number for {len(self.classes_)} classes; pass target=, or a dict of one "
                "strength per class."
            )
        vectors = [
            replace(self.vector(layer, target=label), classes=(f"not {name}", name))
            for label, name in zip(self.classes_.tolist(), names, strict=True)
        ]
        strengths = {str(label): strength for label, strength in (alpha or {}).items()}
        return SteeredModel(model, vectors, alpha=strengths, operation=operation, card=card)

    def get_feature_names_out(self, input_features: object = None) -> NDArray[Any]:
        """Return the names of the columns of `transform`."""
        self._check_fitted()
        names = [f"layer{layer}" for layer in self.layers_]
        if len(self.classes_) > 2:
            names = [f"{label}_{name}" for label in self.classes_ for name in names]
        return np.array(names, dtype=object)

    def _readings(self, X: Sequence[Any]) -> Floats:
        """What `transform` returns, as an array even where set_output asks for data frames."""
        self._check_fitted()
        return np.asarray(self.layerwise_.readings(self._activations(check_texts(X), self.layers_)))

    def _classes_of(self, readings: Floats) -> NDArray[Any]:
        places = readings.argmax(axis=1) if readings.ndim > 1 else (readings > 0).astype(int)
        return np.asarray(self.classes_[places])

    def _activations(self, texts: list[Any], layers: list[int]) -> NDArray[np.float32]:
        extract = check_memory(self.memory).cache(_activations)
        model = LanguageModel.of(self.model)
        weights = digest_weights(model.model) if self.memory else ""
        return np.asarray(extract(model, weights, texts, layers, self.pooling, self.batch_size))

    def _most_readable(self, depth: int) -> int:
        scores = self.accuracies_
        best = int(np.nanargmax(scores)) if np.isfinite(scores).any() else 0
        floor = np.nan_to_num(scores[best] - self.accuracy_errors_[best])
        readable = [layer for layer, score in zip(self.layers_, scores, strict=True) if not score < floor]
        return min(readable, key=lambda layer: abs(layer - (depth - 1) / 2))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags


def _optimised(
    learner: Any, model: LanguageModel, texts: list[Any], labels: NDArray[Any], layers: list[int], activations: Any
) -> GivenDirections:
    """Let a learner that needs the model find the directions; they are read like all others."""
    classes, codes = check_labels(labels)
    if len(classes) != 2:
        raise ContrastSetError(f"y has {len(classes)} classes, an optimised direction takes two; pass two.")
    norms = np.linalg.norm(activations, axis=2).mean(axis=0)
    return GivenDirections(learner.optimise(model, texts, codes, layers, norms))
