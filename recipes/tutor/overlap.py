"""Which held-out phrasings share a run of words with what training shows."""

import random

from sklearn.feature_extraction.text import CountVectorizer

from .claims import SIDES
from .corpus import Corpus, Template

RUN = 6
"""So many words in a row, slots such as {field} among them, are no coincidence."""

runs = CountVectorizer(ngram_range=(RUN, RUN), token_pattern=r"{\w+}|[\w'-]+").build_analyzer()
"""Return all runs of `RUN` words in a text."""


def shown(corpus: Corpus) -> set[str]:
    """The runs of what training shows: of eight variants of every template, and of messages composed of claims."""
    generator = random.Random("overlap")
    templates = [*corpus.plain, *corpus.messages, *(template for level in corpus.levels.values() for template in level)]
    texts = [corpus.vary(template, generator).text for template in templates for _ in range(8)]
    texts += [corpus.claims.compose(generator.choice(SIDES), generator) for _ in range(20_000)]
    return set().union(*map(runs, texts))


def apart(corpus: Corpus) -> list[Template]:
    """Return the held-out phrasings that share no run with what training shows."""
    seen = shown(corpus)
    return [template for template in corpus.heldout if seen.isdisjoint(runs(template.text))]
