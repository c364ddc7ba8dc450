"""Claim: time grows linearly with prompts, layers and alphas, and peak memory does not grow with prompts.

``python benchmarks/scaling.py`` reads activations of 100 to 10 000 prompts with a small Gemma-3-shaped model, each
number in a process of its own (peak memory is that of a process), then of 1 to 16 layers, then decodes at 8 to 64
alphas. The figures are relative to the smallest of each; the last line is the exponent of time over prompts.
"""

import json
import resource
import subprocess
import sys
import time

import numpy as np
from gemma_shaped import language_model, many
from measure import one_thread, show

from steerkit import ActivationExtractor
from steerkit.decoding import generate_rows

SMALL = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "query_pre_attn_scalar": 64}
COUNTS = (100, 316, 1000, 3162, 10000)


def read(count: int) -> None:
    """Print what a number of prompts takes: seconds, and peak memory beyond that of the loaded model, in MiB."""
    model, prompts = language_model(8, **SMALL), many(count)
    extractor = ActivationExtractor(model, layers=[4])
    extractor.transform(prompts[:100])
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    extractor.transform(prompts)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "MiB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}))


def main() -> None:
    """Print what was measured."""
    one_thread()
    if len(sys.argv) > 1:
        return read(int(sys.argv[1]))
    found = []
    for count in COUNTS:
        output = subprocess.run(
            [sys.executable, __file__, str(count)], capture_output=True, text=True, check=True
        ).stdout
        found.append(json.loads(output))
        result = count * SMALL["hidden_size"] * 4 / 2**20
        print(
            f"{count:6} prompts: time x {found[-1]['seconds'] / found[0]['seconds']:.1f}, peak memory beyond that of "
            f"100 prompts {found[-1]['MiB']:.0f} MiB, of which the result is {result:.0f}"
        )
    model, prompts = language_model(), many(120)
    times = {
        n: _timed(lambda n=n: ActivationExtractor(model, layers=list(range(n))).transform(prompts)) for n in (4, 8, 16)
    }
    print("layers:", *(f"{n}: time x {seconds / times[4]:.2f}" for n, seconds in times.items()))
    (sequence,), step = model.encode(["What is a neutron star?"]), np.ones(model.hidden_size, dtype=np.float32)
    times = {
        n: _timed(
            lambda n=n: generate_rows(
                model, [sequence] * n, [8] * n, [a * step for a in range(1, n + 1)], max_new_tokens=16
            )
        )
        for n in (8, 16, 32, 64)
    }
    print("alphas:", *(f"{n}: time x {seconds / times[8]:.2f}" for n, seconds in times.items()))
    slope = np.polyfit(np.log(COUNTS[1:]), np.log([f["seconds"] for f in found[1:]]), 1)[0]
    show("growth of time with prompts, exponent", float(slope), 1.1, at_least=False)
    return None


def _timed(work: object) -> float:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        work()  # type: ignore[operator]
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
