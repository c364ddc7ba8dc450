"""What labels have to be: a class for each sample, two classes at least."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from steerkit.exceptions import ContrastSetError


def check_labels(y: ArrayLike) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the classes, sorted, and the place of each sample's class, or raise `ContrastSetError`."""
    labels = np.asarray(y)
    if labels.ndim != 1:
        raise ContrastSetError(f"y has shape {labels.shape}, (n_samples,) was expected; pass one label per text.")
    if pd.isna(labels).any():
        raise ContrastSetError("y holds NaN or None, classes were expected; drop or label those samples.")
    try:
        classes, codes = np.unique(labels, return_inverse=True)
    except TypeError:
        raise ContrastSetError("y mixes labels of several types, classes were expected; use one type.") from None
    if len(classes) < 2:
        names = ", ".join(map(repr, classes.tolist())) or "none"
        raise ContrastSetError(
            f"y has {len(classes)} classes ({names}), at least two were expected; pass texts of each class."
        )
    if len(classes) > 2 and len(classes) > len(labels) / 2:
        raise ContrastSetError(
            f"y has {len(classes)} classes for {len(labels)} samples, at least two samples of each were expected; "
            "pass labels, not numbers."
        )
    return classes, codes.astype(np.int64)
