"""`SteeringVector`: a direction with everything needed to use it, and its files (safetensors + JSON, no pickle)."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from steerkit.exceptions import CorruptFileError, InvalidInputError, NonFiniteError, OutputExistsError
from steerkit.fingerprint import Fingerprint

CONFIG, TENSORS = "steering_config.json", "steering.safetensors"
LARGEST_FILE = 64 * 2**20


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction of the residual stream at one layer.

    Attributes
    ----------
    direction : ndarray of shape (hidden size,), float32
        Unit L2 norm, from ``classes[0]`` to ``classes[1]``.
    layer : int
        The decoder block whose output is read and edited, 0-based.
    norm : float
        Mean L2 norm of the activations there; ``alpha * norm`` is what is added.
    offset : float
        The projection at which the classes part.
    classes : tuple of two str
    fingerprint : Fingerprint
        Of the model that the direction was made for.
    provenance : dict
        JSON values that say how it was made.
    """

    direction: NDArray[np.float32]
    layer: int
    norm: float
    offset: float
    classes: tuple[str, str]
    fingerprint: Fingerprint
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        direction = np.array(self.direction, dtype=np.float32)
        if direction.shape != (self.fingerprint.hidden_size,):
            raise InvalidInputError(
                f"direction has shape {direction.shape}, ({self.fingerprint.hidden_size},) was expected for the model."
            )
        if not (np.isfinite(direction).all() and np.isfinite([self.norm, self.offset]).all()):
            raise NonFiniteError(
                "direction, norm or offset holds NaN or Inf, finite numbers were expected; fit it again."
            )
        length = float(np.linalg.norm(direction.astype(np.float64)))
        if abs(length - 1) > 1e-4 or self.norm <= 0:
            raise InvalidInputError(
                f"direction has length {length:.4g} and norm is {self.norm:.4g}; a unit vector and a norm above 0 "
                "were expected."
            )
        direction.setflags(write=False)
        object.__setattr__(self, "direction", direction)

    def to_dict(self) -> dict[str, Any]:
        """Return all but the direction as JSON values."""
        return {
            "layer": self.layer,
            "norm": self.norm,
            "offset": self.offset,
            "classes": list(self.classes),
            "fingerprint": self.fingerprint.to_dict(),
            "provenance": self.provenance,
        }


@contextmanager
def new_folder(path: str | Path, *, overwrite: bool = False, holds: str) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the context ends well, and vanishes otherwise.

    Only a folder that is empty or has the file ``holds``, by which it is known as written by steerkit, is replaced.

    Raises
    ------
    OutputExistsError
        ``path`` exists and ``overwrite`` is false.
    """
    given, path = path, Path(path).resolve()
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{given} exists; pass overwrite=True (--overwrite) to replace it, or another path.")
    if path.exists() and not (path.is_dir() and ((path / holds).is_file() or not any(path.iterdir()))):
        raise OutputExistsError(f"{given} was not written by steerkit (it has no {holds}); pass another path.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise InvalidInputError(f"{given} cannot be written ({error.strerror}); pass another path.") from error
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            old = temporary.with_name(temporary.name + "-old")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def save_vectors(folder: str | Path, vectors: Sequence[SteeringVector], **settings: Any) -> None:
    """Write vectors and JSON ``settings`` into an existing folder, with a digest over both."""
    tensors = save_tensors({f"direction.{index}": vector.direction for index, vector in enumerate(vectors)})
    content = {"format": 1, **settings, "vectors": [vector.to_dict() for vector in vectors]}
    content["sha256"] = _digest(content, tensors)
    Path(folder, TENSORS).write_bytes(tensors)
    Path(folder, CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_vectors(folder: str | Path) -> tuple[list[SteeringVector], dict[str, Any]]:
    """Read what `save_vectors` wrote: the vectors, bit-identical, and the settings. Nothing in the files is executed.

    Raises
    ------
    CorruptFileError
        A file is missing, truncated, oversized or was changed.
    """
    raw = _read(Path(folder, CONFIG))
    tensors = _read(Path(folder, TENSORS))
    try:
        content = json.loads(raw)
        digest = content.pop("sha256")
        if content["format"] != 1:
            raise CorruptFileError(f"{folder} has format {content['format']!r}, 1 was expected; upgrade steerkit.")
        if digest != _digest(content, tensors):
            raise CorruptFileError(
                f"{folder} was changed after it was saved: its digest does not match; get the original."
            )
        directions = load_tensors(tensors)
        vectors = [
            SteeringVector(
                direction=directions[f"direction.{index}"],
                layer=int(entry["layer"]),
                norm=float(entry["norm"]),
                offset=float(entry["offset"]),
                classes=(entry["classes"][0], entry["classes"][1]),
                fingerprint=Fingerprint(**entry["fingerprint"]),
                provenance=entry["provenance"],
            )
            for index, entry in enumerate(content.pop("vectors"))
        ]
    except CorruptFileError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise CorruptFileError(
            f"{folder} holds no readable steering vectors ({type(error).__name__}: {error}); save them again."
        ) from error
    return vectors, content


def _digest(content: dict[str, Any], tensors: bytes) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode() + tensors).hexdigest()


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise CorruptFileError(f"{path} is missing; pass a folder written by save_pretrained.")
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise CorruptFileError(
            f"{path} has {size} bytes, at most {LARGEST_FILE} were expected; it is no steering file."
        )
    return path.read_bytes()
