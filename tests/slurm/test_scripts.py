"""What each job script submits and runs, word for word. UPDATE_GOLDEN=yes pytest writes the golden files anew."""

import concurrent.futures
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.slurm.cluster import REPO, Cluster
from tests.slurm.scripts import sourced, submit_all

GOLDEN = Path(__file__).with_name("golden")
TRAINING = [f"{stage}_{size}.sh" for stage in ("pretrain", "finetune") for size in ("b16", "b32", "l16", "l32", "tiny")]
JOBS: dict[str, tuple[str, tuple[object, ...], tuple[str, ...]]] = {
    **{
        script.removesuffix(".sh"): (
            script,
            ("--optim.lr", "3e-4"),
            ("--gpus-per-node=2",) if "tiny" in script else (),
        )
        for script in TRAINING
    },
    "shard": ("shard.sh", ("in.tar", "/data/out", "--seed", 1), ("--array=0",)),
    "evaluate": ("evaluate.sh", ("/runs/x", "--data", "/data/in1k"), ("--gpus-per-node=8", "--cpus-per-task=96")),
    "command": ("command.sh", ("python", "-m", "data_prep.verify", "/data/in1k"), ()),
    "finetune_array": ("finetune_l16.sh", (), ("--array=2", "--nodes=1")),
    "pretrain": (
        "pretrain.sh",
        ("b16_deit3", "--optim.lr", "3e-3"),
        ("--nodes=2", "--exclusive", "--mem=0", "--time=60"),
    ),
    "finetune": (
        "finetune.sh",
        ("b16_deit3",),
        ("--nodes=1", "--ntasks-per-node=4", "--gres=gpu:4", "--cpus-per-task=3", "--time=60"),
    ),
}
IMAGE = {"CONTAINER_PATHS": "/repo:/work:/repo"}
VARIANTS: dict[str, tuple[str, tuple[object, ...], tuple[str, ...], dict[str, str]]] = {
    "shard_again": ("shard.sh", ("in.tar", "/data/out"), ("--array=4",), {"TASKS": "8"}),
    "torchrun": ("pretrain_b16.sh", (), ("--nodes=2",), {"LAUNCHER": "torchrun"}),
    "apptainer": ("pretrain_b16.sh", (), (), {"CONTAINER": "/images/vit.sif", **IMAGE}),
    "apptainer_command": (*JOBS["command"], {"CONTAINER": "/images/vit.sif", **IMAGE}),
    "pyxis": ("finetune_b16.sh", (), (), {"CONTAINER": "/images/vit.sqsh", **IMAGE}),
    "pyxis_torchrun": ("pretrain_b16.sh", (), (), {"CONTAINER": "lab#vit:1", "LAUNCHER": "torchrun", **IMAGE}),
}
FIELDS = ("NumNodes", "NumTasks", "CPUs/Task", "MinMemoryNode", "OverSubscribe", "Requeue", "TimeLimit", "TresPerNode")


def compare(name: str, text: str, **replaced: object) -> None:
    """Fail where ``text``, its machine's paths replaced by names, differs from the golden file."""
    for word, value in sorted(replaced.items(), key=lambda item: -len(str(item[1]))):
        text = text.replace(str(value), f"${word}")
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def dry_run(
    cluster: Cluster, folder: Path, script: str, arguments: tuple[object, ...], options: tuple[str, ...], **more: str
) -> str:
    """Submit a job that prints what it would run; that line, and what Slurm granted it."""
    folder.mkdir()
    options = (f"--output={folder}/%x.out", *options)
    variables = {"RUNS": "/runs", "IN21K": "/data/in21k", "IN1K": "/data/in1k", "DRY_RUN": "yes", "FINALIZE": "no"}
    job = cluster.submit(script, *arguments, options=options, **(variables | more))
    assert cluster.wait(job, timeout=200) == "COMPLETED"
    record = cluster.jobs(job)[0]
    (log,) = folder.glob("*.out")
    granted = "\n".join(f"{field}: {record[field]}" for field in FIELDS if field in record)
    text = re.sub(r"(port |endpoint=)(node\d+:)?\d{4,5}", r"\1$PORT", log.read_text().strip())
    text = re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "$NOW ", text, flags=re.MULTILINE)
    return f"{granted}\n{text}\n".replace(job, "$JOB").replace(str(cluster.folder.parent), "$PWD")


@pytest.fixture(scope="module")
def dry_runs(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each of JOBS and VARIANTS prints, run side by side."""
    folder = tmp_path_factory.mktemp("dry")
    jobs = {name: (*job, {}) for name, job in JOBS.items()} | VARIANTS
    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
        futures = {
            name: pool.submit(dry_run, cluster, folder / name, script, arguments, options, **more)
            for name, (script, arguments, options, more) in jobs.items()
        }
        return {name: future.result() for name, future in futures.items()}


@pytest.mark.slurm
@pytest.mark.parametrize("name", [*JOBS, *VARIANTS])
def test_job(dry_runs: dict[str, str], name: str) -> None:
    compare(name, dry_runs[name], REPO=REPO)


@pytest.mark.slurm
def test_sbatch_takes_every_script(cluster: Cluster) -> None:
    """--test-only refuses what the cluster can't run: 8 nodes of 8 GPUs and 96 CPUs."""
    for script in (*TRAINING, "shard.sh", "evaluate.sh", "command.sh"):
        assert "to start at" in cluster.run("sbatch", "--test-only", REPO / "slurm" / script)
    refused = cluster.run("sbatch", "--test-only", "--nodes=9", REPO / "slurm" / "pretrain_l16.sh", check=False)
    assert "to start at" not in refused


def test_the_campaign(tmp_path: Path) -> None:
    """slurm/submit_all.sh: each stage, what it waits for, what it runs."""
    for name in ("fall11_whole.tar", "train.tar"):
        (tmp_path / name).touch()
    text = submit_all(
        tmp_path, "l16", "--raw", tmp_path / "fall11_whole.tar", "--in1k", tmp_path / "train.tar",
        "--pretrain-sbatch", "--nodes=16", "--pretrain", "--optim.lr 3e-4", "--shard-sbatch", "--array=0-63",
        "--dry-run",
    )  # fmt: skip
    compare("submit_all", text, REPO=REPO, WORK=tmp_path)
    assert not (tmp_path / "campaigns").exists(), "a dry run makes nothing"
    # and in a folder, and with a name, that hold blanks
    (tmp_path / "a b").mkdir()
    text = submit_all(
        tmp_path / "a b", "tiny", "--raw", tmp_path / "train.tar", "--in1k", tmp_path / "train.tar", "--name", "my run",
        "--dry-run",
    )  # fmt: skip
    waits = re.findall(r"--dependency=(.*?) --job-name=(\S+?-)", text)
    assert waits == [
        ("afterok:data-in21k/shard", "merge-"),
        ("afterok:data-in21k/merge", "verify-"),
        ("afterok:data-in1k/shard", "merge-"),
        ("afterok:data-in1k/merge", "verify-"),
        ("afterok:data-in21k/verify", "pretrain-"),
        (r"afterok:my\ run/pretrain:data-in1k/verify", "finetune-"),
        (r"afterany:my\ run/finetune", "pick-"),
        (r"afterok:my\ run/pick", "evaluate-"),
        (r"afterok:my\ run/pick", "export-"),
    ]


def test_the_campaign_of_deit3(tmp_path: Path) -> None:
    """Two fine-tunings, one from the other, each with its recipe's own learning rate."""
    (tmp_path / "raw.tar").touch()
    raw = ("--raw", tmp_path / "raw.tar", "--in1k", tmp_path / "raw.tar")
    stages = ("--finetune-224", "--data.workers 5", "--finetune", "--data.workers 6")
    text = submit_all(tmp_path, "b16_deit3", *raw, *stages, "--dry-run")
    pretrain, low, high, pick = text.splitlines()[6:10]
    runs = tmp_path / "runs"
    assert pretrain.endswith("slurm/pretrain.sh b16_deit3 ")
    assert "--dependency=afterok:b16_deit3/pretrain:data-in1k/verify --job-name=finetune-b16_deit3_224 " in low
    assert low.endswith(f"finetune.sh b16_deit3_224 --parent {runs}/pretrain-b16_deit3 --data.workers 5 ")
    assert "--dependency=afterok:b16_deit3/finetune-224:data-in1k/verify --job-name=finetune-b16_deit3 " in high
    assert high.endswith(f"finetune.sh b16_deit3 --parent {runs}/finetune-b16_deit3_224 --data.workers 6 ")
    assert f"jobs.pick {runs}/finetune-b16_deit3 --link {tmp_path}/campaigns/b16_deit3/best " in pick
    assert "--array" not in low + high
    assert "--sweep" not in pick


def test_an_old_env_sh_is_named(tmp_path: Path) -> None:
    """A site's own, from before a field was added."""
    folder = tmp_path / "slurm"
    shutil.copytree(REPO / "slurm", folder)
    (folder / "env.sh").write_text(
        re.sub(r"^(DOCTOR|IN1K)=.*\n", "", (folder / "env.sh").read_text(), flags=re.MULTILINE)
    )
    command = f"SLURM_JOB_ID=1 SLURM_JOB_NAME=x; source {folder}/launch.sh; echo went on"
    done = subprocess.run(["bash", "-c", command], text=True, capture_output=True, timeout=200, check=False)
    assert (done.returncode, done.stdout) == (2, f"error: {folder}/env.sh does not set IN1K: restore that line\n")
    for command in (f"{folder}/submit_all.sh tiny", f"{folder}/submit.sh pretrain tiny"):
        done = subprocess.run(["bash", "-c", command], text=True, capture_output=True, timeout=200, check=False)
        assert (done.returncode, done.stderr) == (2, f"error: {folder}/env.sh does not set IN1K: restore that line\n")


def test_a_mistake_in_env_sh_is_named(tmp_path: Path) -> None:
    """A quote that is not closed: bash reports it, reads no further, and our own line would come last."""
    folder = tmp_path / "slurm"
    shutil.copytree(REPO / "slurm", folder)
    before, _, _ = (folder / "env.sh").read_text().partition("IN1K=")
    (folder / "env.sh").write_text(f'{before}IN1K="/data/in1k\n')
    for command in (f"{folder}/submit_all.sh tiny", f"SLURM_JOB_ID=1 SLURM_JOB_NAME=x; source {folder}/launch.sh"):
        done = subprocess.run(["bash", "-c", command], text=True, capture_output=True, timeout=200, check=False)
        assert done.returncode == 2
        (line,) = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error: ")]
        assert line.startswith(f"error: {folder}/env.sh: line ")
        assert "unexpected EOF while looking for matching" in line


def test_what_env_sh_prints_is_no_line_of_ours(tmp_path: Path) -> None:
    """As modules do: vit submit reads the first and the last line of a dry run."""
    shutil.copytree(REPO / "slurm", tmp_path / "slurm")
    with (tmp_path / "slurm" / "env.sh").open("a") as file:
        file.write("echo Loading cuda/12.8\n")
    done = subprocess.run(
        [tmp_path / "slurm" / "submit.sh", "pretrain", "tiny", "--dry-run"],
        text=True, capture_output=True, timeout=200, check=True,
    )  # fmt: skip
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["sbatch", "srun"]
    assert done.stderr == "Loading cuda/12.8\n" * 2


def test_a_job_that_was_submitted_from_another_job(tmp_path: Path) -> None:
    """srun would ask for that one's memory and GPUs, and pass on no variable after sbatch --export=NONE."""
    left = sourced(
        tmp_path, "env | grep ^SLURM_", SLURM_MEM_PER_CPU="1000", SLURM_MEM_PER_NODE="2048", SLURM_GPUS_PER_NODE="1",
        SLURM_EXPORT_ENV="NONE",
    )  # fmt: skip
    assert left == "SLURM_JOB_ID=7\nSLURM_JOB_NAME=x\n"


def test_env_sh_may_call_what_reads_unset_variables(tmp_path: Path) -> None:
    """As conda's activate does, whose last command may fail as well."""
    shutil.copytree(REPO / "slurm", tmp_path / "slurm")
    with (tmp_path / "slurm" / "env.sh").open("a") as file:
        file.write('[ -n "$CONDA_BACKUP_CXX" ]\nfalse\n')
    command = f"SLURM_JOB_ID=1 SLURM_JOB_NAME=x; source {tmp_path}/slurm/launch.sh; echo went on; echo $NO_SUCH"
    done = subprocess.run(["bash", "-c", command], text=True, capture_output=True, timeout=200, check=False)
    assert done.stdout == "went on\n", done.stderr
    assert "NO_SUCH: unbound variable" in done.stderr, "our own code is still checked"
    done = subprocess.run(
        [f"{tmp_path}/slurm/submit_all.sh", "h14"], text=True, capture_output=True, timeout=200, check=False
    )
    assert "RECIPE 'h14' must be one of" in done.stderr


@pytest.mark.parametrize(
    ("events", "stopped"),
    [
        ("start 0, end 0 failed, start 0, end 0 failed", True),
        ("start 0, end 0 stopped, start 0, end 0 failed", True),  # a time limit that is too short
        ("start 0, end 0 failed, start 0, end 5 failed", False),
        ("start 0, end 0 failed, start 0, end 0 failed, end 0 lost", False),
        ("start 0, end 0 failed, leave 0, start 0, end 0 failed", False),
        ("start 0, end 0 preempted, start 0, end 0 preempted, start 0", False),
        ("start 0, start 0, start 0", False),  # requeued by hand, or killed without a warning
        ("start 0, start 0, end 0 lost, start 0, end 0 failed, start 0, end 0 failed", True),
    ],
)
def test_starts_without_progress(tmp_path: Path, events: str, stopped: bool) -> None:
    """Those that a run is to blame for, twice from one step. A preemption while it starts says nothing about it."""
    (tmp_path / "slurm").mkdir()
    step = max(int(event.split()[1]) for event in events.split(", "))
    (tmp_path / "checkpoints" / f"step-{step:08}").mkdir(parents=True)
    (tmp_path / "checkpoints" / f"step-{step:08}" / "meta.json").touch()
    rows = [(*event.split(), "node1")[:3] for event in events.split(", ")]
    (tmp_path / "slurm" / "attempts.tsv").write_text("".join(f"{e}\t7\t0\t{s}\t9\t{what}\n" for e, s, what in rows))
    printed = sourced(tmp_path, "stop_without_progress", "echo starts", code=int(stopped))
    assert ("not starting another" in printed) == stopped, printed


def test_how_an_attempt_ended_is_told_apart(tmp_path: Path) -> None:
    """Asked to stop by a preemption, or by a time limit near which it is the run's own fault."""
    (tmp_path / "slurm").mkdir()
    limit, preemption = "facts=PreemptTime=None", "facts=PreemptTime=2026-11-27T02:42:00"
    scontrol = "scontrol() { echo '   PreemptEligibleTime=2026-11-27T02:40:00' $facts; }"
    end = "record_end failed"
    sourced(tmp_path, scontrol, "asked=USR1", limit, end, preemption, end)
    rows = (tmp_path / "slurm" / "attempts.tsv").read_text().splitlines()
    assert [row.split("\t")[-1] for row in rows] == ["failed", "preempted"]


def test_an_attempt_that_cannot_be_counted_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "attempts.tsv").symlink_to("/dev/full")
    printed = sourced(tmp_path, "record start node1", "echo went on", code=1)
    assert "attempts.tsv cannot be written (above): make room" in printed
    assert "went on" not in printed


@pytest.mark.parametrize(
    ("squeue", "code", "said"),
    [
        ("echo 5; echo 12", 2, "is in use by job 12, which is running or suspended: wait, scancel it"),
        ("echo 121; echo 5", 0, "started"),  # Slurm no longer knows job 12
        ("echo 'Unable to contact slurm controller' >&2; exit 1", 2, "squeue does not answer: submit again when"),
    ],
)
def test_a_second_job_in_a_run_folder(tmp_path: Path, squeue: str, code: int, said: str) -> None:
    """... is refused when the first one is running, and also when Slurm does not say whether it is."""
    for name, line in (("squeue", f'echo "$*" >>{tmp_path}/asked; {squeue}'), ("sleep", "exit 0")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "slurm").mkdir()
    attempts = tmp_path / "slurm" / "attempts.tsv"
    attempts.write_text("start\t11\t0\t0\t1\tnode1\nstart\t12\t0\t0\t1\tnode1\n")
    path = f"{tmp_path}:{os.environ['PATH']}"
    text = sourced(tmp_path, "refuse_second_job", "echo started", code=code, PATH=path)
    assert said in text
    assert ("started" in text.splitlines()) == (code == 0)
    warnings = text.count("squeue failed (above), so job 12, which started last in")
    asked = (tmp_path / "asked").read_text().splitlines()
    assert (len(asked), warnings) == ((4, 4) if "Unable" in squeue else (1, 0))
    assert not any("-j" in words.split() for words in asked)
    attempts.write_text(attempts.read_text() + "start\t7\t0\t0\t1\tnode1\n")  # this job itself, requeued
    assert sourced(tmp_path, "refuse_second_job", "echo started", PATH=path) == "started\n"


def test_a_campaign_is_not_submitted_twice_where_squeue_fails(tmp_path: Path) -> None:
    for name, line in (("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1"), ("sbatch", "echo 12")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "raw.tar").touch()
    raw = ("--raw", tmp_path / "raw.tar", "--in1k", tmp_path / "raw.tar")
    text = submit_all(tmp_path, "tiny", *raw, code=2, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert text == (
        "Unable to contact slurm controller\n"
        "error: squeue failed (above), so it is unknown which jobs are queued: try again when Slurm answers\n"
    )


def test_a_job_finds_its_folder_whatever_its_arguments_name(tmp_path: Path) -> None:
    """The job scripts' line "home=", on what scontrol says of a job."""
    (line,) = {
        line for path in (REPO / "slurm").glob("*.sh") for line in path.read_text().splitlines() if line[:5] == "home="
    }
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        "#!/bin/sh\necho 'JobId=1 JobName=x'\necho '   Command=/my slurm/slurm/v t/slurm/command.sh bash /b/slurm/x.sh "
        "Command=/c/slurm/y.sh'\necho '   WorkDir=/tmp'\n"
    )
    scontrol.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", f'SLURM_JOB_ID=1\n{line}\necho "$home"'],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        text=True, capture_output=True, timeout=200, check=True,
    )  # fmt: skip
    assert done.stdout == "/my slurm/slurm/v t\n"
    here = tmp_path / "slurm" / "x.sh"  # outside a job: its own
    here.parent.mkdir()
    (here.parent / "launch.sh").touch()
    here.write_text(f'{line}\ncd "$home" && pwd\n')
    done = subprocess.run(["bash", here], text=True, capture_output=True, timeout=200, check=True)
    assert done.stdout == f"{tmp_path}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("h14",), "RECIPE 'h14' must be one of"),
        (("l16", "--raw", "nowhere.tar"), "--raw 'nowhere.tar' does not exist"),
        (("l16", "--row", "x"), "option --row is unknown"),
        (("l16", "--raw"), "--raw needs a value"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in submit_all(tmp_path, *arguments, code=2)


@pytest.mark.slurm
def test_a_node_that_failed_twice_is_bad_where_others_are_left(cluster: Cluster, tmp_path: Path) -> None:
    """launch.sh's bad_nodes, by the cluster's real sinfo."""
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "bad-nodes.tsv").write_text("node2\t7\t0\t1\tx\nnode3\t7\t0\t1\tx\nnode2\t7\t1\t2\tx\n")
    lines = f"source {REPO}/slurm/launch.sh; RUN={tmp_path}; bad_nodes"
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "x", "SLURM_JOB_PARTITION": "batch"}
    assert cluster.run("bash", "-c", lines, **job, SLURM_JOB_NUM_NODES="7") == "node2"
    assert cluster.run("bash", "-c", lines, **job, SLURM_JOB_NUM_NODES="8") == ""


SITES: dict[str, dict[str, str]] = {
    "the defaults": {},
    "4 GPUs per node": {"GPUS_PER_NODE": "4", "CPUS_PER_GPU": "16", "TIME_LIMIT": "08:00:00"},
    "shared nodes, gres": {
        "WHOLE_NODES": "no", "MEMORY_PER_NODE": "900G", "GPU_REQUEST": "gres", "GPU_TYPE": "h100",
        "CPU_PARTITION": "cpu",
        "SBATCH_PARTITION": "gpu", "SBATCH_ACCOUNT": "lab", "SBATCH_QOS": "long",
    },
    "GPUs that Slurm does not count": {"GPU_REQUEST": "none", "PRETRAIN_NODES": "3", "SPARES": "1"},
    "CPUs": {"GPUS_PER_NODE": "0", "CPUS_PER_GPU": "4", "WHOLE_NODES": "no"},
}  # fmt: skip
SUBMITTED = [
    "pretrain l16 --optim.lr 3e-4",
    "pretrain l16 --nodes 4 --time=2:00:00 --partition debug --gpus-per-node 2 --job-name seed1 --train.seed 1",
    "pretrain l16 --nodes 8 --spares 1",
    "pretrain b16_deit3 --run-dir /runs/ours --hold --sbatch '--nice=5 --comment=x'",
    "pretrain tiny",
    "finetune l16 --array 0-3",
    "finetune b16_deit3_224",
    "evaluate /runs/x --data /data/in1k",
    "shard in.tar '/data/a b' --array 0-63 --classes google21k",
    "command --time 1:00:00 python -m data_prep.verify /data/in1k --nodes 3",
]


def submit(*arguments: str, code: int = 0, **environment: str) -> str:
    """What slurm/submit.sh prints where no Slurm answers."""
    variables = {
        "PATH": os.environ["PATH"],
        "RUNS": "/runs",
        "IN21K": "/data/in21k",
        "IN1K": "/data/in1k",
    } | environment
    done = subprocess.run(
        ["bash", REPO / "slurm" / "submit.sh", *arguments],
        env=variables, text=True, capture_output=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("site", SITES)
def test_what_a_site_submits(site: str) -> None:
    """The sbatch and srun lines of each kind of job, by each kind of site, without Slurm."""
    lines = [
        f"$ {line}\n" + re.sub(r" +$", "", submit(*shlex.split(line), "--dry-run", **SITES[site]), flags=re.MULTILINE)
        for line in (SUBMITTED[:-1])
    ]
    kind, *rest = shlex.split(SUBMITTED[-1])  # whose own words begin at the first that is no option
    lines.append(f"$ {SUBMITTED[-1]}\n" + submit(kind, "--dry-run", *rest, **SITES[site]).replace(" \n", "\n"))
    compare(f"submit_{site.replace(' ', '_').replace(',', '')}", "".join(lines), REPO=REPO)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("train", "l16"), {}, "KIND 'train' must be one of pretrain, finetune"),
        (("pretrain", "--nodes", "4"), {}, "RECIPE is missing"),
        (("pretrain", "l16", "--nodes", "four"), {}, "--nodes 'four' must be a whole number"),
        (("pretrain", "l16", "--nodes", "0"), {}, "--nodes 0 is too few"),
        (("pretrain", "l16", "--array", "0-3"), {}, "--array '0-3' would start several jobs in one run folder"),
        (("finetune", "l16", "--array", "0-3%2"), {"FINETUNE_LRS": "0.01 0.03"}, "give --array 0-1"),
        (("pretrain", "l16", "--output", "/no/such/%x.out"), {}, "the folder '/no/such' does not exist"),
        (("pretrain", "l16", "--job-name", "lab/x"), {}, "--job-name 'lab/x' has a slash"),  # sbatch: no log, no reason
        (("evaluate", "/runs/x", "--spares", "1"), {}, "--spares is for pretrain and finetune"),
        (("pretrain", "l16"), {"ELASTIC": "maybe"}, "ELASTIC 'maybe' must be yes or no"),
        (("pretrain", "l16"), {"SPARES": "one"}, "SPARES 'one' must be a whole number"),
        (("pretrain", "l16"), {"SPARES": "08"}, "SPARES '08' must be a whole number"),  # octal for bash
        (("pretrain", "l16"), {"RESTARTS_IN_JOB": "-1"}, "RESTARTS_IN_JOB '-1' must be a whole number, such as 0 or 8"),
        (("pretrain", "l16"), {"PRETRAIN_NODES": "four"}, "PRETRAIN_NODES 'four' must be a whole number from 1"),
        (("finetune", "l16"), {"FINETUNE_NODES": "0"}, "FINETUNE_NODES '0' must be a whole number from 1"),
        (("pretrain", "l16"), {"CPUS_PER_GPU": "0"}, "CPUS_PER_GPU '0' must be a whole number from 1"),
        (("pretrain", "l16", "--cpus-per-gpu", "0"), {}, "--cpus-per-gpu 0 is too few"),
        (
            ("finetune", "l16"),
            {"FINETUNE_LRS": "0.01,0.03"},
            "FINETUNE_LRS '0.01,0.03' must be learning rates, such as",
        ),
        (("finetune", "l16"), {"FINETUNE_LRS": " "}, "FINETUNE_LRS ' ' must be learning rates, such as 0.003 0.01"),
        (("pretrain", "l16"), {"LAUNCHER": "accelerate"}, "LAUNCHER 'accelerate' must be srun or torchrun"),
        (("pretrain", "l16"), {"DOCTOR": "off"}, "DOCTOR 'off' must be yes or no (slurm/env.sh, or the environment)"),
        (("pretrain", "l16"), {"DRY_RUN": "1"}, "DRY_RUN '1' must be yes or no"),
        (("evaluate", "/runs/x", "--nodes", "2"), {}, "--nodes is for pretrain and finetune"),
        (("pretrain", "l16", "--time"), {}, "--time needs a value"),
        (("pretrain", "l16"), {"GPU_REQUEST": "gpus"}, "GPU_REQUEST 'gpus' must be gpus-per-node, gres or none"),
        (("pretrain", "l16"), {"GPUS_PER_NODE": "all"}, "GPUS_PER_NODE 'all' must be a whole number"),
        (("pretrain", "l16"), {"WHOLE_NODES": "1"}, "WHOLE_NODES '1' must be yes or no"),
    ],
)
def test_mistakes_of_a_submission(arguments: tuple[str, ...], environment: dict[str, str], message: str) -> None:
    text = submit(*arguments, code=2, **environment)
    assert message in text
    assert len(text.splitlines()) == 1, text


@pytest.mark.parametrize("value", ["one", "1.5", "-1", "08"])
def test_spare_nodes_of_the_shell_must_be_a_number(tmp_path: Path, value: str) -> None:
    expected = (
        f"error: SPARE_NODES '{value}' must be a whole number, such as 0 or 8 (set by vit submit --spares, or in "
    )
    assert sourced(tmp_path, code=2, SPARE_NODES=value) == f"{expected}the environment)\n"


def test_spare_nodes_leave_a_node_to_train_on(tmp_path: Path) -> None:
    job = {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "8", "SLURM_TASKS_PER_NODE": "8(x2)"}
    lines = ("check_sizes jobs.pretrain tiny",)
    assert "error: " not in sourced(tmp_path, *lines, SPARE_NODES="1", **job)  # type: ignore[arg-type]
    (line,) = sourced(tmp_path, *lines, code=2, SPARE_NODES="2", **job).splitlines()  # type: ignore[arg-type]
    assert "error: SPARE_NODES '2' leaves none of this job's 2 nodes to train on: unset it, or ask sbatch for" in line


@pytest.mark.parametrize(
    ("limit", "short"),
    [("00:05:00", True), ("00:09:59", True), ("00:10:00", False), ("1-00:00:00", False), ("UNLIMITED", False)],
)
def test_a_time_limit_that_leaves_no_time_is_pointed_out(tmp_path: Path, limit: str, short: bool) -> None:
    """The warning comes 300 s before it: at once, and the job would requeue for ever."""
    scontrol = f"scontrol() {{ echo '   RunTime=00:00:01 TimeLimit={limit} TimeMin=N/A'; }}"
    printed = sourced(tmp_path, scontrol, "check_time_limit")
    assert ("warning: the time limit of " in printed) == short
    assert sourced(tmp_path, "scontrol() { echo '   Command=/x/a.sh TimeLimit=00:05:00'; }", "check_time_limit") == ""


@pytest.mark.parametrize("rates", ["0.003 0.01", "3e-3", ".5", "1", "1.", "1E+0"])
def test_learning_rates_are_numbers(tmp_path: Path, rates: str) -> None:
    assert sourced(tmp_path, FINETUNE_LRS=rates) == ""


@pytest.mark.parametrize("script", [*TRAINING, "pretrain.sh", "finetune.sh", "evaluate.sh", "shard.sh", "command.sh"])
def test_a_job_script_outside_a_job_says_what_it_is_for(script: str) -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    done = subprocess.run(
        ["bash", REPO / "slurm" / script], env=variables, text=True, capture_output=True, timeout=200, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"slurm/{script} is a Slurm job script, started outside a job: submit it with vit submit" in done.stderr
    assert "#SBATCH" not in done.stderr
    assert any(line.startswith(("  sbatch ", "  vit submit")) for line in done.stderr.splitlines())


@pytest.mark.slurm
def test_a_job_without_gpus_says_in_its_first_line_what_to_pass(cluster: Cluster, tmp_path: Path) -> None:
    options = ("--nodes=1", f"--output={tmp_path}/log", "--time=5")
    job = cluster.submit("pretrain.sh", "b16", options=options, RUNS=str(tmp_path), IN21K=str(tmp_path))
    assert cluster.wait(job, timeout=200) == "FAILED"
    first, *_ = (tmp_path / "log").read_text().splitlines()
    assert f"pretrain-b16 {job}: error: this job has no GPUs" in first
    assert "--ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=12" in first


@pytest.mark.slurm
def test_an_evaluation_that_is_refused_is_not_tried_again(cluster: Cluster, tmp_path: Path) -> None:
    """accelerate exits with 1, whatever the code of its processes."""
    options = ("--gpus-per-node=1", "--cpus-per-task=1", f"--output={tmp_path}/log", "--time=5")
    job = cluster.submit("evaluate.sh", tmp_path, "--data", tmp_path, "--bacth", 3, options=options)
    assert cluster.wait(job, timeout=100) == "FAILED"
    log = (tmp_path / "log").read_text()
    assert "Perhaps you meant: --batch" in log
    assert "requeueing" not in log
    assert cluster.jobs(job)[0]["Restarts"] == "0"
