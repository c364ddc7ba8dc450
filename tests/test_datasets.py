"""Contrast sets: the shipped ones keep their promises, others are checked before use."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from steerkit.datasets import load_contrast, load_expertise
from steerkit.exceptions import ContrastSetError


def test_expertise_has_pairs_enough_and_other_domains_in_its_test() -> None:
    train, test = load_expertise(subset="train"), load_expertise(subset="test")
    assert min(np.bincount(train.target)) >= 120
    assert min(np.bincount(test.target)) >= 40
    assert not set(train.groups) & set(test.groups)
    assert len(set(train.groups)) >= 8
    assert list(train.target_names) == list(test.target_names) == ["novice", "expert"]
    assert len(set(train.data) | set(test.data)) == len(train.data) + len(test.data)


def test_every_domain_holds_both_classes_equally() -> None:
    for subset in ("train", "test", "heldout"):
        bunch = load_expertise(subset=subset)
        for group in set(bunch.groups):
            assert np.bincount(bunch.target[bunch.groups == group]).tolist()[0] * 2 == (bunch.groups == group).sum()


def test_no_single_word_gives_the_class_away() -> None:
    """The best word of the training half, used as a rule on the test half, is far from reading the class."""
    from sklearn.feature_extraction.text import CountVectorizer

    train, test = load_expertise(subset="train"), load_expertise(subset="test")
    words = CountVectorizer(binary=True).fit(train.data)
    seen, unseen = words.transform(train.data).toarray(), words.transform(test.data).toarray()
    agreement = np.abs((seen == train.target[:, None]).mean(axis=0) - 0.5)
    best = agreement.argmax()
    assert agreement[best] < 0.2
    assert abs((unseen[:, best] == test.target).mean() - 0.5) < 0.2


def test_the_article_has_its_ten_prompts() -> None:
    article = load_expertise(subset="article")
    assert np.bincount(article.target).tolist() == [5, 5]
    assert "From my graduate coursework in neuroscience, how do nerves transmit information so quickly?" in article.data


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_csv_and_jsonl_load_alike(tmp_path: Path, suffix: str) -> None:
    rows = [("say it, \nplain", "plain", "a"), ("state “it”", "formal", "b"), ("hm", "plain", "b")]
    path = tmp_path / f"set.{suffix}"
    if suffix == "csv":
        path.write_text("group,text,label,more\n" + "".join(f'{g},"{t}",{c},x\n' for t, c, g in rows), encoding="utf-8")
    else:
        lines = [json.dumps({"text": text, "label": label, "group": group}) for text, label, group in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
    bunch = load_contrast(path)
    assert bunch.data == [text for text, _, _ in rows]
    assert bunch.target.tolist() == [1, 0, 1]
    assert bunch.target_names.tolist() == ["formal", "plain"]
    assert load_contrast(path, labels=("plain", "formal")).target.tolist() == [0, 1, 0]
    with pytest.raises(ContrastSetError, match=re.escape("the labels ['formal', 'plain'], ['a', 'b'] were expected")):
        load_contrast(path, labels=("a", "b"))
    assert bunch.groups.tolist() == ["a", "b", "b"]


def test_files_of_spreadsheets_and_odd_line_ends_load(tmp_path: Path) -> None:
    path = tmp_path / "set.CSV"
    path.write_bytes("\ufefftext,label\r\none\u2028line,0\r\nb,1\r\n".encode())
    assert load_contrast(path, labels=("1", "0")).data == ["one\u2028line", "b"]
    assert load_contrast(path).target.tolist() == [0, 1]
    (tmp_path / "set.jsonl").write_text('{"text": "a", "label": 0, "group": 0}\n{"text": "b", "label": 1, "group": 1}')
    assert load_contrast(tmp_path / "set.jsonl").groups.tolist() == ["0", "1"]
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ContrastSetError, match=re.escape("folder.csv cannot be read (Is a directory); pass a file.")):
        load_contrast(tmp_path / "folder.csv")


def test_groups_are_optional(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    path.write_text("text,label\na,0\nb,1\n")
    assert load_contrast(path).groups is None


def test_white_space_around_labels_and_headers_means_nothing(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    path.write_text("Text, Label\na,x\nb,x \nc,y\n")
    assert load_contrast(path).target.tolist() == [0, 0, 1]


def test_three_labels_are_three_classes(tmp_path: Path) -> None:
    path = tmp_path / "moods.csv"
    path.write_text("text,label\na,sad\nb,glad\nc,calm\nd,calm\n")
    moods = load_contrast(path)
    assert moods.target.tolist() == [2, 1, 0, 0]
    assert moods.target_names.tolist() == ["calm", "glad", "sad"]
    assert moods.DESCR == "moods.csv: 2 texts calm, 1 texts glad, 1 texts sad"
    assert load_contrast(path, labels=("sad", "calm", "glad")).target.tolist() == [0, 2, 1, 1]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "text,label\n", "a.csv has 0 labels (none), at least two were expected; check the column."),
        ("a.csv", "text,label\na,x\nb,x\n", "a.csv has 1 labels ('x'), at least two were expected; check the column."),
        (
            "a.csv",
            "text,label\na,x\n ,y\n",
            "the text of row 2 of {path} is blank or no string; fill it or drop the row.",
        ),
        (
            "a.csv",
            "prompt,label\na,x\n",
            "{path} has the columns ['prompt', 'label'], 'text' and 'label' were expected, with commas",
        ),
        ("a.csv", "text,label,group\na,x,g\nb,y,\n", "row 2 of {path} has no group while others have; fill it in."),
        ("a.csv", 'text,label\n"a,x\n', "{path} is damaged (unexpected end of data); mend it and save it as UTF-8."),
        ("a.csv", "text,label\na,x\nb\n", "row 2 of {path} has no label; every row needs text and label."),
        (
            "a.jsonl",
            '{"text": "a", "label": 0}\n{"text": 3, "label": 1}',
            "the text of row 2 of {path} is blank or no string",
        ),
        (
            "a.csv",
            "label,text\nx,Hello, you\ny,b\n",
            "row 1 of {path} has more fields than the header; put texts with commas in quotes.",
        ),
        (
            "a.jsonl",
            '{"text": "a"',
            "line 1 of {path} is damaged (Expecting ',' delimiter: line 1 column 13 (char 12)); mend",
        ),
        ("a.jsonl", "\n[1]", "line 2 of {path} is no JSON object; write one object per line."),
        ("a.txt", "a", "{path} is no .csv or .jsonl file; save the contrast set as one of them."),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: str, expected: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ContrastSetError, match=re.escape(expected.format(path=path))):
        load_contrast(path)


def test_long_texts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"text,label\n{'a' * 200_000},x\nb,y\n")
    assert len(load_contrast(path).data[0]) == 200_000


def test_missing_files_and_subsets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ContrastSetError, match=re.escape("nowhere.csv does not exist; check the path.")):
        load_contrast(tmp_path / "nowhere.csv")
    expected = "subset='all' is not known; pass one of 'train', 'test', 'heldout', 'article'."
    with pytest.raises(ContrastSetError, match=f"^{re.escape(expected)}$"):
        load_expertise(subset="all")
