"""Vectors and their files: bit-identical back, never executed, never half-written, damage always noticed."""

import json
import re
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from steerkit.exceptions import CorruptFileError, InvalidInputError, NonFiniteError, OutputExistsError
from steerkit.fingerprint import Fingerprint
from steerkit.vectors import CONFIG, TENSORS, SteeringVector, load_vectors, new_folder, save_vectors

FINGERPRINT = Fingerprint("LlamaForCausalLM", 4, 8, "0123456789abcdef")


def vector(**changes: Any) -> SteeringVector:
    direction = np.arange(1, 9, dtype=np.float32)
    values: dict[str, Any] = {
        "direction": direction / np.linalg.norm(direction), "layer": 2, "norm": 3.7, "offset": -0.1,
        "classes": ("novice", "expert"), "fingerprint": FINGERPRINT, "provenance": {"learner": "probe"},
    }  # fmt: skip
    return SteeringVector(**{**values, **changes})


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=8, max_size=8).filter(lambda v: np.linalg.norm(v) > 1e-2))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_saved_vectors_load_bit_identical(tmp_path: Path, values: list[float]) -> None:
    direction = np.array(values) / np.linalg.norm(values)
    vectors = [vector(), vector(direction=direction, layer=1, norm=1 / 3, offset=2 / 3)]
    save_vectors(tmp_path, vectors, alpha=0.1)
    loaded, others = load_vectors(tmp_path)
    assert others["alpha"] == 0.1
    for before, after in zip(vectors, loaded, strict=True):
        assert before.direction.tobytes() == after.direction.tobytes()
        assert before.to_dict() == after.to_dict()


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_any_changed_or_missing_byte_is_noticed(tmp_path: Path, name: str) -> None:
    save_vectors(tmp_path, [vector()], alpha=0.1)
    original = (tmp_path / name).read_bytes()
    generator = np.random.default_rng(0)
    for place in generator.choice(len(original) - 2, size=100, replace=False):
        changed = bytearray(original)
        changed[place] ^= 1
        for content in (bytes(changed), original[:place], original + b"x" * (place + 1)):
            (tmp_path / name).write_bytes(content)
            try:
                loaded, others = load_vectors(tmp_path)
            except CorruptFileError:
                continue
            assert (loaded[0].to_dict(), others["alpha"]) == (vector().to_dict(), 0.1)  # white space of the JSON only
            assert loaded[0].direction.tobytes() == vector().direction.tobytes()


def test_changed_values_oversized_and_missing_files_say_so(tmp_path: Path) -> None:
    save_vectors(tmp_path, [vector()], alpha=0.1)
    config = tmp_path / CONFIG
    original = config.read_text()
    config.write_text(original.replace('"layer": 2', '"layer": 3'))
    expected = f"{tmp_path} was changed after it was saved: its digest does not match; get the original."
    with pytest.raises(CorruptFileError, match=f"^{re.escape(expected)}$"):
        load_vectors(tmp_path)
    config.write_text("[" * 100_000)
    with pytest.raises(CorruptFileError, match="holds no readable steering vectors"):
        load_vectors(tmp_path)
    config.write_text(json.dumps(["no", "mapping"]))
    with pytest.raises(CorruptFileError, match="holds no readable steering vectors"):
        load_vectors(tmp_path)
    with (tmp_path / TENSORS).open("r+b") as file:
        file.truncate(2**30)
    with pytest.raises(CorruptFileError, match=f"has {2**30} bytes, at most {64 * 2**20} were expected"):
        load_vectors(tmp_path)
    (tmp_path / TENSORS).unlink()
    with pytest.raises(CorruptFileError, match=re.escape(f"{TENSORS} is missing; pass a folder written by")):
        load_vectors(tmp_path)


@pytest.mark.parametrize(
    ("changes", "error", "expected"),
    [
        ({"direction": np.ones(7)}, InvalidInputError, "direction has shape (7,), (8,) was expected for the model."),
        ({"direction": np.ones(8)}, InvalidInputError, "direction has length 2.828 and norm is 3.7; a unit vector"),
        ({"norm": 0.0}, InvalidInputError, "direction has length 1 and norm is 0; a unit vector and a norm above 0"),
        ({"direction": np.full(8, np.nan)}, NonFiniteError, "direction, norm or offset holds NaN or Inf,"),
        ({"offset": np.inf}, NonFiniteError, "direction, norm or offset holds NaN or Inf,"),
    ],
)
def test_what_is_no_direction_is_refused(changes: dict[str, Any], error: type[Exception], expected: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(expected)}"):
        vector(**changes)


def test_a_vector_is_frozen() -> None:
    with pytest.raises(ValueError, match="read-only"):
        vector().direction[0] = 1
    with pytest.raises(AttributeError, match="cannot assign to field"):
        vector().layer = 1  # type: ignore[misc]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="half-way"), new_folder(tmp_path / "out", holds="file") as folder:
        (folder / "file").write_text("half")
        raise RuntimeError("half-way")
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "out", holds="file") as folder:
        (folder / "file").write_text("one")
    with (
        pytest.raises(OutputExistsError, match="exists; pass overwrite=True"),
        new_folder(tmp_path / "out", holds="file"),
    ):
        pass
    with pytest.raises(RuntimeError, match="again"), new_folder(tmp_path / "out", overwrite=True, holds="file"):
        raise RuntimeError("again")
    assert (tmp_path / "out" / "file").read_text() == "one"
    with new_folder(tmp_path / "out", overwrite=True, holds="file") as folder:
        (folder / "other").write_text("two")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["other"]
    expected = f"{tmp_path / 'out'} was not written by steerkit (it has no file); pass another path."
    with (
        pytest.raises(OutputExistsError, match=f"^{re.escape(expected)}$"),
        new_folder(tmp_path / "out", overwrite=True, holds="file"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
