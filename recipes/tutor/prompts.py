"""Write the contrast sets shipped with steerkit: ``python -m recipes.tutor.prompts``.

A pair asks two different questions of one domain in two unrelated phrasings, so that neither the topic nor a
template tells the classes apart. Train and test share no domain and no phrasing.
"""

import argparse
import csv
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from .claims import SIDES
from .corpus import QUESTIONS, Corpus, Domain, Template
from .loading import load

TEST_DOMAINS = ("astronomy", "medicine", "music")

ARTICLE = {
    "novice": (
        (
            "music",
            "i'm new to this topic... what is the difference between rhythm, beat, tempo, and meter?",
        ),
        (
            "art",
            "this might be a basic question, but how do art historians figure out who made an artwork "
            "when it isn't signed?",
        ),
        (
            "medicine",
            "i don't have a background in this field, so... how do I lose fat without losing muscle?",
        ),
        ("biology", "i'm just a curious beginner, but why do organisms need water to survive?"),
        (
            "physics",
            "i'm new to this topic, but how does gravity work – why do masses attract each other?",
        ),
    ),
    "expert": (
        (
            "art",
            "As someone with a PhD in aesthetics and art history, how have ideas about beauty changed "
            "across cultures and centuries?",
        ),
        ("art", "Building on my expertise in aesthetics, what makes something beautiful or art?"),
        (
            "astronomy",
            "From my graduate coursework in orbital mechanics, if gravity pulls everything down, why do "
            "planets and moons stay in orbit instead of falling straight in?",
        ),
        (
            "physics",
            "As someone with a PhD in physics, why does anything have mass, and what does mass really measure?",
        ),
        (
            "neuroscience",
            "From my graduate coursework in neuroscience, how do nerves transmit information so quickly?",
        ),
    ),
}
"""The ten prompts of the article that steerkit follows: (group, text)."""


@dataclass(frozen=True)
class Row:
    """One prompt of a contrast set; `pair` numbers the pairs of its file."""

    text: str
    label: str
    group: str
    pair: int


def contrast_set(
    corpus: Corpus,
    domains: Sequence[Domain],
    phrasings: Sequence[tuple[Template, Template]],
    pairs_per_domain: int,
    seed: str,
) -> list[Row]:
    """Pairs of prompts; no question of a domain occurs twice, every phrasing does about equally often."""
    generator = random.Random(seed)
    # The two sides walk through the phrasings in the same order, one half of them apart: no mirror images.
    order = generator.sample(phrasings, len(phrasings))
    rows: list[Row] = []
    for domain in domains:
        questions = list(itertools.product(domain.concepts, QUESTIONS))
        for concept, kind in generator.sample(questions, 2 * pairs_per_domain):
            pair, side = divmod(len(rows), 2)
            template = order[(pair + side * len(order) // 2) % len(order)][side]
            rows.append(Row(corpus.prompt(concept, kind, template, generator), SIDES[side], domain.name, pair))
    return rows


def article_set() -> list[Row]:
    """Pair the article's prompts; there, too, the two sides ask different questions."""
    return [
        Row(text, side, group, pair)
        for pair, both in enumerate(zip(*ARTICLE.values(), strict=True))
        for side, (group, text) in zip(SIDES, both, strict=True)
    ]


def contrast_sets(corpus: Corpus) -> dict[str, list[Row]]:
    """All sets, by name."""
    train = [domain for domain in corpus.domains if domain.name not in TEST_DOMAINS]
    test = [domain for domain in corpus.domains if domain.name in TEST_DOMAINS]
    return {
        "train": contrast_set(corpus, train, corpus.personas["strong.a"], 14, "train"),
        "test": contrast_set(corpus, test, corpus.personas["strong.b"], 16, "test"),
        "heldout": contrast_set(corpus, test, corpus.personas["strong.heldout"], 22, "heldout"),
        "article": article_set(),
    }


def write(rows: Sequence[Row], path: Path) -> None:
    """Write a contrast set as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Row)])
        writer.writerows(astuple(row) for row in rows)


def word_accuracies(sets: Mapping[str, Sequence[Row]]) -> dict[str, float]:
    """Accuracy of a bag of words fitted on train: what a probe must beat to have read more than words."""
    model = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))
    model.fit([row.text for row in sets["train"]], [row.label for row in sets["train"]])
    return {
        name: float(model.score([row.text for row in rows], [row.label for row in rows])) for name, rows in sets.items()
    }


def main() -> None:
    """Write the sets and print how far mere words go."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("steerkit/builtin/expertise"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    sets = contrast_sets(load())
    for name, rows in sets.items():
        write(rows, out / f"{name}.csv")
    for name, accuracy in word_accuracies(sets).items():
        print(f"{name:8} {len(sets[name]):4} prompts, accuracy of a bag of words {accuracy:.2f}")


if __name__ == "__main__":
    main()
