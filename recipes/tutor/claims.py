"""Messages composed of claims about who knows what, so that only binding a claim to its owner tells the side."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SIDES = ("novice", "expert")


@dataclass(frozen=True)
class Claims:
    """The parts of `claims.yaml`."""

    owners: Mapping[str, Sequence[str]]
    nouns: Mapping[str, Sequence[str]]
    contrasts: Sequence[str]
    claims: Mapping[str, Sequence[str]]
    messages: Sequence[str]
    greetings: Sequence[str]

    def compose(self, side: str, generator: random.Random) -> str:
        """Compose a message with `{field}` and `{question}` or `{Question}` left open."""
        opposite = SIDES[side == "novice"]
        parts = {"claim": self._own(side, generator), "also": self._own(side, generator)}
        if parts["claim"] == parts["also"] or generator.random() < 0.5:
            parts["also"] = "[nothing more|that is all|such is life|as they say|to be honest]"
        parts["other"] = self._other(opposite if generator.random() < 0.8 else side, generator)
        message = re.sub(r"{(claim|also|other)}", lambda m: parts[m[1]], generator.choice(self.messages))
        if generator.random() < 0.15:
            message = generator.choice(self.greetings) + message
        message = choose(message, generator)
        if generator.random() < 0.15:
            return message.lower()
        return re.sub(r"(?:^|(?<=[.?] )){?\w", lambda m: m[0].upper(), message)

    def _own(self, side: str, generator: random.Random) -> str:
        if generator.random() < 0.25:
            these, those = self.nouns[side], self.nouns[SIDES[side == "novice"]]
            text = generator.choice(self.contrasts)
            return text.replace("{this}", generator.choice(these)).replace("{that}", generator.choice(those))
        return _give(generator.choice(self.claims[side]), "I", "me", "my", True)

    def _other(self, side: str, generator: random.Random) -> str:
        many = generator.random() < 0.3
        owner = generator.choice(self.owners["many" if many else "one"])
        claims = [claim for claim in self.claims[side] if not (many and "<am/is>" in claim)]  # "others are a beginner"
        possessive = f"{owner}'" if many else f"{owner}'s"
        return _give(generator.choice(claims), owner, owner, possessive, many)


def choose(text: str, generator: random.Random) -> str:
    """Choose one of each [bracket|of|alternatives]."""
    return re.sub(r"\[(.*?)\]", lambda match: generator.choice(match[1].split("|")), text)


def _give(claim: str, subject: str, object_: str, possessive: str, first_form: bool) -> str:
    """Bind a claim to its owner; "I" and plural owners take the first form of the verb."""
    claim = re.sub(r"<(\w+)/(\w+)>", lambda match: match[1 if first_form else 2], claim)
    return claim.replace("{I}", subject).replace("{me}", object_).replace("{my}", possessive)
