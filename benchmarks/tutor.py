"""Claim: the built-in model shows what steering does, and the general metrics of the toolkit tell the truth about it.

``python benchmarks/tutor.py`` prints what was measured beside what is required and exits with 1 if one is missed.
``--model FOLDER`` measures another tutor, such as one trained from another seed. All answers are greedy; unless a
row says otherwise they are about the concepts that never met a persona in training.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin make a busy machine many times slower

import argparse
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tutor's recipe is no part of the installed package

from recipes.tutor import overlap
from recipes.tutor.claims import SIDES, choose
from recipes.tutor.corpus import QUESTIONS, Corpus, Template, sentence
from recipes.tutor.judge import Judge
from recipes.tutor.lessons import IGNORED, Lessons
from recipes.tutor.loading import load
from recipes.tutor.prompts import TEST_DOMAINS
from steerkit import LanguageModel, SteeringEstimator, load_expertise, sweep
from steerkit.hooks import edit
from steerkit.likelihood import log_likelihoods, summed_log_likelihoods
from steerkit.operations import add
from steerkit.reading import EffectReader, generate

ALPHA, FACTS = 0.4, 0.9
"""Where steering must work, and the share of facts that it must keep there; at twice that alpha it must break."""
TOKENS = 110
ANSWER = "<end_of_turn>"


@dataclass(frozen=True)
class Row:
    """A measure with its bar, which it must reach (`at_least`) or not exceed."""

    name: str
    value: float
    bar: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        """Whether the bar is reached."""
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        return f"{self.name:72} {self.value:+8.3f}   {sign} {self.bar:+.2f}   {'' if self.met else 'MISSED'}"


class Tutor:
    """A tutor, its corpus, and what several rows need."""

    def __init__(self, name: str) -> None:
        self.model = LanguageModel(name)
        self.corpus = load()
        self.judge = Judge(self.corpus)
        self.concepts = [concept for concept in self.corpus.concepts if not concept.has_persona]

    @cached_property
    def estimator(self) -> SteeringEstimator:
        """The direction of the whole training set, at every layer."""
        train = load_expertise(subset="train")
        return SteeringEstimator(self.model).fit(train.data, train.target, train.groups)

    @cached_property
    def layers(self) -> list[int]:
        """All layers."""
        return list(range(self.model.n_layers))

    def step(self, layer: int, alpha: float) -> NDArray[np.float32]:
        """What steering adds to the residual stream at a layer."""
        place = self.estimator.layers_.index(layer)
        return np.asarray(self.estimator.directions_[place] * self.estimator.norms_[place] * alpha)

    def ask(self, templates: Sequence[Template], seed: str, kind: str | None = None) -> list[str]:
        """One message about each concept, twelve domains over."""
        generator = random.Random(seed)
        return [
            self.corpus.prompt(c, kind or generator.choice(QUESTIONS), generator.choice(templates), generator)
            for c in self.concepts
        ]

    def answer(self, prompts: Sequence[str], layer: int = 0, alpha: float = 0.0) -> list[str]:
        """Answer greedily, steered or not."""
        if not alpha:
            return generate(self.model, self.model.encode(list(prompts)), max_new_tokens=TOKENS)
        step = torch.from_numpy(self.step(layer, alpha))[None]
        with self.model.held(), edit(self.model.blocks, [(layer, _adding(step))]):
            return self.model.generate(self.model.encode(list(prompts)), max_new_tokens=TOKENS)

    def score(self, answers: Sequence[str]) -> tuple[float, float, float]:
        """Register, share with the right topic, and share of facts kept; one answer per concept."""
        return (
            float(np.mean([self.judge.register(answer) for answer in answers])),
            float(np.mean([self.judge.topic(a) == c.noun for a, c in zip(answers, self.concepts, strict=True)])),
            float(np.mean([self.judge.facts(a, c) for a, c in zip(answers, self.concepts, strict=True)])),
        )

    @cached_property
    def neutral(self) -> list[str]:
        """The questions that steering is measured on."""
        return self.ask(self.corpus.neutral, "neutral")

    @cached_property
    def _references(self) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
        prompts = self.model.encode(self.ask(self.corpus.neutral, "reference", "what"))

        def answers(register: str) -> list[list[int]]:
            """Facts without the words around them: what is said counts, not how it is introduced."""
            texts = [" ".join(sentence("", c.facts[register][kind]) for kind in ("what", "how")) for c in self.concepts]
            return [list(self.model.encode_text(text + ANSWER)) for text in texts]

        return prompts, answers("expert"), answers("novice")

    def ratio(self, layer: int, step: NDArray[np.float32] | None) -> float:
        """Log-likelihood of an expert's reference answer minus that of a novice's, in nats per token."""
        prompts, expert, novice = self._references
        return self._likelihood(prompts, expert, layer, step) - self._likelihood(prompts, novice, layer, step)

    @torch.inference_mode()
    def _likelihood(
        self, prompts: list[list[int]], answers: list[list[int]], layer: int, step: NDArray[np.float32] | None
    ) -> float:
        edits = [] if step is None else [(layer, _adding(torch.from_numpy(step)[None]))]
        with self.model.held(), edit(self.model.blocks, edits):
            sums = summed_log_likelihoods(
                self.model, [p + a for p, a in zip(prompts, answers, strict=True)], [len(p) for p in prompts]
            )
        return float(sums.sum()) / sum(map(len, answers))

    @cached_property
    def spans(self) -> list[float]:
        """Likelihood ratio at alpha +0.3 minus that at -0.3, by layer."""
        return [self.ratio(i, self.step(i, 0.3)) - self.ratio(i, self.step(i, -0.3)) for i in self.layers]

    @cached_property
    def best(self) -> int:
        """The layer that steers farthest of those that keep the facts, as `calibrate` would choose."""
        # A layer that hardly steers keeps them too, and would hide by how much the others fail to.
        steering = [layer for layer in self.layers if self.spans[layer] >= max(self.spans) / 4]
        kept = {layer: self.kept(layer) for layer in steering}
        keeping = [layer for layer in steering if kept[layer] >= FACTS]
        return max(keeping, key=lambda layer: self.spans[layer]) if keeping else max(steering, key=kept.__getitem__)

    @cached_property
    def direction(self) -> NDArray[np.float32]:
        """The direction at the best layer, of norm 1."""
        return np.asarray(self.estimator.directions_[self.estimator.layers_.index(self.best)])

    def kept(self, layer: int) -> float:
        """Return the share of facts kept at the worse end of ±`ALPHA`."""
        return min(self.score(self.answer(self.neutral, layer, alpha))[2] for alpha in (-ALPHA, ALPHA))


def _adding(step: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return partial(add, direction=step, amount=torch.tensor(1.0))


def learned(tutor: Tutor) -> Iterator[Row]:
    """Measure whether it has learned its lessons and answers as the message asks."""
    model, corpus = tutor.model, tutor.corpus
    n_bytes = sum(parameter.numel() for parameter in model.model.parameters()) * 2
    yield Row("weights in bf16 (MB)", n_bytes / 1e6, 8, at_least=False)
    for name, exam in Lessons(corpus, model.tokenizer, 0, 32).exams().items():
        total = count = 0
        for ids, labels, _ in exam.batches:
            with model.held() as bare, torch.inference_mode():
                logits = bare(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
            losses = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
            total, count = total + float(losses), count + int((labels != IGNORED).sum())
        yield Row(f"loss - entropy, {name.replace('_', ' ')} (nats/token)", total / count - exam.entropy, 0.04, False)
    kinds = {
        f"{level} {side}": [template for template in corpus.levels[level] if template.side == side]
        for level in ("strong", "mild")
        for side in ("novice", "expert")
    }
    kinds |= {"neutral": list(corpus.neutral)} | {f"told {k}": list(v) for k, v in corpus.instructions.items()}
    scores = {name: tutor.score(tutor.answer(tutor.ask(templates, name))) for name, templates in kinds.items()}
    yield Row("register of answers to strong novices", scores["strong novice"][0], -0.8, at_least=False)
    yield Row("register of answers to strong experts", scores["strong expert"][0], 0.8)
    yield Row("|register| of neutral answers", abs(scores["neutral"][0]), 0.15, at_least=False)
    yield Row(f"topic correct, least of {len(scores)} kinds of prompt", min(s[1] for s in scores.values()), 0.95)


def read(tutor: Tutor) -> Iterator[Row]:
    """Measure whether a probe reads who asks, and from how few prompts."""
    sets = {name: load_expertise(subset=name) for name in ("train", "test", "heldout", "article")}
    accuracies = {n: tutor.estimator.layer_scores(sets[n].data, sets[n].target) for n in ("test", "heldout")}
    print("layer accuracy, new domains and phrasings:", *(f"{a:.2f}" for a in accuracies["test"]))
    print("layer accuracy, phrasings never trained on:", *(f"{a:.2f}" for a in accuracies["heldout"]))
    apart, messages = overlap.apart(tutor.corpus), tutor.corpus.heldout_messages
    most = tutor.estimator.layer_scores(*_asked(tutor.corpus, apart, 12)).max()
    print(f"best layer, the {len(apart)} of them that share no {overlap.RUN} words in a row with any shown: {most:.3f}")
    most = tutor.estimator.layer_scores(*_asked(tutor.corpus, messages, 2)).max()
    print(f"best layer, {len(messages)} whole messages of other hands, never trained on: {most:.3f}")
    yield Row("probe accuracy on held-out domains, best layer", accuracies["test"].max(), 0.97)
    yield Row("  best layer - layer 0", accuracies["test"].max() - accuracies["test"][0], 0.1)
    yield Row("probe accuracy on held-out phrasings, best layer", accuracies["heldout"].max(), 0.93)
    full = tutor.direction
    train, draw, cosines = sets["train"], np.random.default_rng(0), []
    classes = [np.flatnonzero(np.asarray(train.target) == label) for label in np.unique(train.target)]
    for _ in range(8):
        few = [int(i) for rows in classes for i in draw.choice(rows, 5, replace=False)]
        cosines.append(_fit_best(tutor, [train.data[i] for i in few], [train.target[i] for i in few]) @ full)
    article = _fit_best(tutor, list(sets["article"].data), list(sets["article"].target)) @ full
    yield Row("cosine of 5+5 prompts' direction to the full one, worst of 8 draws", min(cosines), 0.93)
    yield Row("  the article's own ten prompts", float(article), 0.93)


def _asked(corpus: Corpus, templates: Sequence[Template], times: int) -> tuple[list[str], list[int]]:
    """Questions of new domains in each phrasing, and its side."""
    generator = random.Random("apart")
    concepts = [concept for concept in corpus.concepts if concept.domain in TEST_DOMAINS]
    texts = [
        choose(corpus.prompt(concept, generator.choice(QUESTIONS), template, generator), generator)
        for template in templates
        for concept in generator.sample(concepts, times)
    ]
    return texts, [SIDES.index(template.side) for template in templates for _ in range(times)]


def _fit_best(tutor: Tutor, texts: Sequence[str | tuple[str, str]], labels: Sequence[str]) -> NDArray[np.float32]:
    fitted = SteeringEstimator(tutor.model, layer=tutor.best, layers=[tutor.best]).fit(texts, labels)
    return np.asarray(fitted.directions_[0])


def steered(tutor: Tutor) -> Iterator[Row]:
    """Measure whether the direction moves the register, and breaks the model only beyond."""
    best, spans = tutor.best, tutor.spans
    print("layer spans of the likelihood ratio over ±0.3:", *(f"{span:.2f}" for span in spans), f"; best {best}")
    print(f"cosine of the best layer's direction to the persona's at an answer's end: {_lasting(tutor):.2f}")
    alphas = np.round(np.arange(-0.4, 0.41, 0.1), 1)
    ratios = [tutor.ratio(best, tutor.step(best, alpha)) for alpha in alphas]
    yield Row("likelihood ratio against alpha in ±0.4, Spearman", float(spearmanr(alphas, ratios)[0]), 0.98)
    generator, size = np.random.default_rng(0), np.linalg.norm(tutor.step(best, 0.3))
    controls = []
    for _ in range(16):
        control = generator.normal(size=tutor.model.hidden_size)
        control = (control / np.linalg.norm(control) * size).astype(np.float32)
        controls.append(abs(tutor.ratio(best, control) - tutor.ratio(best, -control)))
    yield Row("  its span over ±0.3 / mean of 16 random directions", spans[best] / float(np.mean(controls)), 5)
    yield Row("  first layer's span / the largest of any layer", spans[0] / max(spans), 0.6, at_least=False)
    yield Row("  last layer's span / the largest of any layer", spans[-1] / max(spans), 0.6, at_least=False)
    answers = {a: tutor.answer(tutor.neutral, best, a) for a in (-2 * ALPHA, -ALPHA, 0.0, ALPHA, 2 * ALPHA)}
    scores = {alpha: tutor.score(texts) for alpha, texts in answers.items()}
    surprise = {alpha: _surprise(tutor, texts) for alpha, texts in answers.items()}
    for alpha, (register, topic, facts) in scores.items():
        figures = f"register {register:+.2f}, topic {topic:.2f}, facts {facts:.2f}, NLL {surprise[alpha]:.2f}"
        print(f"alpha {alpha:+.1f}: {figures}")
    yield Row(f"register(+{ALPHA}) - register(-{ALPHA})", scores[ALPHA][0] - scores[-ALPHA][0], 1)
    yield Row("  topic correct, either end", min(scores[ALPHA][1], scores[-ALPHA][1]), 0.95)
    yield Row("  facts kept, either end", min(scores[ALPHA][2], scores[-ALPHA][2]), FACTS)
    yield Row("  NLL rise, either end", max(surprise[ALPHA], surprise[-ALPHA]) - surprise[0.0], 0.2, at_least=False)
    broken = max(scores[2 * ALPHA][2], scores[-2 * ALPHA][2])
    yield Row(f"  collapse: facts kept at ±{2 * ALPHA}, either end", broken, 0.2, at_least=False)


def _lasting(tutor: Tutor) -> float:
    """Cosine of the direction, learned where an answer begins, to the same personas' where a neutral sentence ends.

    Where the two are far apart, steering moves the first words of an answer and is noise to the others.
    """
    train, generator = load_expertise(subset="train"), random.Random("lasting")
    concepts = [generator.choice(tutor.concepts) for _ in train.data]
    said = [sentence("In short, ", concept.facts["neutral"]["what"]) for concept in concepts]
    return float(_fit_best(tutor, list(zip(train.data, said, strict=True)), train.target) @ tutor.direction)


def _surprise(tutor: Tutor, answers: Sequence[str]) -> float:
    """NLL per token of answers under the unsteered model, for the prompt kind that they suit best."""
    closed = [answer + ANSWER for answer in answers]
    least = np.full(len(answers), np.inf)
    kinds = {"neutral": ["{Question}?"], **{side: _strong(tutor, side) for side in ("novice", "expert")}}
    for side, texts in kinds.items():
        prompts = tutor.ask([Template(text, side, "strong") for text in texts], "neutral", "what")
        sums, counts = log_likelihoods(tutor.model, prompts, closed)
        least = np.minimum(least, -sums / counts)
    return float(least.mean())


def _strong(tutor: Tutor, side: str) -> list[str]:
    return [template.text for template in tutor.corpus.levels["strong"] if template.side == side]


def agreed(tutor: Tutor) -> Iterator[Row]:
    """Measure whether the metrics that know no corpus rank a sweep's cells as those that know it."""
    test = load_expertise(subset="test")
    reader = EffectReader(tutor.model).fit(test.data, test.target, test.groups)
    prompts = {f"What is {concept.noun}?": concept for concept in tutor.concepts[::2]}
    cells = sweep(
        tutor.estimator, list(prompts), reader=reader, alphas=[s * a for a in (0.2, 0.4, 0.6, 0.8) for s in (1, -1)],
        distractors=[f"What is {concept.noun}?" for concept in tutor.concepts[1::2]], controls=(),
        max_new_tokens=TOKENS,
    ).cells  # fmt: skip
    judge = tutor.judge
    cells["register"] = cells["text"].map(judge.register)
    said = list(zip(cells["text"], (prompts[prompt] for prompt in cells["prompt"]), strict=True))
    cells["kept"] = [(judge.facts(text, c) + (judge.topic(text) == c.noun)) / 2 for text, c in said]
    means = cells.groupby(["layer", "alpha"])[["effect", "register", "preserved", "margin", "kept"]].mean()
    yield Row(f"effect against register, Spearman over {len(means)} cells", _rank(means, "effect", "register"), 0.9)
    yield Row("preservation against facts and topic, Spearman", _rank(means, "preserved", "kept"), 0.9)


def _rank(means: pd.DataFrame, one: str, other: str) -> float:
    return float(spearmanr(means[one], means[other])[0])


def main() -> int:
    """Print the table; return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin:tutor")
    tutor = Tutor(parser.parse_args().model)
    rows = [row for part in (learned, read, steered, agreed) for row in part(tutor)]
    print(f"{'measure':72} {'measured':>8}   required")
    print(*rows, sep="\n")
    missed = sum(not row.met for row in rows)
    print(f"{len(rows) - missed} of {len(rows)} bars met")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
