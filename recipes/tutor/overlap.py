"""Which held-out phrasings share a run of words with what training shows."""

import random
import re

from .claims import SIDES
from .corpus import Corpus, Template

RUN = 6
"""So many words in a row, slots such as {field} among them, are no coincidence."""


def runs(text: str) -> set[tuple[str, ...]]:
    """All runs of `RUN` words in a text."""
    words = re.findall(r"{\w+}|[\w'-]+", text.lower())
    return {tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}


def shown(corpus: Corpus, n_variants: int = 8, n_claims: int = 20_000) -> set[tuple[str, ...]]:
    """The runs of what training shows: of some variants of every template, and of messages composed of claims."""
    generator = random.Random("overlap")
    fixed = [*corpus.plain, *corpus.messages, *(template for level in corpus.levels.values() for template in level)]
    seen: set[tuple[str, ...]] = set()
    for template in fixed:
        for _ in range(n_variants):
            seen |= runs(corpus.vary(template, generator).text)
    for _ in range(n_claims):
        seen |= runs(corpus.claims.compose(generator.choice(SIDES), generator))
    return seen


def apart(corpus: Corpus) -> list[Template]:
    """Return the held-out phrasings that share no run with what training shows."""
    seen = shown(corpus)
    templates = [template for pair in corpus.personas["strong.heldout"] for template in pair]
    return [template for template in templates if not runs(template.text) & seen]
