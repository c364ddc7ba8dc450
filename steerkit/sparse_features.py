"""`SparseFeatures`: the learner whose direction combines features of a sparse autoencoder."""

import copy
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from steerkit.binary_classifier import Floats, Integers
from steerkit.checks import check_count
from steerkit.exceptions import InvalidInputError
from steerkit.learners import DirectionClassifier
from steerkit.sparse_autoencoder import SparseAutoencoder


class SparseFeatures(DirectionClassifier):
    """The direction of the features of a sparse autoencoder that tell the classes apart.

    The features whose means differ most, in units of their spread, are kept; the direction is the combination of
    their decoder rows by the difference of their means.

    Parameters
    ----------
    autoencoder : SparseAutoencoder
        Loaded or fitted for the layer that is read; if it is neither, it is fitted to the samples, which shows the
        mechanics but is far too little data for features that mean something.
    n_features : int
        How many to keep.

    Attributes
    ----------
    features_ : ndarray of int
        Those kept, the best first.
    differences_ : ndarray of float
        The difference of their means between ``classes_[1]`` and ``classes_[0]``.
    classes_, coef_, intercept_
        As in `MeanDifference`.

    References
    ----------
    O'Brien et al. (2024), "Steering Language Model Refusal with Sparse Autoencoders".
    """

    scaling = "none"  # an autoencoder knows the residual stream in its own units only

    def __init__(self, autoencoder: SparseAutoencoder | None = None, *, n_features: int = 8) -> None:
        self.autoencoder = autoencoder
        self.n_features = n_features

    def __sklearn_clone__(self) -> Self:
        """Keep the features of an autoencoder that is fitted or loaded; a fresh one would have others."""
        given = self.autoencoder
        autoencoder = copy.copy(given) if hasattr(given, "decoder_") else clone(given, safe=False)
        return type(self)(autoencoder, n_features=self.n_features)

    def _weights(self, X: Floats, sides: Integers) -> Floats:
        if not isinstance(self.autoencoder, SparseAutoencoder | None):
            raise InvalidInputError(
                f"autoencoder={self.autoencoder!r} is no SparseAutoencoder; pass one, such as "
                "SparseAutoencoder.from_pretrained(...)."
            )
        check_count("n_features", self.n_features)
        given = SparseAutoencoder(64, k=8) if self.autoencoder is None else self.autoencoder
        fitted = hasattr(given, "decoder_")
        self.autoencoder_ = given if fitted else clone(given).fit(X)
        if self.autoencoder_.decoder_.shape[1] != X.shape[1]:
            raise InvalidInputError(
                f"the autoencoder is for activations of size {self.autoencoder_.decoder_.shape[1]}, {X.shape[1]} came; "
                "load the one for this model and layer."
            )
        features = self.autoencoder_.transform(X)
        differences = features[sides == 1].mean(axis=0) - features[sides == 0].mean(axis=0)
        spread = np.sqrt((features[sides == 1].var(axis=0) + features[sides == 0].var(axis=0)) / 2)
        # A feature that hardly ever fires has hardly a spread: it must not win by that alone.
        separation = np.abs(differences) / (spread + 1e-3 * (spread.max() + np.abs(differences).max()) + 1e-30)
        self.features_ = np.argsort(-separation, kind="stable")[: self.n_features]
        self.features_ = self.features_[separation[self.features_] > 0]
        self.differences_ = differences[self.features_]
        return np.asarray(self.differences_ @ self.autoencoder_.decoder_[self.features_], dtype=np.float64)

    def top_features(self, X: ArrayLike, texts: Any, n_texts: int = 3) -> list[dict[str, Any]]:
        """Name each kept feature by the texts that activate it most; X holds their activations, row by row."""
        check_is_fitted(self)
        features = self.autoencoder_.transform(X)[:, self.features_]
        texts = list(texts)
        if len(texts) != len(features):
            raise InvalidInputError(
                f"{len(texts)} texts came for {len(features)} rows of activations; pass one per row."
            )
        order = np.argsort(-features, axis=0, kind="stable")[:n_texts]
        return [
            {
                "feature": int(feature),
                "difference": float(self.differences_[place]),
                "texts": [texts[row] for row in order[:, place] if features[row, place] > 0],
            }
            for place, feature in enumerate(self.features_)
        ]
