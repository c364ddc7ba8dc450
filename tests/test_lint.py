"""`lint_contrast` finds what makes a contrast set easier than it seems, and nothing in a clean one."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.utils import Bunch
from typer.testing import CliRunner

from steerkit.cli import app
from steerkit.datasets import load_expertise
from steerkit.exceptions import ContrastSetError, InvalidInputError
from steerkit.lint import lint_contrast
from tests.models import tiny


def bunch(texts: list[str], target: list[int], groups: list[str] | None = None) -> Bunch:
    return Bunch(
        data=texts,
        target=np.array(target),
        target_names=np.array(["sad", "glad"]),
        groups=None if groups is None else np.array(groups),
    )


def mixed(n: int = 40) -> tuple[list[str], list[int]]:
    """Texts of random words: nothing tells the classes apart."""
    generator = np.random.default_rng(0)
    words = [f"w{i}" for i in range(30)]
    return [" ".join(generator.choice(words, 8)) for _ in range(n)], [i % 2 for i in range(n)]


def test_clean_sets_have_no_findings() -> None:
    texts, target = mixed()
    assert lint_contrast(bunch(texts, target)) == []
    for subset in ("train", "test", "heldout"):
        assert not [finding for finding in lint_contrast(load_expertise(subset=subset)) if finding.fatal]
    assert not lint_contrast(load_expertise(subset="train"), load_expertise(subset="test"), model="builtin:tutor")


def only(findings: list[Any], kind: str) -> Any:
    (found,) = [finding for finding in findings if finding.kind == kind]
    return found


def test_duplicates_across_and_within_classes() -> None:
    texts, target = mixed()
    texts[1] = texts[0].upper() + " ..."  # the same words, of the other class
    alike = only(lint_contrast(bunch(texts, target)), "duplicate")
    assert not alike.fatal
    assert alike.rows == (1, 2)
    texts[1] = texts[0].replace(" ", "  ")
    across = only(lint_contrast(bunch(texts, target)), "duplicate")
    assert across.fatal
    assert across.rows == (1, 2)
    texts, target = mixed()
    texts[2] = texts[0]
    within = only(lint_contrast(bunch(texts, target)), "duplicate")
    assert not within.fatal
    assert within.rows == (1, 3)


def test_texts_shared_by_train_and_test() -> None:
    texts, target = mixed()
    found = only(lint_contrast(bunch(texts, target), bunch(["new", texts[5]], [0, 1])), "train-test overlap")
    assert found.fatal
    assert found.rows == (2,)
    assert found.message == "1 test texts stand in the training set too, so the test accuracy is no test; drop them."


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text + " w1 w2 w3 w4 w5 w6", "the number of words alone tells the classes apart"),
        (lambda text: text + "!", "the number of '!' alone tells the classes apart (AUC 1.00, more in 'glad')"),
        (str.upper, "the share of capital letters alone tells the classes apart (AUC 1.00, more in 'glad')"),
        (lambda text: text + " happy", "the word 'happy' alone tells 100% of the texts apart (it stands in 100% of"),
    ],
)  # fmt: skip
def test_leaks(change: Any, expected: str) -> None:
    texts, target = mixed()
    changed = [change(text) if side else text for text, side in zip(texts, target, strict=True)]
    found = [finding for finding in lint_contrast(bunch(changed, target)) if finding.message.startswith(expected)]
    assert len(found) == 1
    assert found[0].fatal
    assert set(found[0].rows) <= set(range(2, 41, 2))


def test_imbalance_is_worse_the_larger_it_is() -> None:
    texts, _ = mixed(80)
    one_to_three = [int(i % 4 == 0) for i in range(80)]
    assert not only(lint_contrast(bunch(texts, one_to_three)), "imbalance").fatal
    rare = [int(i < 3) for i in range(80)]
    found = only(lint_contrast(bunch(texts, rare)), "imbalance")
    assert found.fatal
    assert found.rows == (1, 2, 3)


def test_groups_that_hold_one_class() -> None:
    texts, target = mixed()
    some = ["a" if side == 0 and i < 20 else "b" for i, side in enumerate(target)]
    assert not only(lint_contrast(bunch(texts, target, some)), "one-sided group").fatal
    assert only(lint_contrast(bunch(texts, target, ["ab"[side] for side in target])), "one-sided group").fatal


def test_prompts_longer_than_the_context() -> None:
    found = only(lint_contrast(bunch(["what is it", "the " * 200], [0, 1]), model=tiny("llama")), "too long")
    assert found.fatal
    assert found.rows == (2,)


def test_the_command_exits_with_1_where_accuracies_would_mean_nothing(tmp_path: Path) -> None:
    texts, target = mixed()
    path = tmp_path / "prompts.csv"
    path.write_text("text,label\n" + "".join(f"{text},{side}\n" for text, side in zip(texts, target, strict=True)))
    result = CliRunner().invoke(app, ["lint", str(path)])
    assert (result.exit_code, result.output) == (0, f"{path}: nothing found in 40 texts.\n")
    path.write_text(path.read_text() + f"{texts[0]},1\n")
    result = CliRunner().invoke(app, ["lint", str(path)])
    assert result.exit_code == 1
    assert result.output.startswith("error: duplicate: 2 rows have a text that stands in several classes,")
    assert "(rows 1, 41)" in result.output


def test_each_of_three_classes_is_looked_at_against_the_others() -> None:
    texts = [
        f"{opening} number {i} {word}" for i, word in enumerate(["one", "two", "three", "four"]) for opening in "abc"
    ]
    moods = Bunch(data=texts, target=np.arange(12) % 3, target_names=np.array(["x", "y", "z"]), groups=None)
    found = lint_contrast(moods)
    assert [finding.message.split(";")[0] for finding in found if finding.fatal] == [
        f"the word {word!r} alone tells 100% of the texts apart (it stands in 100% of {name!r}, 0% of the other)"
        for word, name in zip("abc", "xyz", strict=True)
    ]
    assert found[0].rows == (1, 4, 7, 10)


def test_texts_that_differ_in_marks_or_case_are_no_duplicates() -> None:
    texts, target = mixed()
    for one, other in (("5 > 3", "5 < 3"), ("You are right.", "You are right?"), ("STOP it", "stop it")):
        texts, target = [*texts, one, other], [*target, 0, 1]
    assert not [finding for finding in lint_contrast(bunch(texts, target)) if finding.fatal]


def test_any_bunch_is_looked_at_and_what_is_none_is_refused() -> None:
    texts, target = mixed()
    assert lint_contrast(Bunch(data=texts, target=target)) == []
    with pytest.raises(InvalidInputError, match=r"^a str came, a Bunch with data and target was expected; read a file"):
        lint_contrast("prompts.csv")
    other = bunch(["a b", "c d"], [0, 1])
    other.target_names = np.array(["glad", "mad"])
    with pytest.raises(ContrastSetError, match=re.escape("test set has the labels ['glad', 'mad'], ['sad', 'glad']")):
        lint_contrast(bunch(texts, target), other)
