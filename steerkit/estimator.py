"""`SteeringEstimator`: from labelled texts to a direction at every layer, a choice of layer, and a steered model."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_memory

import steerkit
from steerkit.activations import check_texts, remembered_activations, resolve_layers, token_activations
from steerkit.exceptions import ContrastSetError, InvalidInputError, NotFittedError
from steerkit.language_model import LanguageModel
from steerkit.layerwise import LayerwiseDirections, check_labels
from steerkit.learners import GivenDirections, make_learner
from steerkit.steered import SteeredModel
from steerkit.vectors import SteeringVector

Floats = NDArray[np.float64]


def _activations(
    model: LanguageModel, texts: list[Any], layers: list[int], pooling: str | int, batch_size: int | str
) -> NDArray[np.float32]:
    return remembered_activations(model, texts, layers=layers, pooling=pooling, batch_size=batch_size)


class SteeringEstimator(ClassifierMixin, TransformerMixin, BaseEstimator):
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
    norms_, offsets_, accuracies_, accuracy_errors_, aucs_, stability_ : ndarray of shape (n_layers,)
        As in `LayerwiseDirections`.
    learners_ : list of fitted learners
    n_layers_ : int

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
        make_learner(self.learner)
        model = LanguageModel.of(self.model)
        layers = resolve_layers(model, self.layers)
        chosen = None if self.layer == "auto" else model.check_layer(self.layer)
        if chosen is not None:
            layers = sorted({*layers, chosen})
        activations = self._activations(texts, layers)
        learner = self.learner
        if hasattr(make_learner(learner), "optimise"):
            learner = self._optimised(model, texts, labels, layers, activations)
        layerwise = LayerwiseDirections(learner, cv=self.cv, n_bootstrap=self.n_bootstrap).fit(
            activations, labels, groups, pairs
        )
        self.layerwise_, self.layers_ = layerwise, layers
        self.classes_ = layerwise.classes_
        self.directions_ = layerwise.directions_
        self.offsets_, self.norms_ = layerwise.offsets_, layerwise.norms_
        self.accuracies_, self.accuracy_errors_ = layerwise.accuracies_, layerwise.accuracy_errors_
        self.aucs_, self.stability_ = layerwise.aucs_, layerwise.stability_
        self.learners_ = layerwise.learners_
        self.n_layers_ = len(self.layers_)
        self.layer_ = self._most_readable(model.n_layers) if chosen is None else chosen
        self.fingerprint_ = model.fingerprint
        return self

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
        readings, labels = self._readings(X), np.asarray(y)
        return np.array([(self._classes_of(readings[..., i]) == labels).mean() for i in range(self.n_layers_)])

    def vector(self, layer: int | None = None, *, target: Any = None) -> SteeringVector:
        """Return the direction at a fitted layer, by default ``layer_``.

        Parameters
        ----------
        layer : int, optional
        target : label, optional
            With more than two classes: towards which.
        """
        place = self._place(layer)
        layer, binary = self.layers_[place], self.directions_.ndim == 2
        if binary:
            if target is not None and target != self.classes_[1]:
                raise InvalidInputError(
                    f"target={target!r} is not {self.classes_.tolist()[1]!r}, to which the direction of two classes "
                    "points; steer with a negative alpha towards the other."
                )
            direction, offset, classes = self.directions_[place], self.offsets_[place], self.classes_
        else:
            names = [str(label) for label in self.classes_.tolist()]
            if str(target) not in names:
                raise InvalidInputError(
                    f"target={target!r} is none of the classes {self.classes_.tolist()}; pass the one to steer to."
                )
            index = names.index(str(target))
            direction, offset = self.directions_[index, place], self.offsets_[index, place]
            classes = np.array([f"not {target}", target], dtype=object)
        if not direction.any():
            raise ContrastSetError(
                f"the learner finds no difference between the classes at layer {layer}, so there is no "
                "direction; choose another layer or pass other texts."
            )
        return SteeringVector(
            direction=direction,
            layer=layer,
            norm=float(self.norms_[place]),
            offset=float(offset),
            classes=(str(classes[0]), str(classes[1])),
            fingerprint=self.fingerprint_,
            provenance={
                "steerkit": steerkit.__version__,
                "learner": " ".join(repr(self.learner).split()),
                "pooling": self.pooling,
                "accuracy": float(self.accuracies_[place]) if np.isfinite(self.accuracies_[place]) else None,
            },
        )

    def export(
        self,
        alpha: float | Mapping[str, float] | None = None,
        *,
        layer: int | None = None,
        operation: str = "add",
        target: Any = None,
    ) -> SteeredModel:
        """Return the steered model, by default at ``layer_`` and with alpha 0.07.

        With more than two classes and no ``target``, the model has one vector per class, and alpha is a dict of one
        strength per class, by default an empty one; classes left out are not steered to.
        """
        model = LanguageModel.of(self.model)
        self._check_fitted()
        if self.directions_.ndim == 2 or target is not None:
            strength = 0.07 if alpha is None else alpha
            return SteeredModel(model, self.vector(layer, target=target), alpha=strength, operation=operation)
        if alpha is not None and not isinstance(alpha, Mapping):
            raise InvalidInputError(
                f"alpha={alpha!r} is one number for {len(self.classes_)} classes; pass target=, or a dict of one "
                "strength per class."
            )
        vectors = [self.vector(layer, target=label) for label in self.classes_.tolist()]
        strengths = {str(label): strength for label, strength in (alpha or {}).items()}
        return SteeredModel(model, vectors, alpha=strengths, operation=operation)

    def cosines(self, other: "SteeringEstimator | None" = None) -> Floats:
        """Return the cosine of each layer's direction with each layer's of another estimator, or of itself.

        ``(n_layers, n_layers of the other)``; with more than two classes a first axis of length n_classes.
        """
        self._check_fitted()
        theirs = self if other is None else other
        theirs._check_fitted()
        if list(theirs.classes_) != list(self.classes_):
            raise ContrastSetError(
                f"the estimators have the classes {self.classes_.tolist()} and {theirs.classes_.tolist()}; fit them to "
                "the same."
            )
        return np.asarray(self.directions_.astype(np.float64) @ np.swapaxes(theirs.directions_, -1, -2))

    def token_scores(self, text: Any, *, layer: int | None = None, target: Any = None) -> list[tuple[str, float]]:
        """Return each token of a prompt, or of a ``(prompt, completion)``, with its reading in units of alpha.

        It shows where in a text the direction fires. The reading of a token is that of the residual stream at its
        place, relative to the boundary between the classes.
        """
        vector, model = self.vector(layer, target=target), LanguageModel.of(self.model)
        sequence, activations = token_activations(model, text, vector.layer)
        readings = (activations @ vector.direction - vector.offset) / vector.norm
        pieces = [model.tokenizer.decode([token]) for token in sequence]
        return list(zip(pieces, readings.tolist(), strict=True))

    def nearest_tokens(self, n: int = 10, *, layer: int | None = None, target: Any = None) -> list[tuple[str, float]]:
        """Return the ``n`` tokens that the direction promotes most, with their share of the logit.

        The direction is read through the final norm's weights and the unembedding, as if nothing came in between
        (the logit lens), so it says little at early layers. Pass a negative ``n`` for the tokens it suppresses most.
        """
        vector, model = self.vector(layer, target=target), LanguageModel.of(self.model)
        logits = model.unembed(vector.direction)
        order = np.argsort(logits if n < 0 else -logits)[: abs(n)]
        return [(model.tokenizer.decode([int(token)]), float(logits[token])) for token in order]

    def report(self) -> str:
        """Return what was found, layer by layer, as a table to print."""
        self._check_fitted()
        stability = self.stability_ if self.directions_.ndim == 2 else self.stability_.mean(axis=0)
        columns = {
            "accuracy": self.accuracies_, "s.e.": self.accuracy_errors_, "auc": self.aucs_, "norm": self.norms_,
            "stability": stability,
        }  # fmt: skip
        table = pd.DataFrame(columns, index=pd.Index(self.layers_, name="layer")).round(3)
        between = " / ".join(map(str, self.classes_))
        return f"{between}, {self.learner!r}, read at layer {self.layer_}\n{table.to_string()}"

    def get_feature_names_out(self, input_features: object = None) -> NDArray[Any]:
        """Return the names of the columns of `transform`."""
        self._check_fitted()
        names = [f"layer{layer}" for layer in self.layers_]
        if len(self.classes_) > 2:
            names = [f"{label}_{name}" for label in self.classes_ for name in names]
        return np.array(names, dtype=object)

    def _readings(self, X: Sequence[str]) -> Floats:
        """What `transform` returns, as an array even where set_output asks for data frames."""
        self._check_fitted()
        return np.asarray(self.layerwise_.readings(self._activations(check_texts(X), self.layers_)))

    def _classes_of(self, readings: Floats) -> NDArray[Any]:
        places = readings.argmax(axis=1) if readings.ndim > 1 else (readings > 0).astype(int)
        return np.asarray(self.classes_[places])

    def _activations(self, texts: list[Any], layers: list[int]) -> NDArray[np.float32]:
        extract = check_memory(self.memory).cache(_activations)
        return np.asarray(extract(LanguageModel.of(self.model), texts, layers, self.pooling, self.batch_size))

    def _optimised(
        self, model: LanguageModel, texts: list[Any], labels: NDArray[Any], layers: list[int], activations: Any
    ) -> GivenDirections:
        """Let a learner that needs the model find the directions; they are read like all others."""
        classes, codes = check_labels(labels)
        if len(classes) != 2:
            raise ContrastSetError(f"y has {len(classes)} classes, an optimised direction takes two; pass two.")
        norms = np.linalg.norm(activations, axis=2).mean(axis=0)
        return GivenDirections(make_learner(self.learner).optimise(model, texts, codes, layers, norms))

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
