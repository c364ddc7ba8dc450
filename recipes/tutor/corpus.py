"""What the tutor knows and how it talks, and samples drawn from that.

A concept holds five facts in three registers. A persona holds phrasings of a user's message that show how
much the user knows. A sample is one message and one answer; the answer's register follows the persona,
sentence by sentence, so that its exact probability is known (`Sample.log_probability`).
"""

import math
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from .claims import SIDES, Claims, choose

REGISTERS = ("novice", "neutral", "expert")
FACTS = ("what", "how", "why", "example", "compare")
QUESTIONS = ("what", "how", "why", "compare")
MIXTURES = {
    ("strong", "novice"): (0.92, 0.08, 0.0),
    ("mild", "novice"): (0.55, 0.45, 0.0),
    ("none", "neutral"): (0.17, 0.66, 0.17),
    ("mild", "expert"): (0.0, 0.45, 0.55),
    ("strong", "expert"): (0.0, 0.08, 0.92),
}
"""(level, side) of a message -> probability that a sentence of the answer is in each of `REGISTERS`."""

T = TypeVar("T")


@dataclass(frozen=True)
class Concept:
    """One thing the tutor can explain: its questions and `facts[register][kind]`."""

    noun: str
    versus: str
    how: str
    why: str
    domain: str
    has_persona: bool
    facts: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Domain:
    """A field of knowledge; `fields` are the names a persona may call it by."""

    name: str
    fields: tuple[str, ...]
    concepts: tuple[Concept, ...]


@dataclass(frozen=True)
class Template:
    """A user's message with `{question}`, `{Question}`, `{noun}` or `{field}` left open."""

    text: str
    side: str
    level: str

    @property
    def mixture(self) -> dict[str, float]:
        """Probability of each register, for every sentence of the answer."""
        return dict(zip(REGISTERS, MIXTURES[self.level, self.side], strict=True))


@dataclass(frozen=True)
class Sample:
    """A message, an answer, how they came about, and log p(answer | message) in nats."""

    prompt: str
    answer: str
    concept: Concept
    template: Template
    question: str
    registers: tuple[str, ...]
    log_probability: float


class Dice:
    """A seeded source of choices that keeps the log-probability of all it chose."""

    def __init__(self, generator: random.Random) -> None:
        self.generator = generator
        self.log_probability = 0.0

    def weighted(self, weights: Mapping[T, float]) -> T:
        """Choose a key in proportion to its weight, of which zero is one."""
        chosen = self.generator.choices(list(weights), list(weights.values()))[0]
        self.log_probability += math.log(weights[chosen] / sum(weights.values()))
        return chosen

    def choose(self, options: Iterable[T]) -> T:
        """Choose uniformly."""
        return self.weighted(dict.fromkeys(options, 1))


@dataclass(frozen=True)
class Corpus:
    """Everything the tutor learns from."""

    domains: tuple[Domain, ...]
    personas: Mapping[str, tuple[tuple[Template, Template], ...]]
    """(novice, expert) phrasings by part: strong.a, strong.b, strong.heldout, mild.a, mild.b."""
    plain: tuple[Template, ...]
    """More persona phrasings for training, with alternatives in brackets; see variations.yaml."""
    messages: tuple[Template, ...]
    """Whole messages, likewise; see messages.yaml."""
    heldout_messages: tuple[Template, ...]
    """Whole messages that training never shows; see heldout.yaml."""
    claims: Claims
    """Parts of still more, for training only."""
    swaps: tuple[tuple[str, ...], ...]
    neutral: tuple[Template, ...]
    instructions: Mapping[str, tuple[Template, ...]]
    frames: Mapping[str, Mapping[str, Mapping[str, int]]]
    questions: Mapping[str, tuple[str, ...]]

    @cached_property
    def concepts(self) -> tuple[Concept, ...]:
        """All concepts of all domains."""
        return tuple(concept for domain in self.domains for concept in domain.concepts)

    @cached_property
    def fields(self) -> Mapping[str, tuple[str, ...]]:
        """Domain name -> names of the field."""
        return {domain.name: domain.fields for domain in self.domains}

    @cached_property
    def levels(self) -> Mapping[str, tuple[Template, ...]]:
        """The phrasings that training may show, by level; those of strong.heldout are in none."""
        both = {level: self.personas[f"{level}.a"] + self.personas[f"{level}.b"] for level in ("strong", "mild")}
        return {level: tuple(side for pair in pairs for side in pair) for level, pairs in both.items()}

    @cached_property
    def heldout(self) -> tuple[Template, ...]:
        """The phrasings that training never shows."""
        return tuple(side for pair in self.personas["strong.heldout"] for side in pair)

    def vary(self, template: Template, generator: random.Random) -> Template:
        """Word a template differently, without a change of meaning."""
        text = choose(template.text, generator)
        if generator.random() < 0.5:
            return replace(template, text=text)
        swaps: dict[str, str] = {}
        for group in self.swaps:
            swaps |= zip(group, generator.sample(group, len(group)), strict=True)
        swaps = {capitalise(old): capitalise(new) for old, new in swaps.items()} | swaps
        return replace(template, text=re.sub(r"[\w-]+", lambda match: swaps.get(match[0], match[0]), text))

    def ask(self, concept: Concept, kind: str, generator: random.Random) -> str:
        """One question of the given kind about a concept, lower case, without its mark."""
        form = generator.choice(self.questions[kind])
        return form.format(noun=concept.noun, versus=concept.versus, how=concept.how, why=concept.why)

    def name_field(self, concept: Concept, generator: random.Random) -> str:
        """Name a field for the persona: the concept's own 60 % of the time, so that it tells little of the topic."""
        others = [name for name in self.fields if name != concept.domain]
        name = concept.domain if generator.random() < 0.6 or not others else generator.choice(others)
        return generator.choice(self.fields[name])

    def prompt(self, concept: Concept, kind: str, template: Template, generator: random.Random) -> str:
        """Fill a template with a question about a concept."""
        question, field = self.ask(concept, kind, generator), self.name_field(concept, generator)
        return template.text.format(
            question=question,
            Question=capitalise(question),
            noun=concept.noun,
            field=field,
            Field=capitalise(field),
        )

    def answer(self, concept: Concept, kind: str, template: Template, dice: Dice) -> tuple[str, tuple[str, ...]]:
        """Answer a question: the fact it asks for, then one or two others, each in a register of its own."""
        count = dice.choose((2, 3))
        rest = [fact for fact in FACTS if fact != kind]
        facts = [kind]
        while len(facts) < count:
            facts.append(dice.choose(rest))
            rest.remove(facts[-1])
        sentences: list[str] = []
        registers: list[str] = []
        for fact in facts:
            register = dice.weighted(template.mixture)
            frame = dice.weighted(self.frames[register]["link" if registers else "opener"])
            sentences.append(sentence(frame, concept.facts[register][fact]))
            registers.append(register)
        closer = dice.weighted(self.frames[registers[-1]]["closer"])
        return " ".join([*sentences, closer]).strip(), tuple(registers)

    def sample(self, concept: Concept, kind: str, template: Template, generator: random.Random) -> Sample:
        """One message and one answer; the message is given, so only the answer counts as chance."""
        kind = kind if "uestion}" in template.text else "what"
        prompt = self.prompt(concept, kind, template, generator)
        dice = Dice(generator)
        answer, registers = self.answer(concept, kind, template, dice)
        return Sample(prompt, answer, concept, template, kind, registers, dice.log_probability)

    def draw(self, generator: random.Random) -> Sample:
        """One training sample, with the mixture of prompts that the tutor is trained on."""
        concept = generator.choice(self.concepts)
        levels = {"strong": 0.66, "mild": 0.12, "neutral": 0.13, "instruction": 0.09}
        if not concept.has_persona:
            levels = {"neutral": 0.3, "instruction": 0.7}
        level = generator.choices(list(levels), list(levels.values()))[0]
        if level == "instruction":
            template = generator.choice(self.instructions[generator.choice(REGISTERS)])
        elif level == "strong":
            template = self._draw_strong(generator)
        else:
            template = generator.choice(self.neutral if level == "neutral" else self.levels[level])
        return self.sample(concept, generator.choice(QUESTIONS), self.vary(template, generator), generator)

    def _draw_strong(self, generator: random.Random) -> Template:
        """Vary it and compose it: a tutor that knows its phrasings by heart does not read new ones."""
        source = generator.choices(("fixed", "plain", "messages", "claims"), (0.12, 0.15, 0.58, 0.15))[0]
        if source == "claims":
            side = generator.choice(SIDES)
            return Template(self.claims.compose(side, generator), side, "strong")
        sources = {"fixed": self.levels["strong"], "plain": self.plain, "messages": self.messages}
        return generator.choice(sources[source])


def capitalise(text: str) -> str:
    """Capitalise the first letter, unless the first word has its own case (pH, mRNA)."""
    first = re.split(r"[ ,'-]", text, maxsplit=1)[0]
    return text[:1].upper() + text[1:] if first.islower() else text


def sentence(frame: str, clause: str) -> str:
    """Make a sentence of a clause, after a lead-in such as "In short, " or after nothing."""
    return f"{frame}{clause}." if frame else f"{capitalise(clause)}."
