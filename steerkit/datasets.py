"""Contrast sets: texts of two classes, with groups, as scikit-learn ``Bunch``es."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
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
    return load_contrast(expertise_path(subset), labels=("novice", "expert"))


def expertise_path(subset: str) -> str:
    """Return the file of a subset of `load_expertise`."""
    if subset not in EXPERTISE:
        raise ContrastSetError(f"subset={subset!r} is not known; pass one of {', '.join(map(repr, EXPERTISE))}.")
    return str(files("steerkit.builtin").joinpath("expertise", f"{subset}.csv"))


def load_contrast(path: str | Path, *, labels: Sequence[str] | None = None) -> Bunch:
    """Load a contrast set from a CSV file with a header, or from a JSONL file.

    Parameters
    ----------
    path : str or Path
        Columns ``text``, ``label`` (two distinct values or more) and, optionally, ``group``; others are ignored.
    labels : sequence of str, optional
        The labels in order: the direction of two points from the first to the second. Default: sorted, as in
        scikit-learn.

    Returns
    -------
    Bunch
        ``data`` (list of str), ``target`` (0, 1, ...), ``target_names`` (the labels in order), ``groups`` (array of
        str, or None), ``filename``, ``DESCR``.

    Raises
    ------
    ContrastSetError
        The file is missing or damaged, a text or label is empty, or there are fewer than two labels.
    """
    path = Path(path)
    rows = _rows(path)
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise ContrastSetError(
                f"row {number} of {path} has more fields than the header; put texts with commas in quotes."
            )
        if missing := [column for column in ("text", "label") if row.get(column) in (None, "")]:
            raise ContrastSetError(
                f"row {number} of {path} has no {' and no '.join(missing)}; every row needs text and label."
            )
        if not isinstance(row["label"], str | int) and not (
            isinstance(row["label"], float) and row["label"].is_integer()
        ):
            raise ContrastSetError(f"the label of row {number} of {path} is {row['label']!r}; name a class.")
        if not isinstance(row["text"], str) or not row["text"].strip():
            raise ContrastSetError(
                f"the text of row {number} of {path} is blank or no string; fill it or drop the row."
            )
    given = [str(row["label"]).strip() for row in rows]
    names = sorted(set(given))
    if labels is not None:
        if sorted(map(str, labels)) != names:
            raise ContrastSetError(f"{path} has the labels {names}, {list(labels)} were expected; check the column.")
        names = list(map(str, labels))
    if len(names) < 2:
        found = ", ".join(map(repr, names)) or "none"
        raise ContrastSetError(
            f"{path} has {len(names)} labels ({found}), at least two were expected; check the column."
        )
    groups = [None if row.get("group") in (None, "") else str(row["group"]) for row in rows]
    grouped = any(group is not None for group in groups)
    if grouped and None in groups:
        raise ContrastSetError(f"row {groups.index(None) + 1} of {path} has no group while others have; fill it in.")
    return Bunch(
        data=[row["text"] for row in rows],
        target=np.array([names.index(label) for label in given]),
        target_names=np.array(names),
        groups=np.array(groups) if grouped else None,
        filename=str(path),
        DESCR=f"{path.name}: " + ", ".join(f"{given.count(name)} texts {name}" for name in names),
    )


def bag_of_words_accuracy(train: Bunch, test: Bunch) -> float:
    """Return the test accuracy of a logistic regression on word counts: what a probe must beat to have read more."""
    pipeline = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))
    return float(pipeline.fit(train.data, train.target).score(test.data, test.target))


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")  # with the mark that spreadsheets put in front, or without
        if path.suffix.lower() == ".jsonl":
            rows = [_object(line, number, path) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        elif path.suffix.lower() == ".csv":
            csv.field_size_limit(sys.maxsize)  # texts may be longer than the 128 KiB that csv expects
            reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
            if not {"text", "label"} <= {*reader.fieldnames}:
                raise ContrastSetError(
                    f"{path} has the columns {reader.fieldnames}, 'text' and 'label' were expected, with commas "
                    "between; name them so in its first line."
                )
            rows = list(reader)
        else:
            raise ContrastSetError(f"{path} is no .csv or .jsonl file; save the contrast set as one of them.")
    except FileNotFoundError:
        raise ContrastSetError(f"{path} does not exist; check the path.") from None
    except OSError as error:
        raise ContrastSetError(f"{path} cannot be read ({error.strerror}); pass a file.") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ContrastSetError(f"{path} is damaged ({error}); mend it and save it as UTF-8.") from error
    return rows


def _object(line: str, number: int, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ContrastSetError(f"line {number} of {path} is damaged ({error}); mend it.") from error
    if not isinstance(row, dict):
        raise ContrastSetError(f"line {number} of {path} is no JSON object; write one object per line.")
    return row
