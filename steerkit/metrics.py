"""What generated text is measured by: objects with a name, a unit, and a word on what they cannot see.

All of them read finished text, with the **unsteered** model where they need one: reading under the hook would be
circular. A function of a prompt and an answer is a metric too.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from steerkit.exceptions import InvalidInputError
from steerkit.language_model import LanguageModel
from steerkit.likelihood import Floats, question_likelihoods
from steerkit.prompts import Prompt
from steerkit.reading import EffectReader

BABBLE = 5.0
"""At this many times the perplexity of the unsteered answer, an answer is no longer taken for one."""


@dataclass(frozen=True)
class Answers:
    """Answers beside their prompts and the unsteered answers to these; three lists of one length."""

    prompts: Sequence[Prompt]
    texts: Sequence[str]
    unsteered: Sequence[str]


class Metric(ABC):
    """A number for each answer.

    Attributes
    ----------
    name : str
        Of the column in `Sweep.cells`.
    greater_is_better : bool or None
        None where neither end is better.
    unit : str
    """

    name: str
    greater_is_better: bool | None
    unit: str

    @abstractmethod
    def measure(self, answers: Answers) -> Floats:
        """Return ``(n_answers,)``; NaN for an answer that has none."""


class Effect(Metric):
    """How far the answer moved towards ``classes_[1]``: its reading minus that of the unsteered answer.

    It cannot see whether a text is true or on topic, and it reads what *this* model says to either class, which need
    not be what a person would call by that name.
    """

    name = "effect"
    greater_is_better = None
    unit = "alpha"

    def __init__(self, reader: EffectReader, *, name: str = "effect") -> None:
        self.reader = reader
        self.name = name

    def measure(self, answers: Answers) -> Floats:
        """Read both texts of each answer."""
        return self.reader.read(answers.texts) - self.reader.read(answers.unsteered)


class _OfQuestions(Metric):
    """What is told by how likely an answer is under its own question and under others."""

    def __init__(
        self, model: str | LanguageModel, candidates: Sequence[Prompt] = (), *, name: str | None = None
    ) -> None:
        self.model = LanguageModel.of(model)
        self.candidates = list(candidates)
        self.name = name or type(self).name

    def likelihoods(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> tuple[Floats, Floats]:
        """Nats per token under the own question and under the best other candidate."""
        candidates = list({str(prompt): prompt for prompt in [*self.candidates, *prompts]}.values())
        if len(candidates) < 2:
            raise InvalidInputError(
                f"{len(candidates)} question came, at least two were expected; pass others as candidates."
            )
        return question_likelihoods(self.model, prompts, texts, candidates)

    def compare(self, answers: Answers) -> tuple[Floats, Floats]:
        """Return the margin of each answer, and its rise in nats per token over the unsteered one."""
        own, best_other = self.likelihoods(answers.prompts, answers.texts)
        unsteered, _ = self.likelihoods(answers.prompts, answers.unsteered)
        return own - best_other, unsteered - own


class Margin(_OfQuestions):
    """By how much the answer suits its own question better than the best of the other candidates.

    It cannot see false statements that stay on topic; babble on the topic has a margin too.
    """

    name = "margin"
    greater_is_better = True
    unit = "nats per token"

    def measure(self, answers: Answers) -> Floats:
        """Compare the questions."""
        own, best_other = self.likelihoods(answers.prompts, answers.texts)
        return own - best_other


class Fluency(_OfQuestions):
    """How much less likely the answer is than the unsteered one: the log of the ratio of their perplexities.

    It cannot see what is fluent and wrong, and a fluent answer in a style that the model seldom uses counts as less
    fluent. Endless repetition is likely, so read it beside ``distinct_2``.
    """

    name = "nll_rise"
    greater_is_better = False
    unit = "nats per token"

    def measure(self, answers: Answers) -> Floats:
        """Compare the answers."""
        return self.compare(answers)[1]


class Preservation(_OfQuestions):
    """1 if the unsteered model still finds the question that the answer answers, and no babble, else 0.

    It cannot see false statements that stay on topic.
    """

    name = "preserved"
    greater_is_better = True
    unit = "share"

    def measure(self, answers: Answers) -> Floats:
        """Combine margin and fluency."""
        return preserved(*self.compare(answers))


class Distinct2(Metric):
    """The share of word pairs that occur in the answer for the first time; low: it repeats itself.

    It cannot see nonsense that does not repeat itself, and falls with length by itself.
    """

    name = "distinct_2"
    greater_is_better = True
    unit = "share"

    def measure(self, answers: Answers) -> Floats:
        """Count pairs."""
        return np.array([distinct_2(text) for text in answers.texts])


class Length(Metric):
    """The number of words. It cannot see what they say."""

    name = "length"
    greater_is_better = None
    unit = "words"

    def measure(self, answers: Answers) -> Floats:
        """Count words."""
        return np.array([float(n_words(text)) for text in answers.texts])


class Function(Metric):
    """A function of a prompt and an answer, under its own name."""

    greater_is_better = None
    unit = ""

    def __init__(self, function: Callable[[Any, str], float], name: str | None = None) -> None:
        self.function = function
        self.name = str(name or getattr(function, "__name__", type(function).__name__))

    def measure(self, answers: Answers) -> Floats:
        """Call the function for each answer."""
        values = [self.function(p, text) for p, text in zip(answers.prompts, answers.texts, strict=True)]
        try:
            return np.array(values, dtype=np.float64).reshape(len(values))
        except (TypeError, ValueError):
            raise InvalidInputError(
                f"metric {self.name!r} returned {values[0]!r}, a number for each answer was expected; mend it."
            ) from None


KEYS = ("direction", "layer", "alpha", "prompt", "text")
"""The columns of cells that are no metrics."""
METRICS: dict[str, type[Metric]] = {
    metric.name: metric for metric in (Effect, Preservation, Margin, Fluency, Distinct2, Length)
}
"""What every sweep measures, by column."""


def as_metrics(metrics: Sequence[Metric | Callable[[Any, str], float]]) -> list[Metric]:
    """Return metrics, and those that functions make, if each has a name of its own."""
    chosen = [as_metric(metric) for metric in metrics]
    names = [metric.name for metric in chosen]
    if len({*names}) < len(names):
        raise InvalidInputError(f"metrics {', '.join(names)} have a name twice; call one something else.")
    return chosen


def as_metric(metric: Metric | Callable[[Any, str], float]) -> Metric:
    """Return a metric, or the metric that a function makes, if it has a name for a column."""
    if not isinstance(metric, Metric):
        if isinstance(metric, type) or not callable(metric):
            raise InvalidInputError(
                f"metric={metric!r} is no Metric and no function; pass def f(prompt, answer) -> float."
            )
        metric = Function(metric)
    if not metric.name.isidentifier() or metric.name in (*KEYS, *METRICS):
        raise InvalidInputError(
            f"a metric cannot be called {metric.name!r}; pass a named function, or Function(function, 'name')."
        )
    return metric


def preserved(margin: Any, nll_rise: Any) -> Floats:
    """Return 1 where the question is found and the answer is no babble, else 0.

    Scraps of words on the topic still find their question; they preserve nothing.
    """
    return np.asarray((np.asarray(margin) > 0) & (np.asarray(nll_rise) < np.log(BABBLE)), dtype=np.float64)


def distinct_2(text: str) -> float:
    """Return the share of word pairs in a text that occur in it for the first time."""
    words = text.lower().split()
    pairs = list(pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def n_words(text: str) -> int:
    """Return the number of words in a text."""
    return len(text.split())
