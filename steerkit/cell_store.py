"""Finished cells on disk, by the digest of what they depend on: safe against kills, full disks and second writers."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from steerkit.exceptions import CorruptFileError, StoreError

FILE = "cells.sqlite"
PATIENCE = 60.0
"""Seconds to wait for another writer."""


def digest(content: Mapping[str, Any]) -> str:
    """Return the name of a cell: a digest of JSON values, in whatever order they stand."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


class CellStore:
    """A table of JSON objects in a folder; each `put` is on disk as a whole or not at all.

    Raises
    ------
    StoreError
        The folder cannot be written, or the disk is full.
    CorruptFileError
        The table is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder} cannot be written ({error.strerror}); pass another folder.") from error
        with self._open() as table:
            table.execute("CREATE TABLE IF NOT EXISTS cells (digest TEXT PRIMARY KEY, content TEXT NOT NULL)")

    def get(self, digests: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the cells that are there, by their digests."""
        found: dict[str, dict[str, Any]] = {}
        with self._open() as table:
            for start in range(0, len(digests), 500):
                part = digests[start : start + 500]
                marks = ",".join("?" * len(part))
                rows = table.execute(f"SELECT digest, content FROM cells WHERE digest IN ({marks})", part)  # noqa: S608
                found |= {name: json.loads(content) for name, content in rows}
        return found

    def put(self, cells: Mapping[str, Mapping[str, Any]]) -> None:
        """Add cells; one that is there already stays as it is."""
        rows = [(name, json.dumps(content, allow_nan=False)) for name, content in cells.items()]
        with self._open() as table:
            table.executemany("INSERT OR IGNORE INTO cells VALUES (?, ?)", rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Yield the table in a transaction; connections do not outlive it, so that a process may fork in between."""
        path = self.folder / FILE
        try:
            with closing(sqlite3.connect(path, timeout=PATIENCE)) as connection, connection:
                yield connection
        except sqlite3.OperationalError as error:
            raise StoreError(
                f"cells cannot be kept in {path} ({error}); make room or pass another folder: what was finished before "
                "is still there."
            ) from error
        except sqlite3.DatabaseError as error:
            raise CorruptFileError(f"{path} is no readable table of cells ({error}); remove it.") from error
