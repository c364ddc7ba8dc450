"""Measures of generated text agree with their definitions, however texts are batched."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import ContrastSetError, InvalidInputError, NotFittedError
from steerkit.language_model import LanguageModel
from steerkit.likelihood import log_likelihoods, question_likelihoods
from steerkit.metrics import (
    METRICS,
    Answers,
    Distinct2,
    Effect,
    Fluency,
    Function,
    Length,
    Margin,
    Metric,
    Preservation,
    distinct_2,
)
from steerkit.reading import EffectReader
from steerkit.sweep_results import Sweep
from steerkit.sweeps import sweep
from tests.models import LABELS, TEXTS, tiny

ANSWERS = ["the star is light", "music", "", "i teach the law of heat to a novice , always ."]


def test_log_likelihoods_are_those_of_the_model(model: LanguageModel) -> None:
    sums, counts = log_likelihoods(model, TEXTS[:4], ANSWERS)
    for index in range(4):
        (head,) = model.encode(TEXTS[index : index + 1])
        tail = model.tokenizer(ANSWERS[index], add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            scores = model.model(input_ids=torch.tensor([head + tail])).logits[0].log_softmax(dim=-1)
        expected = sum(float(scores[len(head) + place - 1, token]) for place, token in enumerate(tail))
        assert counts[index] == len(tail)
        np.testing.assert_allclose(sums[index], expected, rtol=1e-5, atol=1e-6)


def test_equal_pairs_have_equal_likelihoods(model: LanguageModel) -> None:
    sums, counts = log_likelihoods(model, [TEXTS[0], TEXTS[1], TEXTS[0]], [ANSWERS[0]] * 3)
    assert sums[0] == sums[2] != sums[1]
    assert counts.tolist() == [4, 4, 4]


def test_an_answer_is_scored_under_its_own_question_and_the_best_other(model: LanguageModel) -> None:
    own, best_other = question_likelihoods(model, TEXTS[:2], ANSWERS[:2], TEXTS[:3])
    for index in range(2):
        sums, counts = log_likelihoods(model, TEXTS[:3], [ANSWERS[index]] * 3)
        others = np.delete(sums, index)
        np.testing.assert_allclose(own[index], sums[index] / counts[0], rtol=1e-6)
        np.testing.assert_allclose(best_other[index], others.max() / counts[0], rtol=1e-6)


def test_an_empty_answer_preserves_nothing_and_reads_as_nothing() -> None:
    model = tiny("llama")
    assert np.isnan(question_likelihoods(model, TEXTS[:1], [""], TEXTS)).all()
    gpt2 = tiny("gpt2")
    gpt2.tokenizer.backend_tokenizer.post_processor = None  # nothing is put before the text, as in GPT-2
    assert EffectReader(gpt2, max_new_tokens=6).fit(TEXTS, LABELS).read(["", "star"])[0] == 0


def test_reading_is_linear_in_nothing_but_the_text(model: LanguageModel) -> None:
    """Order and company of texts do not matter."""
    reader = EffectReader(model, max_new_tokens=6).fit(TEXTS, LABELS)
    together = reader.read(ANSWERS)
    alone = np.concatenate([reader.read([answer]) for answer in ANSWERS])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-6)
    assert 0 <= reader.accuracy_ <= 1
    assert 0 <= reader.layer_ <= 3


def test_a_reader_needs_answers_to_read() -> None:
    with pytest.raises(
        NotFittedError, match="EffectReader is not fitted; call fit with prompts that the direction has"
    ):
        EffectReader(tiny("llama")).read(["star"])
    silent = tiny("gpt2")
    silent.tokenizer.backend_tokenizer.post_processor = None
    with torch.no_grad():
        silent.model.transformer.ln_f.bias += 100 * silent.model.lm_head.weight[2]
    with pytest.raises(ContrastSetError, match="the model answers 12 of 12 held-out prompts with nothing,"):
        EffectReader(silent, max_new_tokens=4).fit(TEXTS, LABELS)


@pytest.mark.parametrize(
    ("text", "share"), [("", 0.0), ("one", 0.0), ("one two three", 1.0), ("a b a b a b", 0.4), ("A b a B", 2 / 3)]
)
def test_distinct_2_is_the_share_of_new_word_pairs(text: str, share: float) -> None:
    assert distinct_2(text) == pytest.approx(share)


def test_a_sweep_measures_what_its_metrics_measure(model: LanguageModel) -> None:
    estimator = SteeringEstimator(model, learner="mean-diff", cv=2).fit(TEXTS, LABELS)
    reader = EffectReader(model, max_new_tokens=6).fit(TEXTS, LABELS)
    swept = sweep(estimator, TEXTS[:3], reader=reader, layers=[2], alphas=[-0.5, 0.5], max_new_tokens=6)
    bare = swept.cells[swept.cells["direction"] == "unsteered"].set_index("prompt")["text"]
    prompts = swept.cells["prompt"].tolist()
    answers = Answers(prompts, swept.cells["text"].tolist(), bare[prompts].tolist())
    metrics = [
        Effect(reader),
        *(kind(model, TEXTS[:3]) for kind in (Preservation, Margin, Fluency)),
        Distinct2(),
        Length(),
    ]
    assert [metric.name for metric in metrics] == list(METRICS) == swept.metrics
    for metric in metrics:
        expected = swept.cells[metric.name].to_numpy()
        np.testing.assert_allclose(metric.measure(answers), expected, rtol=1e-4, atol=1e-5)
        assert metric.unit
        assert "cannot see" in (type(metric).__doc__ or "")


def praise(_prompt: str, _answer: str) -> Any:
    return "many"


def infinite(_prompt: str, _answer: str) -> float:
    return float("inf")


class Loss(Metric):
    """It cannot see anything."""

    name, greater_is_better, unit = "loss", False, "none"

    def measure(self, answers: Answers) -> Any:
        return np.array([len(text) for text in answers.texts])


def test_less_of_a_loss_is_better(model: LanguageModel, tmp_path: Path) -> None:
    estimator = SteeringEstimator(model, learner="mean-diff", cv=2).fit(TEXTS, LABELS)
    reader = EffectReader(model, max_new_tokens=6).fit(TEXTS, LABELS)
    swept = sweep(estimator, TEXTS[:3], reader=reader, layers=[1, 2], alphas=[-0.5, 0.5], max_new_tokens=6)
    swept.cells["preserved"] = 1.0
    swept = swept.measure(Loss())
    swept.save(tmp_path / "sweep")
    best = Sweep.load(tmp_path / "sweep").best("loss", perplexity=1e9)
    means = swept.means()
    assert best["loss"] == means.loc[means["direction"] == "fitted", "loss"].min()


def vowels(_prompt: str, answer: str) -> float:
    return sum(letter in "aeiou" for letter in answer)


def test_a_function_is_a_metric(model: LanguageModel, tmp_path: Path) -> None:
    estimator = SteeringEstimator(model, learner="mean-diff", cv=2).fit(TEXTS, LABELS)
    reader = EffectReader(model, max_new_tokens=6).fit(TEXTS, LABELS)
    swept = sweep(estimator, TEXTS[:2], reader=reader, layers=[2], alphas=[0.5], max_new_tokens=6, metrics=[vowels])
    assert swept.cells["vowels"].tolist() == [vowels("", text) for text in swept.cells["text"]]
    assert swept.pivot("vowels").shape == (1, 2)
    later = swept.measure(Function(lambda prompt, answer: len(prompt + answer), "size"))
    later.save(tmp_path / "sweep")
    pd.testing.assert_frame_equal(Sweep.load(tmp_path / "sweep").cells, later.cells)
    for wrong, expected in (
        (infinite, "answers, infinite ones among them; return one finite number for each, NaN where there is none."),
        (lambda _prompt, _answer: 1.0, "a metric cannot be called '<lambda>'; pass a named function, or Function("),
        ("vowels", "metric='vowels' is no Metric and no function; pass def f(prompt, answer) -> float."),
        (
            praise,
            "metric 'praise' returned 'many', a number for each answer",
        ),
    ):
        with pytest.raises(InvalidInputError, match=re.escape(expected)):
            swept.measure(wrong)  # type: ignore[arg-type]
    for taken in ("text", "effect"):
        with pytest.raises(InvalidInputError, match=f"a metric cannot be called '{taken}'; pass a named function"):
            swept.measure(Function(vowels, taken))
