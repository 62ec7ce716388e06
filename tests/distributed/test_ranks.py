"""Launchers' variables -> ranks."""

import pytest

from pipeline.core.errors import UserError
from pipeline.distributed.ranks import Ranks, export_variables, ranks_from_environment

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SRUN = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "5", "SLURM_NTASKS": "16"}


def test_each_launcher() -> None:
    assert ranks_from_environment(TORCHRUN) == Ranks(3, 8, 1, "torchrun")
    assert ranks_from_environment(SRUN) == Ranks(5, 16, 5, "slurm")
    assert ranks_from_environment({"HOME": "/root"}) == Ranks(0, 1, 0, "alone")


def test_torchrun_inside_a_slurm_step_wins() -> None:
    assert ranks_from_environment(SRUN | TORCHRUN).launcher == "torchrun"


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
    }


def test_ranks_need_a_meeting_point_and_one_process_makes_its_own() -> None:
    with pytest.raises(UserError, match="MASTER_ADDR '' and MASTER_PORT ''"):
        export_variables(Ranks(0, 2, 0, "slurm"), {})
    alone = export_variables(Ranks(0, 1, 0, "alone"), {})
    assert alone["MASTER_ADDR"] == "127.0.0.1"
    assert int(alone["MASTER_PORT"]) > 0
