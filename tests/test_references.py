"""The likelihood of reference answers under steering is that of steering one at a time."""

import re

import numpy as np
import pytest

from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import ContrastSetError
from steerkit.language_model import LanguageModel
from steerkit.likelihood import log_likelihoods
from steerkit.references import sweep_references
from tests.models import LABELS, TEXTS

PROMPTS = TEXTS[:3]
REFERENCES = {0: ["one thing", "two", "a third one"], 1: ["another", "more of it", "the last"]}


def test_it_is_the_likelihood_under_one_steered_model_after_the_other(model: LanguageModel) -> None:
    estimator = SteeringEstimator(model, learner="mean-diff", cv=2).fit(TEXTS, LABELS)
    table = sweep_references(estimator, PROMPTS, REFERENCES, layers=[1, 3], alphas=[-0.5, 1.0], batch_rows=4)
    assert table["direction"].value_counts().to_dict() == {"fitted": 12, "random": 12, "unsteered": 3}
    nats = [np.divide(*log_likelihoods(model, PROMPTS, REFERENCES[side])) for side in (0, 1)]
    bare = table[table["direction"] == "unsteered"]["ratio"]
    np.testing.assert_allclose(bare, nats[1] - nats[0], rtol=1e-6, atol=1e-9)
    cells = table[(table["direction"] == "fitted") & (table["layer"] == 3) & (table["alpha"] == 1.0)]
    loss = []
    for place, prompt in enumerate(PROMPTS):
        sides = []
        for side in (0, 1):
            (sequence,), (head,) = model.encode([prompt], [REFERENCES[side][place]]), model.encode([prompt])
            ids, _ = model.pad([sequence])
            with estimator.export(1.0, layer=3).steering() as steered:
                logits = steered(input_ids=ids).logits[0].detach().double()
            chosen = (logits[:-1] - logits[:-1].logsumexp(dim=1, keepdim=True))[range(len(sequence) - 1), sequence[1:]]
            sides.append(float(chosen[len(head) - 1 :].mean()))
        loss.append(sides[1] - sides[0])
    np.testing.assert_allclose(cells["ratio"], loss, rtol=1e-5, atol=1e-7)


def test_references_are_one_answer_per_prompt_and_class(fitted: SteeringEstimator) -> None:
    with pytest.raises(
        ContrastSetError,
        match=re.escape(
            "references has {'0': 3, '1': 2} answers, 3 for each of ['0', '1'] were expected; pass one per"
        ),
    ):
        sweep_references(fitted, PROMPTS, {**REFERENCES, 1: ["a", "b"]}, alphas=[0.1])
