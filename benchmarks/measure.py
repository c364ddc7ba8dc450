"""How the benchmarks measure: several ways in turn, in one run, on one thread; ratios of medians, beside their bars."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin make timings on a busy machine meaningless

import torch

ROW = "{name}: {value:.2f} x (required {sign} {bar:g})"
"""What `report.py` looks for in the output of a benchmark."""


def one_thread() -> None:
    """Use one thread everywhere, so that nothing but the work differs."""
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)


def interleaved(ways: dict[str, Callable[[], object]], repetitions: int = 5) -> dict[str, list[float]]:
    """Run each way in turn, ``repetitions`` times after one run of each that does not count; seconds by name.

    A way that measures itself, in another process, returns its seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repetitions + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            told = way()
            seconds = told if isinstance(told, float) else time.perf_counter() - start
            if number:
                times[name].append(seconds)
    return times


def ratio(times: dict[str, list[float]], slower: str, faster: str) -> float:
    """Return the median over the repetitions of how many times as long one took as the other, side by side."""
    return statistics.median(a / b for a, b in zip(times[slower], times[faster], strict=True))


def show(name: str, value: float, bar: float, *, at_least: bool = True) -> None:
    """Print a claim with its bar; the last lines of every benchmark."""
    print(ROW.format(name=name, value=value, sign="≥" if at_least else "≤", bar=bar), flush=True)


def gemm_rate(rows: int = 256, size: int = 2048, dtype: torch.dtype = torch.float32) -> float:
    """Return the rate of a large matrix product on this machine now, in FLOP per second."""
    one, other = torch.randn(rows, size).to(dtype), torch.randn(size, size).to(dtype)
    seconds = []
    for _ in range(12):
        start = time.perf_counter()
        one @ other
        seconds.append(time.perf_counter() - start)
    return 2 * rows * size * size / min(seconds)


def machine() -> str:
    """Describe what the figures were measured on."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text(encoding="utf-8").splitlines() if cpus.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
