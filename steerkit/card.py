"""`Card`: one page that says what a steered model is made of, what was measured on it, and what was not."""

import json
from dataclasses import dataclass, field
from html import escape
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import Any, Self

from steerkit.exceptions import CorruptFileError

JSON, MARKDOWN, PAGE = "card.json", "README.md", "card.html"
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}"
    "table{border-collapse:collapse;margin:.6rem 0}th,td{border:1px solid #ccc;padding:.3rem .7rem;text-align:left}"
    "td.number{text-align:right;font-variant-numeric:tabular-nums}thead{background:#f2f2f2}p.note{color:#555}"
)

FRONT = "---\nlibrary_name: steerkit\ntags: [activation-steering]\n---\n"

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Section:
    """A heading, a table as rows of equal columns, and a sentence on how to read it."""

    heading: str
    rows: Rows
    note: str = ""


@dataclass(frozen=True)
class Card:
    """The reliability card of a steered model.

    Attributes
    ----------
    title : str
    sections : list of Section
    """

    title: str
    sections: list[Section] = field(default_factory=list)

    def to_markdown(self) -> str:
        """Return the card as Markdown."""
        parts = [f"{FRONT}\n# {_cell(self.title)}"]
        for section in self.sections:
            parts.append(f"## {section.heading}")
            parts += [section.note] if section.note else []
            if section.rows:
                heads = list(section.rows[0])
                lines = [heads, ["---"] * len(heads), *([_text(row[head]) for head in heads] for row in section.rows)]
                parts.append("\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines))
        return "\n\n".join(parts) + "\n"

    def to_html(self) -> str:
        """Return the card as a page that needs nothing else."""
        body = [f"<h1>{escape(self.title)}</h1>"]
        for section in self.sections:
            body.append(f"<h2>{escape(section.heading)}</h2>")
            body += [f'<p class="note">{escape(section.note)}</p>'] if section.note else []
            if section.rows:
                heads = "".join(f"<th>{escape(head)}</th>" for head in section.rows[0])
                rows = "".join(f"<tr>{''.join(map(_html, row.values()))}</tr>\n" for row in section.rows)
                body.append(f"<table><thead><tr>{heads}</tr></thead><tbody>\n{rows}</tbody></table>")
        head = f'<meta charset="utf-8"><title>{escape(self.title)}</title><style>{STYLE}</style>'
        return f'<!doctype html>\n<html lang="en">{head}\n' + "\n".join(body) + "\n</html>\n"

    def save(self, folder: str | Path) -> None:
        """Write ``card.json``, ``README.md`` and ``card.html`` into an existing folder."""
        content = {"title": self.title, "sections": [vars(section) for section in self.sections]}
        text = json.dumps(_plain(content), indent=2, allow_nan=False)
        for name, text_of in ((JSON, text + "\n"), (MARKDOWN, self.to_markdown()), (PAGE, self.to_html())):
            Path(folder, name).write_text(text_of, encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        CorruptFileError
            There is no card, or it is damaged.
        """
        try:
            content = json.loads(Path(folder, JSON).read_text(encoding="utf-8"))
            return cls(content["title"], [Section(**section) for section in content["sections"]])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptFileError(
                f"{folder} holds no readable card ({error}); export and save the model again."
            ) from None


def facts(**values: Any) -> Rows:
    """Return rows of two columns, what and its value, underscores as spaces."""
    return [{"what": name.replace("_", " "), "value": value} for name, value in values.items()]


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if isfinite(value) else "–"
    if isinstance(value, list | tuple):
        return " … ".join(map(_text, value))
    return str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _html(value: Any) -> str:
    kind = ' class="number"' if isinstance(value, Real) or value is None else ""
    return f"<td{kind}>{escape(_text(value))}</td>"


def _plain(value: Any) -> Any:
    """Return JSON values: NumPy's numbers as Python's, and null for NaN."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not isfinite(value) else value
