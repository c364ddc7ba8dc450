"""What can be asked of fitted directions: one to steer with, their cosines, where they fire, the words they promote."""

from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import steerkit
from steerkit.activations import token_activations
from steerkit.exceptions import ContrastSetError, InvalidInputError, NotFittedError
from steerkit.fingerprint import Fingerprint
from steerkit.language_model import LanguageModel
from steerkit.unembedding import unembed
from steerkit.vectors import SteeringVector

Floats = NDArray[np.float64]


class FittedDirections:
    """Methods of `SteeringEstimator` that explain its directions; they need no texts but what it was fitted on."""

    model: Any
    learner: Any
    pooling: str | int
    classes_: NDArray[Any]
    layers_: list[int]
    layer_: int
    directions_: NDArray[np.float32]
    norms_: Floats
    accuracies_: Floats
    accuracy_errors_: Floats
    aucs_: Floats
    stability_: Floats
    offsets_: Floats
    fingerprint_: Fingerprint

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
                "direction; choose another layer, pass other texts or weaken the learner's penalty."
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

    def cosines(self, other: "FittedDirections | None" = None) -> Floats:
        """Return the cosine of each layer's direction with each layer's of another estimator, or of itself.

        ``(n_layers, n_layers of the other)``; with more than two classes a first axis of length n_classes.
        """
        self._check_fitted()
        theirs = self if other is None else other
        if not isinstance(theirs, FittedDirections):
            raise InvalidInputError(
                f"other is a {type(other).__name__}, a fitted SteeringEstimator was expected; pass one."
            )
        theirs._check_fitted()
        if theirs.directions_.shape[-1] != self.directions_.shape[-1]:
            raise ContrastSetError(
                f"the estimators have hidden sizes {self.directions_.shape[-1]} and {theirs.directions_.shape[-1]}; "
                "fit them on one model."
            )
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
        if isinstance(n, bool) or not isinstance(n, Integral):
            raise InvalidInputError(f"n={n!r} is no whole number; pass how many tokens to name.")
        vector, model = self.vector(layer, target=target), LanguageModel.of(self.model)
        logits = unembed(model, vector.direction)
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
        return f"{between}, {' '.join(repr(self.learner).split())}, read at layer {self.layer_}\n{table.to_string()}"

    def _place(self, layer: int | None) -> int:
        self._check_fitted()
        layer = self.layer_ if layer is None else LanguageModel.of(self.model).check_layer(layer)
        if layer not in self.layers_:
            raise NotFittedError(f"no direction was fitted at layer {layer}; fit with layers that include it.")
        return self.layers_.index(layer)

    def _check_fitted(self) -> None:
        if not hasattr(self, "directions_"):
            raise NotFittedError(f"{type(self).__name__} is not fitted; call fit first.")
