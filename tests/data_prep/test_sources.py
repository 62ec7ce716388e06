"""All that a source holds arrives, with the classes and splits that it has there; or a line says what is wrong."""

import gzip
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data_prep import index, overlap
from data_prep.images.prepare import ImageOptions, prepare
from data_prep.work_folder import alone
from pipeline.core import errors
from pipeline.core.errors import UserError
from pipeline.dataset import class_lists
from pipeline.dataset import format as dataset_format
from tests.data_prep.datasets import keys, labels, rejects, samples, shard_into, wnids
from tests.data_prep.releases import Images, class_tar, devkit, folders, make


@pytest.mark.parametrize("classes", ["imagenet1k", "google21k"])
def test_our_own_data_sets_keep_their_classes_under_another_list(
    classes: str, photos: list[bytes], tmp_path: Path
) -> None:
    source = folders(tmp_path / "raw", photos, "n01530575", "n03042490")
    first = shard_into(source, tmp_path / "first", "--workers", 1)
    again = shard_into(first, tmp_path / "again", "--classes", classes, "--workers", 1)
    names = class_lists.listed(classes)
    assert names is not None
    assert {names[label] for label in labels(again).values()} == {"n01530575", "n03042490"}
    assert labels(again) == labels(shard_into(source, tmp_path / "at_once", "--classes", classes, "--workers", 1))


@pytest.mark.parametrize("piped", [False, True])
def test_keys_that_begin_anew_in_each_tar_are_told_apart(piped: bool, photos: list[bytes], tmp_path: Path) -> None:
    for tar in range(3):
        pictures = [(f"{n:04d}", photos[3 * tar + n]) for n in range(3)]
        members = [(f"{key}.{end}", b"0" if end == "cls" else data) for key, data in pictures for end in ("cls", "jpg")]
        samples(tmp_path / "raw" / f"x-{tar}.tar", *members)
    source = "pipe:cat " + str(tmp_path / "raw/x-{0..2}.tar") if piped else tmp_path / "raw"
    out = shard_into(source, tmp_path / "out", "--source", "webdataset", "--workers", 1)
    names = ("00000", "00001", "00002") if piped else ("x-0", "x-1", "x-2")
    assert keys(out) == {f"00000/{name}/000{n}" for name in names for n in range(3)}
    assert not rejects(out)


@pytest.mark.parametrize("form", ["file", "pipe", "gzip"])
def test_tars_one_after_another_are_all_read(form: str, photos: list[bytes], tmp_path: Path) -> None:
    first = class_tar({"a/1.jpg": photos[0], "b/1.jpg": photos[1]})
    second = class_tar({"a/2.jpg": photos[2], "c/1.jpg": photos[3]})
    (tmp_path / "1.tar").write_bytes(first)
    (tmp_path / "2.tar").write_bytes(second)
    (tmp_path / "both.tar").write_bytes(first + second)
    (tmp_path / "both.tar.gz").write_bytes(gzip.compress(first) + gzip.compress(second))
    source = {"file": "both.tar", "pipe": "pipe:cat 1.tar 2.tar", "gzip": "both.tar.gz"}[form]
    place = f"pipe:cd {tmp_path} && cat 1.tar 2.tar" if form == "pipe" else tmp_path / source
    assert keys(shard_into(place, tmp_path / "out", "--workers", 1)) == {"a/1", "b/1", "a/2", "c/1"}


@pytest.mark.parametrize("form", ["raw.tar", "raw.tar.gz", "tars"])
def test_a_tar_that_was_cut_between_two_members_is_refused(form: str, photos: list[bytes], tmp_path: Path) -> None:
    whole = class_tar({"a/1.jpg": photos[0], "a/2.jpg": photos[1]})
    cut = whole[: 2 * 512 + -(-len(photos[0]) // 512) * 512 - 512]
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "a.tar").write_bytes(cut)
    (tmp_path / "raw.tar").write_bytes(cut)
    (tmp_path / "raw.tar.gz").write_bytes(gzip.compress(cut))
    with pytest.raises(UserError, match=rf"ends at byte {len(cut)} without an end marker"):
        shard_into(tmp_path / form, tmp_path / "out", "--workers", 1)


def test_rubbish_behind_a_tar_s_end_is_named(photos: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "raw.tar").write_bytes(class_tar({"a/1.jpg": photos[0]}) + b"rubbish" * 200)
    with pytest.raises(UserError, match="no valid tar header at byte 10240"):
        shard_into(tmp_path / "raw.tar", tmp_path / "out", "--workers", 1)


def test_what_was_held_out_isn_t_trained_on(photos: list[bytes], tmp_path: Path) -> None:
    source = folders(tmp_path / "raw", photos, "a", "b", each=4)
    first = shard_into(source, tmp_path / "first", "--val-fraction", 0.25, "--workers", 1)
    with pytest.raises(UserError, match=r"holds the splits train, val: shard each by itself"):
        shard_into(first, tmp_path / "out", "--workers", 1)
    train = shard_into(first / "train-{00000..00000}.tar", tmp_path / "train", "--workers", 1)
    assert dataset_format.read_info(train).samples == {"train": 6}
    anew = shard_into(first, tmp_path / "anew", "--val-fraction", 0.25, "--workers", 1)
    assert dataset_format.read_info(anew).samples == {"train": 6, "val": 2}
    names = {f"{split}/a/1.jpg": photos[place] for place, split in enumerate(("train", "val"))}
    (tmp_path / "raw.tar").write_bytes(class_tar(names))
    with pytest.raises(UserError, match=r"holds the splits train, val, not classes"):
        shard_into(tmp_path / "raw.tar", tmp_path / "tar", "--workers", 1)


def test_of_several_images_of_a_sample_the_plain_one_is_taken(photos: list[bytes], tmp_path: Path) -> None:
    source = samples(
        tmp_path / "raw" / "x.tar",
        ("1.cls", b"0"),
        ("1.depth.jpg", photos[1]),
        ("1.jpg", photos[0]),
        ("1.mask.png", photos[2]),
        ("2.cls", b"0"),
        ("2.tif", b"tif"),
    )
    out = shard_into(source, tmp_path / "out", "--workers", 1)
    assert keys(out) == {"00000/1"}
    assert dataset_format.read_index(out, ["size"])["size"].to_pylist() == [len(photos[0])]
    assert rejects(out) == ["other_file"] * 3


def test_the_audit_of_indexed_tars_is_a_list_that_shard_takes(photos: list[bytes], tmp_path: Path) -> None:
    members = [(f"{n}.{end}", b"1" if end == "cls" else photos[n % 3]) for n in range(4) for end in ("cls", "jpg")]
    folder = samples(tmp_path / "raw" / "x.tar", *members).parent
    assert index.main([str(folder), "--workers", "1"]) == 0
    gone = tmp_path / "gone.tsv"
    assert overlap.main([str(folder), "--against", str(folder), "--out", str(gone), "--workers", "1"]) == 0
    out = shard_into(folder, tmp_path / "out", "--exclude", gone, "--workers", 1)
    assert keys(out) == {"00001/0", "00001/1", "00001/2"}
    gone.write_text("3\n")
    with pytest.raises(UserError, match="none of the 1 keys in --exclude is an image"):
        shard_into(folder, tmp_path / "other", "--exclude", gone, "--workers", 1)


def test_the_devkit_says_the_class_wherever_the_images_lie(photos: list[bytes], tmp_path: Path) -> None:
    kit = devkit(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", ["n01440764", "n01443537"], ["n01443537", "n01440764"])
    (tmp_path / "raw" / "images").mkdir(parents=True)
    for number in (1, 2):
        (tmp_path / "raw" / "images" / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(photos[number])
    (tmp_path / "raw" / "images" / "other.JPEG").write_bytes(photos[0])
    out = shard_into(tmp_path / "raw", tmp_path / "out", "--devkit", kit, "--split", "val", "--workers", 1)
    assert labels(out) == {"ILSVRC2012_val_00000001": 1, "ILSVRC2012_val_00000002": 0}
    assert rejects(out) == ["no_class"]
    kit.write_bytes(kit.read_bytes()[:200])
    with pytest.raises(UserError, match="can't be read"):
        shard_into(tmp_path / "raw", tmp_path / "again", "--devkit", kit, "--split", "val")


def test_a_stream_that_is_shorter_the_second_time_is_refused(images: Images, tmp_path: Path) -> None:
    source = make("tar of tars", images, tmp_path)
    once = f"pipe:cd {tmp_path} && if [ -e been ]; then head -c 100000 {source}; else touch been; cat {source}; fi"
    with pytest.raises(UserError, match="was shorter when it was read again"):
        shard_into(once, tmp_path / "out", "--tasks", 2, "--task", 0, "--workers", 1)


def test_an_image_that_changed_between_tasks_is_named(photos: list[bytes], tmp_path: Path) -> None:
    source = folders(tmp_path / "raw", photos, "a", "b")
    shard_into(source, tmp_path / "out", "--samples-per-shard", 1, "--tasks", 4, "--task", 0, "--workers", 1)
    for path in source.rglob("*.jpg"):
        path.write_bytes(photos[9] + bytes(9))
    with pytest.raises(UserError, match=r"has changed since INPUT was listed"):
        shard_into(source, tmp_path / "out", "--samples-per-shard", 1, "--tasks", 4, "--task", 1, "--workers", 1)


def test_class_tars_named_by_braces(photos: list[bytes], tmp_path: Path) -> None:
    for wnid, photo in zip("abc", photos, strict=False):
        (tmp_path / f"{wnid}.tar").write_bytes(class_tar({"1.jpg": photo}))
    assert keys(shard_into(tmp_path / "{a..c}.tar", tmp_path / "out", "--workers", 1)) == {"a/1", "b/1", "c/1"}
    with pytest.raises(UserError, match="is INPUT's folder or inside it"):
        shard_into(tmp_path, tmp_path / "deep" / "out", "--source", "tars")
    (tmp_path / "b.tar").write_bytes(gzip.compress((tmp_path / "b.tar").read_bytes()))
    assert keys(shard_into(tmp_path / "{a..c}.tar", tmp_path / "zipped", "--workers", 1)) == {"a/1", "b/1", "c/1"}


def test_hidden_folders_of_a_tar_are_no_classes(photos: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "raw.tar").write_bytes(class_tar({"./.Trash/3.jpg": photos[0], "./a/1.jpg": photos[1]}))
    assert wnids(shard_into(tmp_path / "raw.tar", tmp_path / "out", "--workers", 1)) == ["a"]


@pytest.mark.parametrize(("options", "kind"), [({"resize": 20}, "JPEG"), ({}, "PNG"), ({}, "CMYK")])
def test_a_new_picture_keeps_its_orientation(options: dict[str, int], kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("CMYK" if kind == "CMYK" else "RGB", (60, 40))
    picture.save(tmp_path / "x", "PNG" if kind == "PNG" else "JPEG", exif=exif)
    made = prepare((tmp_path / "x").read_bytes(), ImageOptions(**options))
    assert made.recoded
    assert made.orientation == 6
    assert prepare(made.data, ImageOptions()).orientation == 6
    (tmp_path / "x").write_bytes(made.data)
    with Image.open(tmp_path / "x") as image:
        assert image.getexif()[0x0112] == 6
        image.load()


def test_no_task_runs_beside_one_that_makes_all(tmp_path: Path) -> None:
    for first, second in ((None, 1), (1, None), (1, 1)):
        with (
            alone(tmp_path / "out", first),
            pytest.raises(UserError, match="being written"),
            alone(tmp_path / "out", second),
        ):
            pass
    with alone(tmp_path / "out", 1), alone(tmp_path / "out", 2):
        pass
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with alone(tmp_path / "out", None):
        pass
    assert not list((tmp_path / "out").iterdir())  # but the folder, which was there, stays


def test_a_killed_worker_and_an_interrupted_command_are_one_line(tmp_path: Path) -> None:
    program = "import os, sys, signal\nfrom pipeline.core import cli\nfrom data_prep import process_pool\n"
    program += "def main():\n    list(process_pool.run(work, [1, 2], 1))\n"
    program += "def work(item):\n    os.kill(os.getppid() if False else os.getpid(), 9)\n"
    program += "def interrupted():\n    raise KeyboardInterrupt\n"
    program += "if __name__ == '__main__':\n    cli.run(interrupted if sys.argv[1:] else main)\n"
    (tmp_path / "program.py").write_text(program)
    for arguments, code, said in (([], 2, "error: a worker process was killed"), (["x"], 130, "interrupted")):
        done = subprocess.run(
            [sys.executable, tmp_path / "program.py", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        )
        assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
        assert done.stderr.startswith(said)


def test_ctrl_c_while_workers_are_prepared_is_one_line(tmp_path: Path) -> None:
    program = "import signal, time\nfrom pipeline.core import cli\nfrom data_prep import process_pool\n"
    program += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # what runs in the background ignores it
    program += (
        "def main():\n    process_pool.start_server()\n    time.sleep(0.2)\n    print(flush=True)\n    time.sleep(60)\n"
    )
    program += "if __name__ == '__main__':\n    cli.run(main)\n"
    (tmp_path / "program.py").write_text(program)
    with subprocess.Popen(
        [sys.executable, tmp_path / "program.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, which tells all of them
        assert process.communicate(timeout=120)[1] == "interrupted; run the same command again\n"


def test_a_worker_of_index_imports_no_pandas(digits: Path) -> None:
    """Each start would wait a quarter of a second for it."""
    tar = next(digits.glob("*.tar"))
    program = (
        "import pickle, sys; from data_prep.sources.sample_headers import Tar, index_tar; "
        "from data_prep.sources.sample_tars import read_label; "
        f"pickle.dumps(index_tar(Tar({str(tar)!r}, {tar.stat().st_size}, 'train', 0, read_label('')))); "
        "sys.exit('pandas' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_the_pool_holds_a_lock_ends_the_work(name: str, tmp_path: Path) -> None:
    program = f"""
import signal, sys, threading
from data_prep import process_pool

def interrupt(frame, event, _):  # the moment at which an exception would leave the lock of a future locked
    if frame.f_code is threading.Condition.__enter__.__code__ and frame.f_back.f_code.co_name == "done":
        if event == "return":
            sys.settrace(None)
            signal.raise_signal(signal.{name})
        return interrupt

def main():
    signal.signal(signal.{name}, signal.default_int_handler)  # raises KeyboardInterrupt
    results = process_pool.run(abs, range(1000), 1)
    next(results)
    sys.settrace(interrupt)
    try:
        for _ in results:
            pass
    except KeyboardInterrupt:
        print("stopped")

if __name__ == "__main__":
    main()
"""
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert (done.stdout, done.stderr) == ("stopped\n", "")


def test_index_leaves_data_sets_of_shard_alone(photos: list[bytes], tmp_path: Path) -> None:
    source = folders(tmp_path / "raw", photos, "a", "b")
    shard_into(source, tmp_path / "out", "--samples-per-shard", 1, "--tasks", 4, "--task", 0, "--workers", 1)
    with pytest.raises(UserError, match="is an unfinished dataset of vit shard"):
        index.main([str(tmp_path / "out")])
    whole = shard_into(source, tmp_path / "whole", "--workers", 1)
    with pytest.raises(UserError, match="was made by vit shard"):
        index.main([str(whole), "--force"])


def test_a_link_to_a_folder_above_is_no_class(photos: list[bytes], tmp_path: Path) -> None:
    source = folders(tmp_path / "raw", photos, "a", "b")
    (source / "again").symlink_to("a")  # another class's folder may well be linked
    assert wnids(shard_into(source, tmp_path / "out", "--workers", 1)) == ["a", "again", "b"]
    (source / "loop").symlink_to(".")
    with pytest.raises(UserError, match=r"loop' is a link to a folder that contains it"):
        shard_into(source, tmp_path / "other", "--workers", 1)


def test_an_image_is_no_input(photos: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(photos[0])
    with pytest.raises(UserError, match=r"photo\.jpg' is not a tar .*one folder of images per class"):
        shard_into(tmp_path / "photo.jpg", tmp_path / "out", "--workers", 1)


@pytest.mark.parametrize("name", ["broken", b"bytes\xe9"])
def test_an_output_that_can_t_be_is_named(name: str | bytes, photos: list[bytes], tmp_path: Path) -> None:
    source = folders(tmp_path / "raw", photos, "a")
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + os.fsencode(name)))
    if name == "broken":
        out.symlink_to("nowhere")
    with pytest.raises(UserError, match="OUTPUT"):
        shard_into(source, out, "--workers", 1)
    assert errors.EXIT_INTERRUPTED == 130
