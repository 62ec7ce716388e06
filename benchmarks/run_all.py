"""Every benchmark, one after another, and one table of their claims: ours, the peer, the limit, the ratio.

python -m benchmarks.run_all [--quick] [--only step shard ...] [--out work/bench] [--scripts FOLDER] [--timeout 3600]
Each script prints one JSON object per line: claim, ours, peer, limit, ratio, unit, machine. Below the table are listed
the peers that could not be measured, for example because they aren't installed, and scripts that failed (exit code 1).
The table is written to OUT/bench.md, each script's output to OUT/<script>.log. Nothing else should run on the machine.
--quick only shows, within minutes, that all of them run: its settings are too small for measurements.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
QUICK = {
    "checkpoint": "--rounds 1",
    "index": "--samples 50000 --rounds 1",
    "learning": "--epochs 1 --seeds 1",
    "loader": "--images 200 --rounds 1",
    "loop": "--steps 10 --rounds 1",
    "neighbour": "--gigabytes 0.1 --rounds 1",
    "order": "--rate 10",
    "predict": "--images 200 --rounds 1",
    "shard": "--gigabytes 0.1 --rounds 1",
    "start": "--rounds 1",
    "step": "--rounds 1 --dtypes float32",
    "system_metrics": "--steps 10 --rounds 1",
    "tracking": "--steps 40 --rounds 1",
    "train": "--seconds 2 --eager",
}
COLUMNS = ("claim", "ours", "peer", "limit", "ratio", "unit")


@dataclass
class Outcome:
    """The outcome of one script."""

    name: str
    seconds: float = 0.0
    claims: list[dict[str, Any]] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)  # lines that say what was not measured
    fault: str = ""  # why the script failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small settings: takes minutes, measures nothing")
    parser.add_argument("--only", nargs="+", default=[], help="names of scripts, without bench_")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "work" / "bench")
    parser.add_argument("--scripts", type=Path, default=REPOSITORY / "benchmarks")
    parser.add_argument("--timeout", type=float, default=3600.0, help="most seconds per script")
    arguments = parser.parse_args()
    scripts = {path.stem.removeprefix("bench_"): path for path in sorted(arguments.scripts.glob("bench_*.py"))}
    unknown = [name for name in arguments.only if name not in scripts]
    if unknown:
        parser.error(f"--only {unknown[0]!r} is unknown: there are {', '.join(scripts)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for name, path in scripts.items():
        if not arguments.only or name in arguments.only:
            options = QUICK.get(name, "").split() if arguments.quick else []
            outcomes.append(run(name, [str(path), *options], arguments.out / f"{path.stem}.log", arguments.timeout))
            # after each script: the next may take an hour
            (arguments.out / "bench.md").write_text(table(outcomes, quick=arguments.quick), encoding="utf-8")
    print(table(outcomes, quick=arguments.quick))
    return 1 if any(outcome.fault for outcome in outcomes) else 0


def run(name: str, script: list[str], log: Path, timeout: float) -> Outcome:
    """Run one script with its options in a separate process; its output is shown and written to ``log``."""
    print(f"== {name} {' '.join(script[1:])}", flush=True)
    outcome, began = Outcome(name), time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with log.open("w+", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, *script], env=environment, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
            outcome.fault = f"took longer than {timeout:.0f} s"
        file.seek(0)
        lines = file.read().splitlines()
    print("\n".join(lines), flush=True)
    outcome.seconds = time.monotonic() - began
    outcome.claims = claims(lines)
    outcome.absent = [line.lstrip("# ") for line in lines if "not measured" in line or "not installed" in line]
    if not outcome.fault and code:
        outcome.fault = f"exit code {code}: {next((line for line in reversed(lines) if line.strip()), '')}"
    if not outcome.fault and not outcome.claims:
        outcome.fault = "printed no claim"
    return outcome


def claims(lines: list[str]) -> list[dict[str, Any]]:
    """The JSON objects with a claim among lines of output."""
    found = []
    for line in lines:
        if line.startswith("{"):
            try:
                content = json.loads(line)
            except ValueError:
                continue
            if "claim" in content:
                found.append(content)
    return found


def table(outcomes: list[Outcome], *, quick: bool) -> str:
    """Markdown: one row per claim, then what was not measured."""
    today = datetime.datetime.now(datetime.UTC).date()
    how = ", --quick: small settings, no measurement" if quick else ""
    lines = [f"Benchmarks, {today}, {machine()}{how}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for outcome in outcomes:
        lines += [f"| {' | '.join(cell(claim.get(name)) for name in COLUMNS)} |" for claim in outcome.claims]
    missing = [f"- {outcome.name}: {text}" for outcome in outcomes for text in outcome.absent]
    failed = [f"- {outcome.name}: FAILED, {outcome.fault}" for outcome in outcomes if outcome.fault]
    if missing or failed:
        lines += ["", "Not measured:", "", *failed, *missing]
    lines += ["", "Minutes: " + ", ".join(f"{outcome.name} {outcome.seconds / 60:.1f}" for outcome in outcomes)]
    return "\n".join(lines) + "\n"


def cell(value: Any) -> str:
    text = f"{value:,.4g}" if isinstance(value, float) else "" if value is None else str(value)
    return text.replace("|", "\\|")


def machine() -> str:
    return f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
