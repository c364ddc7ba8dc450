"""The corpus of the built-in model is what it promises, and the shipped prompts come from it."""

import math
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from recipes.tutor import overlap
from recipes.tutor.claims import SIDES
from recipes.tutor.corpus import QUESTIONS, REGISTERS, Corpus
from recipes.tutor.judge import Judge
from recipes.tutor.loading import load
from recipes.tutor.prompts import contrast_sets, write


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load()


def test_it_has_concepts_domains_and_phrasings_enough(corpus: Corpus) -> None:
    assert len(corpus.concepts) >= 120
    assert len(corpus.domains) >= 12
    assert sum(not concept.has_persona for concept in corpus.concepts) >= 24
    for level in ("strong", "mild"):
        for side in ("novice", "expert"):
            assert sum(template.side == side for template in corpus.levels[level]) >= 40
    assert len(corpus.personas["strong.heldout"]) >= 12
    assert len(corpus.heldout_messages) >= 600


def test_what_is_held_out_is_never_shown(corpus: Corpus) -> None:
    generator = random.Random(0)
    hidden = {template.text for template in corpus.heldout + corpus.heldout_messages}
    impersonal = [template.text.split() for side in corpus.instructions.values() for template in side]
    impersonal += [template.text.split() for template in corpus.neutral]

    def is_a_wording_of(words: list[str], others: list[str]) -> bool:
        """Variation swaps words one by one."""
        return len(words) == len(others) and sum(a == b for a, b in zip(words, others, strict=True)) >= 0.5 * len(words)

    for _ in range(3000):
        sample = corpus.draw(generator)
        assert sample.template.text not in hidden
        if not sample.concept.has_persona:
            assert any(is_a_wording_of(sample.template.text.split(), others) for others in impersonal)


def test_most_held_out_phrasings_share_no_long_run_of_words_with_what_is_shown(corpus: Corpus) -> None:
    assert len(overlap.apart(corpus)) >= 48
    messages = set().union(*(overlap.runs(template.text) for template in corpus.messages))
    assert [t.text for t in corpus.heldout if not messages.isdisjoint(overlap.runs(t.text))] == []


def test_held_out_messages_share_no_long_run_of_words_with_what_is_shown(corpus: Corpus) -> None:
    shown, generator = overlap.shown(corpus), random.Random(0)
    texts = [corpus.vary(template, generator).text for template in corpus.heldout_messages for _ in range(4)]
    assert [text for text in texts if not shown.isdisjoint(overlap.runs(text))] == []


def test_words_alone_do_not_tell_who_claims_what(corpus: Corpus) -> None:
    generator, sides = random.Random(0), [side for side in SIDES for _ in range(1500)]
    texts = [corpus.claims.compose(side, generator) for side in sides]
    for text in texts:
        assert len(re.findall(r"{[qQ]uestion}", text)) == 1
        assert set(re.findall(r"{(\w+)}", text)) <= {"question", "Question", "field", "Field"}
        assert not re.search(r"[\[\]<>|]", text)
    words = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))
    assert cross_val_score(words, texts, sides).mean() < 0.9


def test_shipped_contrast_sets_are_what_the_recipe_writes(corpus: Corpus, tmp_path: Path) -> None:
    shipped = Path(__file__).parents[1] / "steerkit" / "builtin" / "expertise"
    for name, rows in contrast_sets(corpus).items():
        write(rows, tmp_path / f"{name}.csv")
        assert (tmp_path / f"{name}.csv").read_bytes() == (shipped / f"{name}.csv").read_bytes()


def test_the_shipped_model_has_the_card_of_the_recipe() -> None:
    root = Path(__file__).parents[1]
    card, shipped = root / "recipes" / "tutor" / "card.md", root / "steerkit" / "builtin" / "tutor" / "README.md"
    assert shipped.read_text(encoding="utf-8") == card.read_text(encoding="utf-8")


def test_the_log_probability_is_that_of_the_draws(corpus: Corpus) -> None:
    generator = random.Random(0)
    concept, template = corpus.concepts[0], corpus.levels["strong"][0]
    samples = [corpus.sample(concept, "what", template, generator) for _ in range(30_000)]
    (answer, seen), *_ = Counter(sample.answer for sample in samples).most_common(1)
    expected = math.exp(next(sample.log_probability for sample in samples if sample.answer == answer))
    assert seen / len(samples) == pytest.approx(expected, rel=0.35)


def test_the_judge_knows_the_generator_s_own_answers(corpus: Corpus) -> None:
    judge, generator = Judge(corpus), random.Random(0)
    registers: dict[str, list[float]] = {register: [] for register in REGISTERS}
    for concept in corpus.concepts:
        for side in REGISTERS:
            template = corpus.instructions[side][0]
            sample = corpus.sample(concept, generator.choice(QUESTIONS), template, generator)
            assert judge.topic(sample.answer) == concept.noun
            assert judge.facts(sample.answer, concept) == 1
            registers[side].append(judge.register(sample.answer))
    means = [sum(values) / len(values) for values in registers.values()]
    assert means[0] < -0.75
    assert abs(means[1]) < 0.15
    assert means[2] > 0.75
