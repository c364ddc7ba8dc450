"""Read and check the corpus: the YAML files beside this module."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .claims import Claims
from .corpus import FACTS, REGISTERS, Concept, Corpus, Domain, Template

FOLDER = Path(__file__).parent
CONCEPTS_WITHOUT_PERSONA = 2
"""The last concepts of each domain never meet a persona in training: there steering must generalise."""


def load(folder: Path = FOLDER) -> Corpus:
    """Read and check the corpus.

    Raises
    ------
    ValueError
        If a file lacks a part or has one too many, naming the file and the part.
    """
    frames = _read(folder / "frames.yaml", "registers", "questions", "instructions")
    personas = _read(folder / "personas.yaml", "pairs", "neutral")
    variations = _read(folder / "variations.yaml", "swaps", "plain")
    shown, heldout = (_pairs(_read(folder / f"{n}.yaml", "pairs")["pairs"], "strong") for n in ("messages", "heldout"))
    parts = [("strong", "a"), ("strong", "b"), ("strong", "heldout"), ("mild", "a"), ("mild", "b")]
    claims = _read(folder / "claims.yaml", "owners", "nouns", "contrasts", "claims", "messages", "greetings")
    corpus = Corpus(
        domains=tuple(_domain(path) for path in sorted((folder / "corpus").glob("*.yaml"))),
        personas={f"{level}.{part}": _pairs(personas["pairs"][level][part], level) for level, part in parts},
        plain=tuple(_template(text, side, "strong") for side, texts in variations["plain"].items() for text in texts),
        messages=tuple(side for pair in shown for side in pair),
        heldout_messages=tuple(side for pair in heldout for side in pair),
        claims=Claims(**claims),
        swaps=tuple(map(tuple, variations["swaps"])),
        neutral=tuple(_template(text, "neutral", "none") for text in personas["neutral"]),
        instructions={
            side: tuple(_template(text, side, "none" if side == "neutral" else "strong") for text in texts)
            for side, texts in frames["instructions"].items()
        },
        frames={register: {k: Counter(v) for k, v in kinds.items()} for register, kinds in frames["registers"].items()},
        questions={kind: tuple(forms) for kind, forms in frames["questions"].items()},
    )
    _unique("noun", [concept.noun for concept in corpus.concepts])
    _unique("fact", [f for c in corpus.concepts for facts in c.facts.values() for f in facts.values()])
    phrasings = [*corpus.neutral, *(side for pairs in corpus.personas.values() for pair in pairs for side in pair)]
    _unique("phrasing", [template.text for template in phrasings])
    _unique("message", [template.text for template in corpus.messages + corpus.heldout_messages])
    return corpus


def _read(path: Path, *keys: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    _check_keys(str(path), content, keys)
    return content


def _check_keys(where: str, content: Mapping[str, Any], keys: Sequence[str]) -> None:
    if set(content) != set(keys):
        raise ValueError(f"{where}: expected exactly {sorted(keys)}, got {sorted(content)}")


def _unique(what: str, texts: Sequence[str]) -> None:
    repeated = [text for text, count in Counter(texts).items() if count > 1]
    if repeated:
        raise ValueError(f"each {what} must occur once; repeated: {repeated}")


def _domain(path: Path) -> Domain:
    content = _read(path, "domain", "fields", "practitioner", "concepts")
    concepts = []
    for index, entry in enumerate(content["concepts"]):
        where = f"{path}, {entry.get('noun', f'concept {index}')}"
        _check_keys(where, entry, ("noun", "versus", "how", "why", *REGISTERS))
        for register in REGISTERS:
            _check_keys(f"{where}, {register}", entry[register], FACTS)
        concepts.append(
            Concept(
                **{key: entry[key] for key in ("noun", "versus", "how", "why")},
                domain=content["domain"],
                has_persona=index < len(content["concepts"]) - CONCEPTS_WITHOUT_PERSONA,
                facts={register: entry[register] for register in REGISTERS},
            )
        )
    return Domain(content["domain"], tuple(content["fields"]), tuple(concepts))


def _pairs(entries: Sequence[Mapping[str, str]], level: str) -> tuple[tuple[Template, Template], ...]:
    return tuple((_template(e["novice"], "novice", level), _template(e["expert"], "expert", level)) for e in entries)


def _template(text: str, side: str, level: str) -> Template:
    slots = re.findall(r"{(\w+)}", text)
    if sum(slot in ("question", "Question", "noun") for slot in slots) != 1:
        raise ValueError(f"a phrasing needs one {{question}}, {{Question}} or {{noun}}: {text!r}")
    return Template(text, side, level)
