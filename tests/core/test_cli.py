"""One line for a user's mistake, exit codes, output that nobody reads."""

import errno
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import SafetensorError

from pipeline.core import cli, errors
from pipeline.core.errors import UserError
from pipeline.core.files import check_can_make, naming, readable_as_folder


@pytest.mark.parametrize(("code", "expected"), [(None, 0), (0, 0), (75, 75)])
def test_the_exit_code_is_mains(code: int | None, expected: int) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: code)
    assert caught.value.code == expected


def test_a_user_error_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise UserError("field 1\n  is wrong: change it")

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == errors.EXIT_USER
    assert capsys.readouterr().err == "error: field 1 is wrong: change it\n"


@pytest.mark.parametrize("refused", [True, False])
def test_a_job_learns_of_a_refusal_through_a_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], refused: bool
) -> None:
    def main() -> int:
        if refused:
            raise UserError("--batch 0 must be at least 1")
        return 1

    monkeypatch.setenv("REFUSED_MARK", str(tmp_path / "mark"))
    with pytest.raises(SystemExit):
        cli.run(main)
    assert (tmp_path / "mark").exists() == refused
    monkeypatch.setenv("REFUSED_MARK", str(tmp_path / "nowhere" / "mark"))  # such as a container's /tmp
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == (2 if refused else 1)
    capsys.readouterr()


def test_a_reader_that_leaves_is_no_error() -> None:
    program = "from pipeline.core import cli\n"
    program += "def main():\n    for _ in range(100_000): print('line', flush=True)\ncli.run(main)\n"
    writer = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stderr is not None
    assert writer.stdout.readline() == "line\n"
    writer.stdout.close()
    assert writer.wait(timeout=100) == 0
    assert writer.stderr.read() == ""
    writer.stderr.close()


@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [("| true", 0, ""), (">/dev/full", 2, "error: the standard output: No space left on device\n"), (">&-", 0, "")],
)
def test_output_that_nobody_gets(redirection: str, code: int, said: str) -> None:
    program = (
        "import sys, time\nfrom pipeline.core import cli\nimport tyro\nfrom rich.console import Console\n"
        "def main():\n    time.sleep(0.2)\n    sys.stdout.isatty()\n    print('line')\n    Console().print('line')\n"
        "cli.run(main)\n"
    )
    command = f'set -o pipefail; {shlex.quote(sys.executable)} -c "$PROGRAM" {redirection}'
    environment = os.environ | {"PROGRAM": program, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (code, said.splitlines())


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setenv("HOME", "")  # put back at the end
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(SystemExit) as left:
        cli.run(lambda: int(Path.home() != Path("/")))
    assert left.value.code == 0


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENOTDIR])
def test_what_a_file_system_refuses_is_one_line(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise OSError(number, os.strerror(number), "/some/file")

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == errors.EXIT_USER
    assert capsys.readouterr().err == f"error: '/some/file': {os.strerror(number)}\n"


@pytest.mark.parametrize("by_safetensors", [False, True])
def test_a_disk_that_fills_while_a_file_is_written_is_one_line(
    by_safetensors: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        with naming(Path("/some/file")):
            if by_safetensors:
                raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
            Path("/dev/full").write_text("text")
        return 0

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == errors.EXIT_USER
    assert capsys.readouterr().err == "error: '/some/file': No space left on device\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_where_the_system_names_no_file(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise OSError(number, os.strerror(number))

    with pytest.raises(SystemExit) as left:
        cli.run(main)
    assert (left.value.code, capsys.readouterr().err) == (2, f"error: {os.strerror(number)}\n")


def test_of_a_link_that_cannot_be_made_its_own_name_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit):
        cli.run(lambda: (file / "link").symlink_to("target"))
    assert capsys.readouterr().err == f"error: {str(file / 'link')!r}: Not a directory\n"


def test_a_link_to_nowhere_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match=f"--out '{tmp_path}/link' can't be created: '{tmp_path}/link' is not a"):
        check_can_make(tmp_path / "link", "--out")


def test_a_terminal_without_the_letters_of_a_name_stops_nothing() -> None:
    program = "from pipeline.core import cli; cli.run(lambda: print('r\u00fcn'))"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"r\\xfcn\n")


@pytest.mark.parametrize(("folder", "file"), [(0o700, 0o600), (0o755, 0o644), (0o2775, 0o644), (0o750, 0o640)])
def test_tensors_are_for_those_who_may_look_into_their_folder(tmp_path: Path, folder: int, file: int) -> None:
    path = tmp_path / "model.safetensors"
    path.touch(mode=0o600)
    tmp_path.chmod(folder)
    readable_as_folder(path)
    assert path.stat().st_mode & 0o777 == file


def test_other_faults_keep_their_traceback() -> None:
    def main() -> int:
        raise OSError(errno.EBADF, "a bug of ours", "/some/file")

    with pytest.raises(OSError, match="a bug of ours"):
        cli.run(main)


@dataclass
class _Options:
    form: str = "auto"
    """Form of INPUT. tars: a folder of
    <wnid>.tar files, as
    jobs.plan and data_prep.shard take it."""


def test_the_help_of_an_option_is_one_line_in_the_user_s_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with cli.calling({"python -m jobs.plan": "vit plan"}), pytest.raises(SystemExit):
        cli.parse(_Options, prog="python -m jobs.plan", description="Do it.\n\n  torchrun -m jobs.plan", args=["-h"])
    text = capsys.readouterr().out
    assert "tars: a folder of <wnid>.tar files, as vit plan and data_prep.shard take it." in text
    assert "\n  torchrun -m jobs.plan\n" in text
