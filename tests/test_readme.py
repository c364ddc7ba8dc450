"""Every Python snippet of the README runs, in order, in one namespace."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import MLFLOW_WARNS

pytestmark = MLFLOW_WARNS
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store_uri: str) -> Iterator[None]:
    """A user's folder, with MLflow's database in it, since to make one takes seconds."""
    import mlflow

    (tmp_path / "mlruns").mkdir()
    shutil.copy(store_uri.removeprefix("sqlite:///"), tmp_path / "mlruns" / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    yield
    mlflow.set_tracking_uri(None)


@pytest.mark.usefixtures("home")
def test_the_readme_s_snippets_run() -> None:
    namespace: dict[str, object] = {}
    assert len(SNIPPETS) >= 3
    for snippet in SNIPPETS:
        exec(compile(snippet, "README.md", "exec"), namespace)  # noqa: S102


def test_the_readme_s_commands_exist() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
    for recipe in re.findall(r"recipes/[\w-]+\.yaml", README):
        assert (Path(__file__).parents[1] / recipe).is_file()
