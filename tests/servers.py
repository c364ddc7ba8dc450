"""Servers that tests start as processes of their own, on loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests

ROOT = Path(__file__).parents[1]
MLFLOW_WARNS = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
]
"""MLflow's own warnings, of its own imports."""


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(address: str, process: "subprocess.Popen[Any]", log: Path, seconds: int = 120) -> None:
    """Wait until a server answers, or fail as soon as its process has ended."""
    for _ in range(10 * seconds):
        assert process.poll() is None, f"the server ended with status {process.returncode}: {log.read_text()}"
        try:
            if requests.get(address, timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.1)  # until it listens
    raise AssertionError(f"{address} did not answer within {seconds} s: {log.read_text()}")


@contextmanager
def running(command: Sequence[str], log: Path, *, answers: str) -> Iterator[None]:
    """Run a server until the context ends; inside, it answers at an address."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow calls uvicorn by its name
    options = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment = {**os.environ, **options, "PATH": path}
    with (
        log.open("w") as output,
        subprocess.Popen(
            command, env=environment, cwd=log.parent, stdout=output, stderr=output, start_new_session=True
        ) as server,
    ):
        try:
            wait_for(answers, server, log)
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)  # SIGINT is ignored by what a script starts in the background
                with suppress(subprocess.TimeoutExpired):
                    server.wait(timeout=30)
                os.killpg(server.pid, signal.SIGKILL)
