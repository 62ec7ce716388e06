"""The rank that the others wait for, from states alone."""

import json
from pathlib import Path

import pytest

from pipeline.config.schema import TrainConfig
from pipeline.distributed import heartbeat
from pipeline.distributed.flight_recorder import recorder_variables
from pipeline.distributed.hangs import COMPUTING, PATIENCE, Phase, State, Watch, behind


def at(marks: int, phase: Phase = "forward", *, collective: bool = False, step: int = 7) -> State:
    return State(beat=1, marks=marks, step=step, phase=phase, collective=collective)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([at(5), at(5), at(5)], []),
        ([at(6, "backward", collective=True), at(5), at(6, "backward", collective=True)], [1]),
        ([at(6, "backward", collective=True), at(6, "backward"), at(6, "backward", collective=True)], [1]),
        ([at(6, collective=True), at(6, collective=True)], []),
        ([at(9), at(5, "data"), at(5, "data")], [1, 2]),
        ([at(5, "records"), at(7, collective=True)], [0]),
        ([at(5, collective=True), at(6)], [0]),  # in another collective than the rest
    ],
)
def test_the_others_wait_for_the_rank_at_the_earliest_point(states: list[State], expected: list[int]) -> None:
    assert behind(states) == expected


def test_a_stall_counts_from_the_last_move_of_any_rank() -> None:
    watch = Watch([at(1), at(1)], 100.0)
    watch.update([at(2), at(1)], 130.0)
    assert watch.stall(150.0).seconds == 20.0
    assert watch.stall(150.0).ranks == [1]
    watch.update([at(2), at(1)], 160.0)
    assert watch.stall(191.0).seconds == 61.0
    watch.update([at(2), at(2)], 192.0)
    assert watch.stall(192.0).seconds == 0.0
    assert watch.stall(192.0).ranks == []


@pytest.mark.parametrize("victim", range(0, 10, 3))  # tenths of a period by which its beats follow its last mark
@pytest.mark.parametrize("watcher", range(10))  # the same of rank 0's
def test_a_hang_is_named_within_a_minute_by_default(victim: int, watcher: int) -> None:
    """At any offsets of the two ranks' beats, and if no store or log is slow, with 4 s to spare."""
    watch, stored, tenth = Watch([at(1), at(1)], -10.0), at(1), heartbeat.PERIOD / 10
    for number in range(10_000):  # tenths of a period since the victim's last mark
        if number % 10 == victim:
            stored = at(2)
        if number % 10 == watcher:
            watch.update([at(2, collective=True), stored], number * tenth)
            stall = watch.stall(number * tenth)
            if stall.over(TrainConfig().hang_timeout, first_step=1):
                assert stall.ranks == [1]
                assert number * tenth + heartbeat.READ * heartbeat.PERIOD <= 56.0
                return
    raise AssertionError("never named")


def test_a_rank_without_beats_is_silent_whatever_its_step() -> None:
    watch = Watch([State(0), State(0)], 0.0)
    watch.update([State(1), State(1, 5)], 10.0)
    watch.update([State(2), State(1, 5)], 40.0)
    assert watch.silent(30.0, 40.0) == []
    assert watch.silent(30.0, 40.1) == [1]


@pytest.mark.parametrize("phase", ["start", "data", "forward", "backward", "update", "records", "checkpoint"])
def test_only_computation_after_the_first_step_ends_at_the_limit(phase: Phase) -> None:
    watch = Watch([at(2, phase), at(3, collective=True)], 0.0)
    stall = watch.stall(61.0)
    assert stall.over(60.0, first_step=6) == (phase in COMPUTING)
    assert not stall.over(60.0, first_step=7), "the first step compiles"
    assert not stall.over(61.0, first_step=6)
    late = watch.stall(60.0 * PATIENCE + 1)
    assert late.over(60.0, first_step=7)


def test_ranks_at_one_point_and_ranks_that_end_are_left_alone() -> None:
    same = Watch([at(3), at(3)], 0.0).stall(61.0)
    assert not same.over(60.0, first_step=1)
    ending = Watch([at(3, "end"), at(4, "end", collective=True)], 0.0).stall(1e6)
    assert not ending.over(60.0, first_step=1)


def test_states_travel_as_json() -> None:
    state = at(3, "data", collective=True)
    assert State.from_json(state.to_json().encode()) == state
    assert json.loads(state.to_json())["phase"] == "data"
    assert str(state) == "step 7, waiting for its data loader (a loader stall)"


def test_nccl_writes_its_flight_recorder_into_the_run_folder_unless_the_user_says_where() -> None:
    ours = recorder_variables(Path("/runs/b16/collectives"), {})
    assert ours["TORCH_FR_DUMP_TEMP_FILE"] == "/runs/b16/collectives/rank-"
    assert ours["TORCH_NCCL_DEBUG_INFO_TEMP_FILE"] == "/runs/b16/collectives/rank-"
    assert ours["TORCH_FR_BUFFER_SIZE"] == ours["TORCH_NCCL_TRACE_BUFFER_SIZE"] == "2000"
    assert ours["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    user = {"TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "/scratch/", "TORCH_FR_BUFFER_SIZE": "0"}
    assert recorder_variables(Path("x"), user) == {"TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
