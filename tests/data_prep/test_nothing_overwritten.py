"""Nothing is lost, taken for something else or overwritten where input or folders aren't what they should be."""

import os
import shutil
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep import index, shard, verify, work_folder
from data_prep.images.jpeg_header import RejectedError
from data_prep.images.prepare import ImageOptions, prepare
from data_prep.work_folder import alone
from pipeline.core.errors import UserError
from pipeline.dataset import format as dataset_format
from pipeline.imaging import jpeg
from tests.data_prep import releases
from tests.data_prep.datasets import keys, shard_into, wnids
from tests.data_prep.releases import Images, add, contents, folders


def findings(dataset: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    verify.main([str(dataset), "--workers", "1"])
    return capsys.readouterr().out


def test_two_at_once_don_t_share_a_folder(photos: list[bytes], tmp_path: Path) -> None:
    source, out = folders(tmp_path / "raw", photos, "a", "b"), tmp_path / "out"
    with alone(out, None), pytest.raises(UserError, match="is being written by another process"):
        shard.main([str(source), str(out), "--workers", "1"])
    assert not out.exists()
    shard_into(source, out, "--workers", 1)
    assert len(keys(out)) == 4


@pytest.mark.parametrize("when", ["open", "try_lock"])
def test_a_lock_is_that_of_the_folder_that_is_there(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that fails removes the work folder, just when the next task of the array opens its lock or locks it."""
    out, removed = tmp_path / "out", []
    where = os if when == "open" else work_folder
    real = getattr(where, when)

    def after_the_other_failed(*arguments: Any, **more: Any) -> Any:
        if not removed and str(out) in f"{arguments}":
            removed.append(out)
            shutil.rmtree(out)
        return real(*arguments, **more)

    monkeypatch.setattr(where, when, after_the_other_failed)
    with alone(out, 0):
        assert removed
        with pytest.raises(UserError, match="is being written by another process"), alone(out, None):
            pass
        with alone(out, 1):
            pass
    assert not out.exists()


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from data_prep.work_folder import alone\n"
    code += "with alone(Path(sys.argv[1]), None): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=120, check=False).returncode == 9
    with alone(tmp_path, None):
        pass


def test_foreign_files_are_not_overwritten(photos: list[bytes], tmp_path: Path) -> None:
    source, out = folders(tmp_path / "raw", photos, "a"), tmp_path / "out"
    out.mkdir()
    (out / "train-00000.tar").write_text("somebody's")
    with pytest.raises(UserError, match=r"is not an unfinished dataset of vit shard, but contains train-00000\.tar"):
        shard.main([str(source), str(out)])
    assert (out / "train-00000.tar").read_text() == "somebody's"


def test_a_finished_data_set_that_lost_a_shard_is_not_called_finished(photos: list[bytes], tmp_path: Path) -> None:
    source = folders(tmp_path / "raw", photos, "a", "b")
    out = shard_into(source, tmp_path / "out", "--samples-per-shard", 1, "--workers", 1)
    (out / "train-00002.tar").unlink()
    with pytest.raises(UserError, match=r"1 of its shards are now missing or cut short \(train-00002\.tar\)"):
        shard_into(source, out, "--samples-per-shard", 1)


def test_a_task_answers_for_its_share_of_what_scanning_found(photos: list[bytes], tmp_path: Path) -> None:
    source = folders(tmp_path / "raw", photos, "a", "b", each=24)
    for number in range(12):
        (source / "a" / f"gone{number}.jpg").symlink_to("nowhere")
    options = ("--samples-per-shard", 4, "--failure-budget", "30%", "--workers", 1, "--name", "x")
    shard_into(source, tmp_path / "whole", *options)
    for task in range(12):
        shard_into(source, tmp_path / "out", *options, "--tasks", 12, "--task", task)
    shard_into(source, tmp_path / "out", *options, "--tasks", 12, "--finalize")
    for name in ("index.parquet", "rejects.parquet", "train-00000.tar"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_finalization_that_was_killed_is_run_again(photos: list[bytes], tmp_path: Path) -> None:
    """It had deleted the shard of which every image was rejected."""
    source = folders(tmp_path / "raw", photos, "a", "b")
    next((source / "a").iterdir()).write_bytes(b"no image")
    options = ("--samples-per-shard", 1, "--failure-budget", "50%", "--workers", 1, "--name", "x")
    whole = shard_into(source, tmp_path / "whole", *options)
    for task in (0, 1):
        shard_into(source, tmp_path / "out", *options, "--tasks", 2, "--task", task)
    names = [{path.name for path in folder.glob("*.tar")} for folder in (tmp_path / "out", whole)]
    (empty,) = names[0] - names[1]
    (tmp_path / "out" / empty).unlink()
    shard_into(source, tmp_path / "out", *options, "--tasks", 2, "--finalize")
    assert contents(tmp_path / "out") == contents(whole)


def test_images_at_another_depth_than_the_first_have_no_class(photos: list[bytes], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "raw.tar", "w") as tar:
        for place, name in enumerate(("./tabby/x.jpg", "./tabby/garden/1.jpg", "./lynx/x.jpg", "./lynx/garden/1.jpg")):
            add(tar, name, photos[place])
    out = shard_into(tmp_path / "raw.tar", tmp_path / "out", "--workers", 1)
    assert wnids(out) == ["lynx", "tabby"]
    assert dataset_format.read_rejects(out, ["reason"])["reason"].to_pylist() == ["no_class"] * 2


def test_excluded_keys_of_any_name(photos: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folders(tmp_path / "raw", photos, "#food", "li\u2028ne", "plain", each=1)
    every = keys(shard_into(source, tmp_path / "all", "--workers", 1))
    assert every == {"#food/0", "li\u2028ne/0", "plain/0"}
    (tmp_path / "gone").write_text("# key\tother\n#food/0\tx\r\nli\u2028ne/0\nplain/0.jpg\n")
    assert keys(shard_into(source, tmp_path / "out", "--exclude", tmp_path / "gone", "--workers", 1)) == {"plain/0"}
    assert "warning: 1 of 3 keys in --exclude are not images of INPUT" in capsys.readouterr().err


def test_our_own_data_sets_keep_their_keys(photos: list[bytes], tmp_path: Path) -> None:
    for place, name in enumerate(("x/IMG.1.jpg", "do.t/1.jpg", "x/50%.jpg", "x/n01_2.jpg")):
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).write_bytes(photos[place])
    first = shard_into(tmp_path / "raw", tmp_path / "first", "--workers", 1, "--name", "x")
    assert keys(first) == {"x/IMG%2E1", "do%2Et/1", "x/50%25", "x/n01_2"}
    again = shard_into(first, tmp_path / "again", "--workers", 1, "--name", "x")
    assert contents(again) == contents(first)


def test_class_lists_with_spaces_comments_and_a_byte_order_mark(photos: list[bytes], tmp_path: Path) -> None:
    source = folders(tmp_path / "raw", photos, "sea lion", "lynx", "n01440764", each=1)
    (tmp_path / "list").write_text("\ufefflynx\tthe cat\nsea lion\nn01440764 tench, Tinca tinca\n")
    out = shard_into(source, tmp_path / "out", "--classes", tmp_path / "list", "--workers", 1)
    assert wnids(out) == ["lynx", "sea lion", "n01440764"]
    assert len(keys(out)) == 3


def test_an_empty_class_member_is_no_class(photos: list[bytes], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for number, label in enumerate((b"cat", b"", b"dog")):
            add(tar, f"{number}.jpg", photos[number])
            add(tar, f"{number}.cls", label)
    out = shard_into(tmp_path / "in.tar", tmp_path / "out", "--workers", 1)
    assert wnids(out) == ["cat", "dog"]
    assert dataset_format.read_rejects(out, ["reason"])["reason"].to_pylist() == ["no_class"]


def test_a_command_s_backslashes_stay(images: Images, tmp_path: Path) -> None:
    source = releases.make("tar of tars", images, tmp_path)
    (tmp_path / "a b.tar").write_bytes(source.read_bytes())
    piped = shard_into(f"pipe:cat {tmp_path}/a\\ b.tar", tmp_path / "out", "--name", "x", "--workers", 1)
    assert contents(piped) == contents(shard_into(source, tmp_path / "direct", "--name", "x", "--workers", 1))


@pytest.mark.parametrize("verified", ["decode", "header"])
def test_rubbish_between_segments_is_left_out_and_the_picture_kept(verified: str, photos: list[bytes]) -> None:
    options = ImageOptions(verify=verified)  # type: ignore[arg-type]
    whole = photos[0]
    tables = whole.find(b"\xff\xdb")
    spoilt = whole[:tables] + bytes(4) + whole[tables:]
    np.testing.assert_array_equal(jpeg.decode(spoilt), jpeg.decode(whole))
    picture = prepare(spoilt, options)
    assert (picture.data, picture.recoded) == (whole, "rubbish")
    half = spoilt[: len(spoilt) // 2] + b"\xff\xd9"
    if verified == "decode":
        with pytest.raises(RejectedError, match="premature end"):
            prepare(half, options)
    ended = whole[:-2] + b"\1\2\3" + whole[-2:]
    assert prepare(ended, options).data == ended
    np.testing.assert_array_equal(jpeg.decode(ended), jpeg.decode(whole))


def test_a_picture_that_no_jpeg_can_hold_is_left_out() -> None:
    buffer = BytesIO()
    Image.new("RGB", (1, 65_536)).save(buffer, "PNG")
    with pytest.raises(RejectedError, match="a side over 65,500"):
        prepare(buffer.getvalue(), ImageOptions())


def test_verify_compares_the_class_list(
    photos: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shard_into(folders(tmp_path / "raw", photos, "a", "b"), tmp_path / "out", "--workers", 1)
    other = shard_into(folders(tmp_path / "other", photos, "b", "c"), tmp_path / "other_out", "--workers", 1)
    (out / "classes.parquet").write_bytes((other / "classes.parquet").read_bytes())
    assert "classes.parquet does not match dataset.json's class digest" in findings(out, capsys)


@pytest.mark.parametrize(("labels", "cut"), [(("007", "1", "02"), False), (("n2", "n10", "n1"), False), ("012", True)])
def test_verify_of_other_people_s_tars(
    labels: tuple[str, ...], cut: bool, photos: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for number, label in enumerate(labels):
            whole = photos[number]
            add(tar, f"{number}.jpg", whole[: len(whole) // 2] + b"\xff\xd9" if cut and not number else whole)
            add(tar, f"{number}.cls", label.encode())
    assert index.main([str(tmp_path), "--workers", "1"]) == 0
    found = findings(tmp_path, capsys)
    assert ("0: it can't be decoded (Corrupt JPEG data: premature end" in found) == cut
    assert f"{tmp_path}: {int(cut)} findings" in found


def test_the_split_is_a_word_of_the_name(photos: list[bytes], tmp_path: Path) -> None:
    for name in ("latest-0", "interval-1", "val-2", "in1k_test_3"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            add(tar, f"{name}.jpg", photos[0])
            add(tar, f"{name}.cls", b"0")
    assert index.main([str(tmp_path), "--workers", "1"]) == 0
    assert dataset_format.read_info(tmp_path).samples == {"train": 2, "val": 1, "test": 1}


@pytest.mark.parametrize("spoilt", ["index.parquet", "classes.parquet"])
def test_damaged_pages_are_one_line(spoilt: str, photos: list[bytes], tmp_path: Path) -> None:
    out = shard_into(folders(tmp_path / "raw", photos, "a", "b"), tmp_path / "out", "--workers", 1)
    data = bytearray((out / spoilt).read_bytes())
    data[4:200] = bytes(196)
    (out / spoilt).write_bytes(data)
    with pytest.raises(UserError, match=f"{spoilt}' is damaged"):
        verify.main([str(out), "--workers", "1"])


@pytest.mark.parametrize("content", ['{"identity":', "null", '{"identity": {}}'])
def test_a_damaged_plan_is_one_line_with_the_remedy(content: str, photos: list[bytes], tmp_path: Path) -> None:
    plan = tmp_path / "out" / ".work" / "plan" / "plan.json"
    plan.parent.mkdir(parents=True)
    plan.write_text(content)
    with pytest.raises(UserError, match=rf"plan\.json' is damaged .*: delete OUTPUT '{tmp_path}/out' to start over"):
        shard_into(folders(tmp_path / "raw", photos, "a", "b"), tmp_path / "out", "--workers", 1)
