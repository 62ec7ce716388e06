"""Launchers' variables -> ranks."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed import HashStore

from pipeline.core.errors import UserError
from pipeline.distributed.process_group import check_devices
from pipeline.distributed.ranks import Ranks, export_variables, ranks_from_environment

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SRUN = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "5", "SLURM_NTASKS": "16"}


def test_each_launcher() -> None:
    assert ranks_from_environment(TORCHRUN) == Ranks(3, 8, 1, "torchrun")
    assert ranks_from_environment(SRUN) == Ranks(5, 16, 5, "slurm")
    assert ranks_from_environment({"HOME": "/root"}) == Ranks(0, 1, 0, "alone")


def test_torchrun_inside_a_slurm_step_wins() -> None:
    assert ranks_from_environment(SRUN | TORCHRUN | {"TORCHELASTIC_RUN_ID": "none"}).launcher == "torchrun"


def test_a_batch_script_is_one_process() -> None:
    batch = {"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_LOCALID": "0"}
    assert ranks_from_environment(batch) == Ranks(0, 1, 0, "alone")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"RANK": "x"}, "RANK"),
        ({"LOCAL_RANK": None}, "LOCAL_RANK"),
        ({"WORLD_SIZE": None}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE"),
        ({"RANK": "8"}, "rank 8"),
    ],
)
def test_contradicting_variables_are_named(change: dict[str, str | None], name: str) -> None:
    environment = {key: value for key, value in (TORCHRUN | change).items() if value is not None}
    with pytest.raises(UserError, match=name):
        ranks_from_environment(environment)


def test_variables_for_torch_and_deepspeed() -> None:
    exported = export_variables(Ranks(5, 16, 5, "slurm"), {"MASTER_ADDR": "node1", "MASTER_PORT": "12345"})
    assert exported == {
        "RANK": "5",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "5",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "12345",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
    }


def test_ranks_need_a_meeting_point_and_one_process_makes_its_own() -> None:
    with pytest.raises(UserError, match=r"MASTER_ADDR '' and MASTER_PORT ''.*, export MASTER_ADDR="):
        export_variables(Ranks(0, 2, 0, "slurm"), {})
    alone = export_variables(Ranks(0, 1, 0, "alone"), {})
    assert alone["MASTER_ADDR"] == "127.0.0.1"
    assert int(alone["MASTER_PORT"]) > 0


@pytest.mark.parametrize("more", [{}, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}])
def test_a_process_alone_takes_no_meeting_point_from_its_shell(more: dict[str, str]) -> None:
    shell = {"MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True"} | more
    exported = export_variables(ranks_from_environment(shell), shell)
    assert (exported["MASTER_ADDR"], exported["TORCHELASTIC_USE_AGENT_STORE"]) == ("127.0.0.1", "False")
    assert exported["MASTER_PORT"] != "29500"


def test_a_single_rank_of_torchrun_meets_its_agent() -> None:
    agent = TORCHRUN | {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "TORCHELASTIC_RUN_ID": "x",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    exported = export_variables(ranks_from_environment(agent), agent)
    assert (exported["MASTER_ADDR"], exported["TORCHELASTIC_USE_AGENT_STORE"]) == ("node1", "True")


MPI = [
    {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": "1"},
    {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": "0"},
    {"MV2_COMM_WORLD_RANK": "0", "MV2_COMM_WORLD_SIZE": "2"},
    {"PMI_RANK": "0", "PMI_SIZE": "2"},
    {"PMIX_RANK": "0"},
    {"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "2"},
]


@pytest.mark.parametrize("variables", MPI)
def test_mpirun_is_refused(variables: dict[str, str]) -> None:
    """Each of its processes would train the whole run as rank 0 of 1. Its daemons may be tasks of srun."""
    daemon = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"}
    left_over = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    for around in ({}, left_over, daemon):
        if variables == {"PMIX_RANK": "0"} and around == left_over:
            continue  # says the same
        with pytest.raises(UserError, match="srun, torchrun or accelerate launch"):
            ranks_from_environment(variables | around)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "PMIX_RANK": "0"}, Ranks(0, 1, 0, "alone")),
        (SRUN | {"PMI_RANK": "5", "PMI_SIZE": "16"}, Ranks(5, 16, 5, "slurm")),  # srun --mpi=pmi2
        (SRUN | {"PMIX_RANK": "5"}, Ranks(5, 16, 5, "slurm")),  # srun --mpi=pmix
        (TORCHRUN | {"TORCHELASTIC_RUN_ID": "x"} | MPI[0], Ranks(3, 8, 1, "torchrun")),  # mpirun torchrun
        (TORCHRUN | {"CROSS_RANK": "0"} | MPI[3], Ranks(3, 8, 1, "torchrun")),  # mpirun deepspeed
        (TORCHRUN | {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8"}, Ranks(3, 8, 1, "torchrun")),  # by hand
    ],
)
def test_launchers_that_set_mpi_variables_too(variables: dict[str, str], expected: Ranks) -> None:
    assert ranks_from_environment(variables) == expected


def test_variables_of_a_shell_contradict_srun() -> None:
    with pytest.raises(UserError, match="RANK 0 and WORLD_SIZE 1 contradict srun, whose task this is 5 of 16"):
        ranks_from_environment(SRUN | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"})
    by_hand = SRUN | {"RANK": "11", "WORLD_SIZE": "32", "LOCAL_RANK": "1"}  # two processes a task
    assert ranks_from_environment(by_hand) == Ranks(11, 32, 1, "torchrun")


def test_ranks_of_one_gpu_are_refused() -> None:
    """However a site shows its GPUs to a task: what counts is which they are."""
    store = HashStore()
    for rank, device in ((0, "GPU-a"), (2, "GPU-a"), (1, "GPU-b")):
        store.set(f"gpu/{rank}", device)
    check_devices(Ranks(1, 3, 1, "slurm"), store, "GPU-b")
    with pytest.raises(UserError, match="ranks 0, 2 share one GPU"):
        check_devices(Ranks(2, 3, 2, "slurm"), store, "GPU-a")


def test_a_signal_ends_a_wait_for_the_other_ranks() -> None:
    """A rank whose peers never come left at nothing but SIGKILL for ten minutes."""
    program = """
import signal
from pipeline.distributed import process_group
from pipeline.distributed.ranks import Ranks
signal.signal(signal.SIGTERM, lambda *_: None)  # as training does
process_group.start(Ranks(1, 2, 1, "torchrun"))
"""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1])}
        waiting = subprocess.Popen([sys.executable, "-c", program], env=environment)
        listener.settimeout(50)
        connection, _ = listener.accept()  # it asks for the others
        time.sleep(0.3)
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(timeout=10) == -signal.SIGTERM
        connection.close()


def test_the_deepspeed_launchers_argument_is_taken(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "jobs.pretrain", "--local_rank=1", "tiny", "--run-dir", tmp_path, "--help")
    done = subprocess.run(
        command, env=os.environ | {"LOCAL_RANK": "1"}, encoding="utf-8", capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--optim.lr" in done.stdout
