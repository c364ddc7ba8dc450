"""Contrast sets: texts of two classes, with groups, as scikit-learn ``Bunch``es."""

import csv
import json
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from steerkit.exceptions import ContrastSetError

EXPERTISE = ("train", "test", "heldout", "article")


def load_expertise(*, subset: str = "train") -> Bunch:
    """Load the prompts in which a novice or an expert asks a question.

    Parameters
    ----------
    subset : {"train", "test", "heldout", "article"}
        ``"test"`` has other domains and other phrasings than ``"train"``; the phrasings of ``"heldout"`` were never
        seen by ``builtin:tutor`` either; ``"article"`` has the ten prompts of the guide that steerkit follows.

    Returns
    -------
    Bunch
        See `load_contrast`; ``groups`` are domains.
    """
    if subset not in EXPERTISE:
        raise ContrastSetError(f"subset={subset!r} is not known; pass one of {', '.join(map(repr, EXPERTISE))}.")
    return load_contrast(str(files("steerkit.builtin").joinpath("expertise", f"{subset}.csv")))


def load_contrast(path: str | Path) -> Bunch:
    """Load a contrast set from a CSV file with a header, or from a JSONL file.

    Parameters
    ----------
    path : str or Path
        Columns ``text``, ``label`` (two distinct values) and, optionally, ``group``; others are ignored.

    Returns
    -------
    Bunch
        ``data`` (list of str), ``target`` (0 or 1), ``target_names`` (the two labels; directions point from the
        first to the second), ``groups`` (array of str, or None), ``DESCR``.
        Labels are ordered as their first samples are, except that "positive", "expert" and the like cannot be
        guessed: put a sample of the class to steer away from first.

    Raises
    ------
    ContrastSetError
        The file is missing or damaged, a text is empty, or there are not exactly two labels.
    """
    path = Path(path)
    rows = _rows(path)
    columns = {"text", "label"}
    for number, row in enumerate(rows, start=1):
        if missing := sorted(columns - row.keys()):
            raise ContrastSetError(
                f"row {number} of {path} has no {' and no '.join(map(repr, missing))}; every row needs text and label."
            )
        if not isinstance(row["text"], str) or not row["text"].strip():
            raise ContrastSetError(
                f"the text of row {number} of {path} is empty or no string; fill it or drop the row."
            )
    labels = [str(row["label"]) for row in rows]
    names = list(Counter(labels))  # in the order of their first rows
    if len(names) != 2:
        found = ", ".join(map(repr, names[:5])) or "none"
        raise ContrastSetError(
            f"{path} has {len(names)} labels ({found}), exactly two were expected; check the column."
        )
    groups = [row.get("group") for row in rows]
    if any(groups) and not all(groups):
        raise ContrastSetError(
            f"row {[bool(g) for g in groups].index(False) + 1} of {path} has no group while others have; fill it in."
        )
    return Bunch(
        data=[row["text"] for row in rows],
        target=np.array([names.index(label) for label in labels]),
        target_names=np.array(names),
        groups=np.array(groups, dtype=str) if any(groups) else None,
        DESCR=f"{path.name}: {labels.count(names[0])} texts {names[0]}, {labels.count(names[1])} texts {names[1]}",
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        elif path.suffix == ".csv":
            rows = list(csv.DictReader(text.splitlines(keepends=True), strict=True))
        else:
            raise ContrastSetError(f"{path} is no .csv or .jsonl file; save the contrast set as one of them.")
    except FileNotFoundError:
        raise ContrastSetError(f"{path} does not exist; check the path.") from None
    except (csv.Error, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ContrastSetError(f"{path} is damaged ({error}); save it again as UTF-8.") from error
    if not all(isinstance(row, dict) for row in rows):
        raise ContrastSetError(f"{path} has lines that are no JSON objects; write one object per line.")
    return rows
