"""Measures of an answer that know the corpus: whether it is novice or expert, on topic, and true.

They need no second model, so they can judge the general metrics of `steerkit.metrics`.
"""

import re
from collections import Counter

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from .corpus import REGISTERS, Concept, Corpus, sentence


class Judge:
    """Register, topic and facts of an answer.

    Parameters
    ----------
    corpus
        What the tutor was trained on.
    recall
        Share of a fact's words that a sentence must repeat to count as stating it.
    """

    def __init__(self, corpus: Corpus, recall: float = 0.85) -> None:
        self.corpus = corpus
        self.recall = recall
        self._asides = {text for frames in corpus.frames.values() for text in frames["closer"]}
        self._register = self._fit_register()
        self._topics = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        self._documents = self._topics.fit_transform([" ".join(_facts(concept)) for concept in corpus.concepts])
        self._nouns = [concept.noun for concept in corpus.concepts]

    def sentences(self, answer: str) -> list[str]:
        """Split an answer into the sentences that should state a fact: all but the closers."""
        split = re.split(r"(?<=[.!?])\s+", answer.strip())
        return [text for text in split if text and text not in self._asides]

    def register(self, answer: str) -> float:
        """Mean over sentences of P(expert) - P(novice): -1 is novice, +1 expert."""
        sentences = self.sentences(answer)
        if not sentences:
            return 0.0
        probabilities = dict(zip(self._register.classes_, self._register.predict_proba(sentences).T, strict=True))
        return float(np.mean(probabilities["expert"] - probabilities["novice"]))

    def topic(self, answer: str) -> str:
        """Noun of the concept whose facts, in all registers together, are most like the answer."""
        similarity = (self._topics.transform([answer]) @ self._documents.T).toarray()[0]
        return self._nouns[int(similarity.argmax())]

    def facts(self, answer: str, concept: Concept) -> float:
        """Share of the sentences that state one of the concept's facts."""
        sentences = self.sentences(answer)
        known = [_words(fact) for fact in _facts(concept)]
        stated = [
            any((_words(text) & fact).total() >= self.recall * fact.total() for fact in known) for text in sentences
        ]
        return float(np.mean(stated)) if stated else 0.0

    def _fit_register(self) -> Pipeline:
        texts, labels = [], []
        for register in REGISTERS:
            leads = sorted({*self.corpus.frames[register]["opener"], *self.corpus.frames[register]["link"]} - {""})
            clauses = [fact for concept in self.corpus.concepts for fact in concept.facts[register].values()]
            for i, clause in enumerate(clauses):
                # Bare, too: else the lead-ins are all it learns, and half of the sentences have none.
                texts += [sentence(lead, clause) for lead in ("", leads[i % len(leads)])]
                labels += [register] * 2
        model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=100.0))
        return model.fit(texts, labels)


def _facts(concept: Concept) -> list[str]:
    return [fact for register in REGISTERS for fact in concept.facts[register].values()]


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[a-z0-9%'-]+", text.lower()))
