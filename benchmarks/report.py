"""Run the benchmarks of speed and write their table: ``python benchmarks/report.py [script ...]``.

``docs/benchmarks.md`` gets every claim with its bar, what each script said on the way, and what it was measured on.
Exits with 1 if a bar is missed.
"""

import re
import subprocess
import sys
from pathlib import Path

from measure import machine

HERE = Path(__file__).parent
SCRIPTS = ("activations", "probes", "steering_overhead", "sweeps", "sparse_probes", "scaling")
CLAIM = re.compile(r"^(?P<name>.+): (?P<value>[\d.]+) x \(required (?P<sign>[≥≤]) (?P<bar>[\d.]+)\)$", re.MULTILINE)


def main() -> None:
    """Run, print and write."""
    chosen = sys.argv[1:] or SCRIPTS
    lines, notes, missed = [], [], []
    for script in chosen:
        result = subprocess.run(
            [sys.executable, HERE / f"{script}.py"], stdout=subprocess.PIPE, text=True, check=False, cwd=HERE.parent
        )
        print(result.stdout, flush=True)
        if result.returncode:
            missed.append(f"{script} ended with {result.returncode}")
        for claim in CLAIM.finditer(result.stdout):
            value, bar = float(claim["value"]), float(claim["bar"])
            met = value >= bar if claim["sign"] == "≥" else value <= bar
            lines.append(f"| {claim['name']} | {value:.2f} | {claim['sign']} {bar:g} | {'yes' if met else '**no**'} |")
            if not met:
                missed.append(claim["name"])
        notes.append(f"### {script}\n\n```\n{CLAIM.sub('', result.stdout).strip()}\n```")
    table = ["| claim | measured | required | met |", "|---|---|---|---|", *lines]
    print("\n".join(table))
    if chosen == SCRIPTS:
        write(table, notes)
    if missed:
        raise SystemExit(f"missed: {', '.join(missed)}")


def write(table: list[str], notes: list[str]) -> None:
    """Write the page."""
    page = [
        "# Benchmarks",
        "Written by `make bench`; each row is the last line of a script in `benchmarks/`, which says what it measures. "
        "All are ratios of times taken in turn, in one run, on one thread (medians of several repetitions), because "
        "absolute times say more of a machine than of a program.",
        f"Machine: {machine()}.",
        "\n".join(table),
        "## What the scripts said on the way",
        *notes,
    ]
    path = HERE.parent / "docs" / "benchmarks.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
