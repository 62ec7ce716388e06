"""benchmarks/run_all.py: the table of real scripts' claims, and that a failure or an absent peer is named."""

import runpy
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def run(scripts: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/run_all.py", "--scripts", str(scripts), "--out", str(scripts / "out")]
    return subprocess.run([*command, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_claims_absent_peers_and_failures_are_in_the_table(tmp_path: Path) -> None:
    claim = {"claim": "a | b", "ours": 3.14159, "peer": 2, "limit": None, "ratio": 1234.4, "unit": "images/s"}
    (tmp_path / "bench_good.py").write_text(
        f"import json\nprint('# words')\nprint('{{no json')\nprint(json.dumps({claim!r}))\n"
        "print('# dali         not measured: No module named nvidia')\n"
    )
    (tmp_path / "bench_bad.py").write_text("import no_such_peer\n")
    (tmp_path / "bench_silent.py").write_text("print('nothing')\n")
    (tmp_path / "bench_slow.py").write_text("import time\ntime.sleep(600)\n")
    done = run(tmp_path, "--timeout", "5")
    assert done.returncode == 1, done.stderr
    text = (tmp_path / "out" / "bench.md").read_text()
    assert "| a \\| b | 3.142 | 2 |  | 1,234 | images/s |" in text
    assert "- bad: FAILED, exit code 1: ModuleNotFoundError: No module named 'no_such_peer'" in text
    assert "- good: dali         not measured: No module named nvidia" in text
    assert "- silent: FAILED, printed no claim" in text
    assert "- slow: FAILED, took longer than 5 s" in text
    assert (tmp_path / "out" / "bench_good.log").read_text().startswith("# words")
    assert "no measurement" not in text
    good = run(tmp_path, "--only", "good", "--quick")
    assert "--quick: small settings, no measurement" in good.stdout
    assert good.returncode == 0
    assert "FAILED" not in good.stdout
    assert "is unknown: there are bad, good" in run(tmp_path, "--only", "goood").stderr


def test_every_benchmark_has_a_quick_setting() -> None:
    quick = runpy.run_path(str(REPOSITORY / "benchmarks" / "run_all.py"))["QUICK"]
    scripts = {path.stem.removeprefix("bench_"): path for path in REPOSITORY.glob("benchmarks/bench_*.py")}
    assert quick.keys() == scripts.keys()
    for name, options in quick.items():
        for option in options.split():
            assert not option.startswith("--") or f'add_argument("{option}"' in scripts[name].read_text()


def test_every_benchmark_states_a_command_that_finds_the_packages() -> None:
    """`python benchmarks/bench_loop.py` doesn't: an editable install has no `benchmarks` on its path."""
    for path in REPOSITORY.glob("benchmarks/bench_*.py"):
        assert path.read_text().splitlines()[2].startswith(f"python -m benchmarks.{path.stem}"), path
    assert "-m benchmarks.run_all" in (REPOSITORY / "Makefile").read_text()
