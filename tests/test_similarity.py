"""Similarity is the cosine of embeddings of the texts, and of nothing else."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from steerkit import similarity
from steerkit.exceptions import InvalidInputError, MissingExtraError, NonFiniteError
from steerkit.metrics import Answers
from steerkit.similarity import Similarity
from tests.models import TEXTS, tiny_model, tiny_tokenizer

UNSTEERED = ["the star is light", "music", "star", "what is heat ?"]
STEERED = ["the star is not light", "music", "", "i teach the law of heat to a novice , always ."]


class Table:
    """An encoder that looks texts up, and remembers what it was asked."""

    def __init__(self, **vectors: Any) -> None:
        self.vectors = vectors
        self.calls: list[list[str]] = []

    def encode(self, texts: list[str]) -> Any:
        self.calls.append(texts)
        return [self.vectors[text] for text in texts]


def answers(texts: list[str], unsteered: list[str]) -> Answers:
    return Answers(["why ?"] * len(texts), texts, unsteered)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sentence encoder with random weights."""
    root = tmp_path_factory.mktemp("encoder")
    tiny_model("llama").model.save_pretrained(root / "transformer")
    tiny_tokenizer().save_pretrained(root / "transformer")
    words = Transformer(str(root / "transformer"))
    SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension())], device="cpu").save(
        str(root / "saved")
    )
    return str(root / "saved")


def test_it_is_the_cosine_of_a_sentence_transformer(folder: str) -> None:
    measured = Similarity(folder).measure(answers(STEERED, UNSTEERED))
    encoder = SentenceTransformer(folder)
    expected = np.diag(encoder.similarity(encoder.encode(STEERED), encoder.encode(UNSTEERED)).numpy()).copy()
    expected[2] = 0
    np.testing.assert_allclose(measured, expected, atol=1e-5)
    assert measured.dtype == np.float64
    assert measured[1] == pytest.approx(1)
    assert -1 <= measured[0] < 0.999


def test_the_unsteered_answer_has_1(folder: str) -> None:
    np.testing.assert_allclose(Similarity(folder).measure(answers(TEXTS, TEXTS)), 1, rtol=1e-12)


def test_order_and_company_of_texts_do_not_matter(folder: str) -> None:
    metric = Similarity(SentenceTransformer(folder))
    together = metric.measure(answers(STEERED, UNSTEERED))
    turned = metric.measure(answers(STEERED[::-1], UNSTEERED[::-1]))[::-1]
    alone = [metric.measure(answers([a], [b]))[0] for a, b in zip(STEERED, UNSTEERED, strict=True)]
    np.testing.assert_allclose(turned, together, atol=1e-5)
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_it_travels_to_another_process(folder: str) -> None:
    metric = Similarity(Path(folder))
    once = metric.measure(answers(STEERED, UNSTEERED))
    there = pickle.loads(pickle.dumps(metric))  # noqa: S301
    np.testing.assert_allclose(there.measure(answers(STEERED, UNSTEERED)), once, atol=1e-6)


def test_each_distinct_text_is_embedded_once_in_one_call() -> None:
    encoder = Table(a=[1, 0], b=[0, 2], c=[3, 3])
    measured = Similarity(encoder).measure(answers(["a", "b", "c", "a"], ["a", "a", "b", "c"]))
    np.testing.assert_allclose(measured, [1, 0, 0.5**0.5, 0.5**0.5])
    assert [sorted(call) for call in encoder.calls] == [["a", "b", "c"]]


def test_what_has_no_text_or_no_length_has_0() -> None:
    encoder = Table(a=[1, 0], zero=[0, 0])
    texts, unsteered = ["", "a", " \n", "zero", "a", "zero"], ["a", "", "", "a", "zero", "zero"]
    assert Similarity(encoder).measure(answers(texts, unsteered)).tolist() == [0] * 6
    assert encoder.calls == [["a", "zero"]]
    assert Similarity(encoder).measure(answers([""], [""])).tolist() == [0]
    assert Similarity(encoder).measure(answers([], [])).tolist() == []
    assert len(encoder.calls) == 1


def test_opposites_have_minus_1_and_nothing_is_beyond() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 7))  # of some, rounding takes the cosine beyond 1
    encoder = Table(**{f"{sign}{row}": sign * vector for row, vector in enumerate(vectors) for sign in (1, -1)})
    names = [f"1{row}" for row in range(50)]
    measured = Similarity(encoder).measure(answers(names * 2, [*names, *(f"-{name}" for name in names)]))
    np.testing.assert_allclose(measured, [1] * 50 + [-1] * 50)
    assert (np.abs(measured) <= 1).all()


@pytest.mark.parametrize(
    ("encoder", "error", "said"),
    [
        (3, InvalidInputError, "encoder=3 is no name or folder and has no encode; pass the name of"),
        (Table(a=1.0, b=1.0), InvalidInputError, "the encoder returned shape (2,) for 2 texts, a row for each was"),
        (Table(a=[np.nan], b=[1.0]), NonFiniteError, "the encoder returned NaN or Inf, finite numbers were expected"),
    ],
)
def test_what_cannot_be_used_is_said(encoder: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(said)}"):
        Similarity(encoder).measure(answers(["a"], ["b"]))


def test_a_folder_without_an_encoder_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"^encoder='.*' cannot be loaded \(.+\); pass the name or folder of a"):
        Similarity(str(tmp_path)).measure(answers(["a"], ["b"]))


def test_without_sentence_transformers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "find_spec", lambda _: None)
    expected = r"^similarity needs sentence-transformers; pip install 'steerkit-estimator\[similarity\]'\.$"
    with pytest.raises(MissingExtraError, match=expected):
        Similarity("anything")
    assert Similarity(Table(a=[1])).measure(answers(["a"], ["a"])).tolist() == [1]


def test_it_is_a_metric() -> None:
    metric = Similarity(Table(), name="meaning")
    assert (metric.name, metric.greater_is_better, metric.unit) == ("meaning", True, "cosine")
    assert Similarity(Table()).name == "similarity"
