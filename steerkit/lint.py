"""Look for what makes a contrast set easier than it seems: leaks, duplicates, imbalance, and prompts too long."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import roc_auc_score
from sklearn.utils import Bunch

from steerkit.exceptions import ContrastSetError, InvalidInputError
from steerkit.language_model import LanguageModel
from steerkit.prompts import check_prompts

NOTABLE, FATAL = 0.8, 0.95
"""Chance that a text of one class has more of something (words, commas, "PhD") than one of the other."""
IMBALANCE = 3.0, 20.0


@dataclass(frozen=True)
class Finding:
    """One thing that `lint_contrast` found.

    Attributes
    ----------
    kind : str
    fatal : bool
        Whether accuracies measured on this set would mean nothing.
    message : str
        What came, why it matters and what to do.
    rows : tuple of int
        The offending rows, counted from 1 as in the file without its header.
    """

    kind: str
    fatal: bool
    message: str
    rows: tuple[int, ...]


def lint_contrast(
    train: Bunch, test: Bunch | None = None, *, model: str | LanguageModel | None = None
) -> list[Finding]:
    """Return the findings for a contrast set as `load_contrast` returns it, the fatal ones first.

    Parameters
    ----------
    train : Bunch
    test : Bunch, optional
        Where the accuracy will be measured; it must share no text with ``train``.
    model : str or LanguageModel, optional
        Whose context the prompts must fit into.
    """
    train = _checked(train)
    found = [*_duplicates(train), *_imbalance(train), *_groups(train)]
    for two in _contrasts(train):
        found += [*_shape(two), *_words(two)]
    if test is not None:
        found += _shared(train, _checked(test))
    if model is not None:
        found += _too_long(train, LanguageModel.of(model))
    return sorted(found, key=lambda finding: not finding.fatal)


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _worded(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _places(texts: Sequence[str], key: Callable[[str], str]) -> dict[str, list[int]]:
    """Where texts of equal keys stand; those without a key are left out."""
    places: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        places[key(text)].append(index)
    return {name: indices for name, indices in places.items() if name}


def _rows(indices: Any) -> tuple[int, ...]:
    return tuple(int(index) + 1 for index in indices)


def _checked(data: Any) -> Bunch:
    """Accept any data set in scikit-learn's manner, with groups or without."""
    if not hasattr(data, "data") or not hasattr(data, "target"):
        raise InvalidInputError(
            f"a {type(data).__name__} came, a Bunch with data and target was expected; read a file with load_contrast."
        )
    classes, codes = np.unique(np.asarray(data.target), return_inverse=True)
    names = data.get("target_names")
    groups = data.get("groups")
    return Bunch(
        data=check_prompts(data.data), target=codes, target_names=classes if names is None else np.asarray(names),
        groups=None if groups is None else np.asarray(groups),
    )  # fmt: skip


def _contrasts(data: Bunch) -> Iterator[Bunch]:
    """Yield the set itself, or with more than two classes each of them against the others."""
    if len(data.target_names) == 2:
        yield data
        return
    for place, name in enumerate(data.target_names):
        names = np.array([f"not {name}", name])
        yield Bunch(data=data.data, target=(data.target == place).astype(int), target_names=names)


def _duplicates(data: Bunch) -> Iterator[Finding]:
    def repeated(key: Callable[[str], str], *, across: bool) -> list[int]:
        several = [places for places in _places(data.data, key).values() if len(places) > 1]
        return sorted(i for places in several if (len(set(data.target[places])) > 1) == across for i in places)

    across, within = repeated(_spaced, across=True), repeated(_spaced, across=False)
    alike = [index for index in repeated(_worded, across=True) if index not in across]
    for rows, fatal, what in (
        (across, True, "have a text that stands in several classes, so no direction can tell them apart; drop them."),
        (alike, False, "have the words of a text of another class, so marks and case alone tell them apart; drop them "
         "unless that is the contrast."),
        (within, False, "repeat a text of their class, which counts more than once and may stand on both sides of a "
         "fold; drop the copies."),
    ):  # fmt: skip
        if rows:
            yield Finding("duplicate", fatal, f"{len(rows)} rows {what}", _rows(rows))


def _shared(train: Bunch, test: Bunch) -> Iterator[Finding]:
    expected, got = ([str(name) for name in data.target_names] for data in (train, test))
    if sorted(got) != sorted(expected):
        raise ContrastSetError(f"the test set has the labels {got}, {expected} were expected; check the column.")
    known = _places(train.data, _spaced)
    rows = [index for index, text in enumerate(test.data) if _spaced(text) in known]
    if rows:
        yield Finding(
            "train-test overlap", True,
            f"{len(rows)} test texts stand in the training set too, so the test accuracy is no test; drop them.",
            _rows(rows),
        )  # fmt: skip


def _imbalance(data: Bunch) -> Iterator[Finding]:
    counts = np.bincount(data.target)
    ratio = counts.max() / max(1, counts.min())
    if ratio >= IMBALANCE[0]:
        rare = int(counts.argmin())
        yield Finding(
            "imbalance", bool(ratio >= IMBALANCE[1]),
            f"class {str(data.target_names[rare])!r} has {counts[rare]} texts, the largest {counts.max()}, so guessing "
            f"that alone reaches {counts.max() / counts.sum():.2f}; add texts or drop some.",
            _rows(np.flatnonzero(data.target == rare)),
        )  # fmt: skip


def _groups(data: Bunch) -> Iterator[Finding]:
    if data.groups is None:
        return
    known = np.unique(data.groups).tolist()
    single = [group for group in known if len(set(data.target[data.groups == group])) == 1]
    if single:
        every = len(single) == len(known)
        names = ", ".join(map(repr, single[:5]))
        yield Finding(
            "one-sided group", every,
            f"{len(single)} groups ({names}) hold one class only, so the group tells the class"
            f"{' everywhere' if every else ''}; give each group texts of both classes.",
            _rows(np.flatnonzero(np.isin(data.groups, single))),
        )  # fmt: skip


def _shape(data: Bunch) -> Iterator[Finding]:
    """Length and punctuation."""
    measures: dict[str, Callable[[str], float]] = {"number of words": lambda text: len(text.split())}
    for mark in sorted({mark for text in data.data for mark in re.findall(r"[^\w\s]", text)}):
        measures[f"number of {mark!r}"] = partial(_count, mark)
    measures["share of capital letters"] = lambda text: sum(map(str.isupper, text)) / max(1, len(text))
    for name, measure in measures.items():
        values = np.array([measure(text) for text in data.data], dtype=float)
        auc = float(roc_auc_score(data.target, values))
        if max(auc, 1 - auc) >= NOTABLE:
            more = str(data.target_names[int(auc > 0.5)])
            yield Finding(
                "leak", max(auc, 1 - auc) >= FATAL,
                f"the {name} alone tells the classes apart (AUC {max(auc, 1 - auc):.2f}, more in {more!r}); vary it in "
                "both.", _extreme(values, data.target == int(auc > 0.5)),
            )  # fmt: skip


def _count(mark: str, text: str) -> float:
    return text.count(mark)


def _extreme(values: NDArray[Any], inside: NDArray[Any]) -> tuple[int, ...]:
    """Rows of a class that have more than any median text of the other."""
    return _rows(np.flatnonzero(inside & (values > np.median(values[~inside]))))


def _words(data: Bunch) -> Iterator[Finding]:
    """Single words that stand in most texts of one class and in few of the other."""
    vectorizer = CountVectorizer(binary=True, token_pattern=r"(?u)\b\w[\w']*\b")  # noqa: S106
    if not any(re.search(r"\w", text) for text in data.data):
        return
    present = vectorizer.fit_transform(data.data).toarray().astype(bool)
    shares = [present[data.target == side].mean(axis=0) for side in (0, 1)]
    telling = (1 + np.abs(shares[1] - shares[0])) / 2  # balanced accuracy of guessing by the word
    for place in np.argsort(-telling):
        if telling[place] < NOTABLE:
            return
        side = int(shares[1][place] > shares[0][place])
        word, name = vectorizer.get_feature_names_out()[place], str(data.target_names[side])
        yield Finding(
            "leak", bool(telling[place] >= FATAL),
            f"the word {word!r} alone tells {telling[place]:.0%} of the texts apart (it stands in "
            f"{shares[side][place]:.0%} of {name!r}, {shares[1 - side][place]:.0%} of the other); use it "
            "in both.", _rows(np.flatnonzero(present[:, place] & (data.target == side))),
        )  # fmt: skip


def _too_long(data: Bunch, model: LanguageModel) -> Iterator[Finding]:
    sequences = model.encode(data.data, check_length=False)
    rows = [index for index, sequence in enumerate(sequences) if len(sequence) > model.context_length]
    if rows:
        yield Finding(
            "too long", True,
            f"{len(rows)} prompts are longer than the {model.context_length} tokens that {model.name or 'the model'} "
            "takes; shorten them.", _rows(rows),
        )  # fmt: skip
