"""Sources that are downloaded while they are read: https, http and s3 from real servers, and what goes wrong there."""

import contextlib
import http.server
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from s3fs import S3FileSystem

from data_prep import shard
from data_prep.sources import inputs, streams
from data_prep.sources.parts import find_parts, splits_of
from pipeline.core import cli, errors
from pipeline.core.errors import UserError
from tests.data_prep import releases, servers
from tests.data_prep.refused import refused
from tests.data_prep.releases import Images, contents, write_webdataset
from tests.dataset.flaky_server import Server

OPTIONS = ("--samples-per-shard", "16", "--name", "mini", "--workers", "1")


def command(source: str, output: Path, env: dict[str, str], *more: object) -> "subprocess.CompletedProcess[str]":
    """The command as a user starts it: the addresses and certificates of clouds come by the environment."""
    line = [sys.executable, "-m", "data_prep.shard", source, str(output), *OPTIONS, *map(str, more)]
    return subprocess.run(line, env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def folder(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fall11's form, winter21's, and WebDataset tars with their class list. Read only."""
    path = tmp_path_factory.mktemp("served")
    releases.make("tar of tars", images, path)
    releases.make("gzip stream", images, path)
    write_webdataset(images, path / "foreign")
    (path / "wnids.txt").write_text("\n".join(sorted(images)))
    return path


@pytest.fixture(scope="module")
def reference(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("reference") / "data"
    listed = ("--classes", str(folder / "wnids.txt"))
    assert shard.main([str(folder / "whole.tar"), str(output), *OPTIONS, *listed]) == 0
    return contents(output)


@pytest.fixture(scope="module")
def cloud(folder: Path) -> Iterator[dict[str, str]]:
    """The environment that leads to a bucket ``raw`` with the same files."""
    with servers.s3() as address:
        tars = [folder / "whole.tar", folder / "whole.tar.gz", *sorted((folder / "foreign").glob("*.tar"))]
        servers.upload(address, "raw-data", tars)
        yield address


@pytest.mark.parametrize("name", ["whole.tar", "whole.tar.gz", "foreign/shard-{000..002}.tar"])
def test_a_release_over_https(name: str, folder: Path, reference: dict[str, bytes], tmp_path: Path) -> None:
    certificate = servers.make_certificate(tmp_path / "certificate.pem")
    with servers.serving(folder, certificate) as address:
        trusting = {"SSL_CERT_FILE": str(certificate)}
        run = command(f"{address}/{name}", tmp_path / "out", trusting, "--classes", folder / "wnids.txt")
        assert run.returncode == 0, run.stderr
        assert contents(tmp_path / "out") == reference
        if name == "whole.tar":
            run = command(f"{address}/{name}", tmp_path / "wary", {})  # nobody vouches for the certificate
            assert run.returncode == 2
            assert one_line(run.stderr, f"{address}/{name}", "certificate verify failed")


@pytest.mark.parametrize("name", ["whole.tar", "whole.tar.gz", "shard-{000..002}.tar"])
def test_a_release_on_s3(
    name: str, folder: Path, reference: dict[str, bytes], cloud: dict[str, str], tmp_path: Path
) -> None:
    run = command(f"s3://raw-data/{name}", tmp_path / "out", cloud, "--classes", folder / "wnids.txt")
    assert run.returncode == 0, run.stderr
    assert contents(tmp_path / "out") == reference


def test_tasks_read_s3_each_for_itself(
    folder: Path, reference: dict[str, bytes], cloud: dict[str, str], tmp_path: Path
) -> None:
    more = ("--classes", folder / "wnids.txt", "--tasks", 2)
    for last in (("--task", 0), ("--task", 1), ("--finalize",)):
        run = command("s3://raw-data/whole.tar", tmp_path / "out", cloud, *more, *last)
        assert run.returncode == 0, run.stderr
    assert contents(tmp_path / "out") == reference


def one_line(errors: str, *parts: str) -> bool:
    """Whether a command that was refused said so in one line that has the parts."""
    (line,) = errors.splitlines()
    assert line.startswith("error: "), line
    for part in parts:
        assert part in line
    return True


def test_what_is_not_there_is_one_line(
    folder: Path,
    cloud: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with servers.serving(folder) as address:
        cases: list[tuple[str, dict[str, str]]] = [
            (f"{address}/none.tar", {}),
            ("http://127.0.0.1:1/whole.tar", {}),
            ("s3://raw-data/none.tar", cloud),
            ("s3://no-such-bucket/whole.tar", cloud),
            ("s3://raw-data/whole.tar", {**cloud, "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "1"}),
            ("s9://raw-data/whole.tar", {}),
        ]
        for source, env in cases:
            with monkeypatch.context() as here:
                for name, value in env.items():
                    here.setenv(name, value)
                S3FileSystem.clear_instance_cache()  # it knows no environment
                assert one_line(refused(capsys, shard.main, source, tmp_path / "out"), "INPUT", source, "can't be read")
            assert not (tmp_path / "out").exists()
        S3FileSystem.clear_instance_cache()


def test_a_login_in_the_address_is_refused_and_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in ("https://me:s3cret@host/whole.tar", "s3://me:s3cret@bucket/whole.tar"):
        with pytest.raises(SystemExit) as caught:
            cli.run(partial(shard.main, [source, str(tmp_path / "out")]))
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert one_line(error, "INPUT", "/whole.tar", ".netrc")
        assert "s3cret" not in error
        assert not (tmp_path / "out").exists()


def test_urls_that_are_signed_anew_are_one_input_and_kept_nowhere(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Signed(servers.Files):
        def translate_path(self, path: str) -> str:
            return super().translate_path("/gone" if path.endswith(expired) else path)

    monkeypatch.setattr(servers, "Files", Signed)
    write_webdataset(images, tmp_path / "foreign")
    with tarfile.open(tmp_path / "foreign" / "shard-001.tar", "a") as tar:
        releases.add(tar, "no_class.jpg", b"no class")
    expired = "none"
    with servers.serving(tmp_path / "foreign") as address:
        url, out = f"{address}/shard-{{000..002}}.tar", tmp_path / "signed"
        assert shard.main([url, str(tmp_path / "plain"), *OPTIONS]) == 0
        for count, step in enumerate((("--task", "0"), ("--task", "1"), ("--finalize",))):
            assert shard.main([f"{url}?test=s3cret{count}", str(out), *OPTIONS, "--tasks", "2", *step]) == 0
            expired = f"s3cret{count}"
            assert not any(b"s3cret" in path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert contents(out) == contents(tmp_path / "plain")


def test_queries_are_names_only_where_nothing_else_tells_urls_apart() -> None:
    def classes(url: str) -> list[str]:
        return [part.wnid for part in find_parts(inputs.find(url, "tars", None, None))]

    assert classes("https://h/n{1,2}.tar?test=a#b") == ["n1", "n2"]
    assert classes("https://h/get?n={1,2}.tar") == ["get?n=1", "get?n=2"]
    assert classes("s3://h/n?{1,2}.tar") == ["n?1", "n?2"]
    assert splits_of(inputs.find("https://h/n{1,2}.tar?test=a", "webdataset", None, None)) == ["train"]


def test_a_missing_package_is_named_with_the_extra_that_has_it(cloud: dict[str, str], tmp_path: Path) -> None:
    program = "import sys; sys.modules['s3fs'] = None; from data_prep import shard; from pipeline.core import cli; "
    program += "cli.run(shard.main)"
    line = [sys.executable, "-c", program, "s3://raw-data/whole.tar", str(tmp_path / "out")]
    run = subprocess.run(line, env={**os.environ, **cloud}, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 2
    assert one_line(run.stderr, "pip install 'vit-pipeline[remote]'")


def test_a_signal_while_a_url_is_read_stops_in_order(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Signalled(servers.Files):
        def translate_path(self, path: str) -> str:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().translate_path(path)

    monkeypatch.setattr(servers, "Files", Signalled)
    with servers.serving(folder) as address:
        assert shard.main([f"{address}/whole.tar", str(tmp_path / "out"), *OPTIONS]) == errors.EXIT_REQUEUE
    assert "run the same command to resume" in capsys.readouterr().err


@pytest.mark.parametrize("ranges", [True, False])
def test_what_fails_on_the_way_is_asked_for_again(
    ranges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "PAUSE", 0.01)
    content = bytes(range(1, 241)) * 90_000  # several requests
    (tmp_path / "whole.tar").write_bytes(content)
    faults = ("", "cut", "error", "") if ranges else ("", "error", "cut", "cut", "")
    with Server(tmp_path, faults, ranges=ranges) as server:
        stream = streams.open_stream(f"{server.url}/whole.tar")
        assert stream.read(0, len(content) + 1) == content
        assert {fault for _, fault in server.requests} >= {"cut", "error"}


@contextmanager
def chunked(parts: list[bytes]) -> Iterator[str]:
    """A URL whose server says no length and knows no ranges. Each request gets the next of ``parts``, then a break;
    from the last one on they end in order. fsspec asks for the size, in vain, before it reads."""
    waiting = list(parts)

    class Chunked(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if self.command == "HEAD":
                return
            last = len(waiting) == 1
            content = waiting[0] if last else waiting.pop(0)
            with contextlib.suppress(OSError):
                for start in range(0, len(content), 65536):
                    block = content[start : start + 65536]
                    self.wfile.write(b"%x\r\n" % len(block) + block + b"\r\n")
                if last:
                    self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Chunked)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/whole.tar"
    finally:
        server.shutdown()
        server.server_close()


def test_a_stream_of_unknown_length_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PAUSE", 0.01)
    content = np.random.default_rng(0).bytes(5_000_000)
    sizes = (3_000_000, 3_000_000, 1_000_000, 1_000_000, 4_000_000, 4_000_000, len(content))
    with chunked([content[:size] for size in sizes]) as url:
        assert b"".join(streams._raw(url)) == content


def test_a_stream_that_is_another_one_after_the_break_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PAUSE", 0.01)
    content = np.random.default_rng(0).bytes(5_000_000)
    changed = content[:10] + b"other" + content[15:]
    with (
        chunked([content[:3_000_000], content[:3_000_000], changed]) as url,
        pytest.raises(UserError, match="changed while it was read"),
    ):
        list(streams._raw(url))


def test_a_download_that_breaks_off_is_said(images: Images, tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    whole = releases.make("gzip stream", images, tmp_path).read_bytes()
    (served / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    with servers.serving(served) as address:
        run = command(f"{address}/cut.tar.gz", tmp_path / "out", {})
    assert run.returncode == 2
    assert one_line(run.stderr, "cut.tar.gz", "cut short", "download it again")
    assert not (tmp_path / "out").exists()
