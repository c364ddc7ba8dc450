"""What every learner of a direction is: a scikit-learn classifier of two classes with an affine decision function."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from steerkit.exceptions import ContrastSetError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class BinaryClassifier(ClassifierMixin, BaseEstimator):
    """Two classes told apart along one direction; a subclass finds it.

    Attributes
    ----------
    classes_ : ndarray of shape (2,)
    coef_ : ndarray of shape (1, n_features), float64
        Points from ``classes_[0]`` to ``classes_[1]``.
    intercept_ : ndarray of shape (1,), float64
    """

    def decision_function(self, X: ArrayLike) -> Floats:
        """Return ``(n_samples,)``, positive on the side of ``classes_[1]``."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return np.asarray(X @ self.coef_[0] + self.intercept_[0])

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class of each row, ``(n_samples,)``."""
        scores = self.decision_function(X)
        return np.asarray(self.classes_[(scores > 0).astype(int)])

    def _validate(self, X: ArrayLike, y: ArrayLike) -> tuple[Floats, Integers]:
        data, labels = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(labels)
        self.classes_, sides = np.unique(labels, return_inverse=True)
        if len(self.classes_) != 2:
            found = f"{len(self.classes_)} class{'es' if len(self.classes_) != 1 else ''}"
            # scikit-learn's checks look for its own words, hence "Only binary classification is supported".
            raise ContrastSetError(
                f"Only binary classification is supported: y has {found}, two were expected; "
                "pass texts of both classes and no third."
            )
        return data, sides

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags
