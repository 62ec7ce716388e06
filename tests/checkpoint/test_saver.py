"""How rank 0 learns what the other ranks have written (pipeline/checkpoint/saver.py), by a real store."""

import threading
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from pipeline.checkpoint.saver import Report, report, wait_for_all

FOLDER = Path("checkpoints/.step-00000007.tmp")
ENTRY = {"bytes": 1, "xxh3_128": "0"}


@pytest.fixture
def served() -> TCPStore:
    """Rank 0's."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))


def connection(served: TCPStore) -> TCPStore:
    return TCPStore("127.0.0.1", served.port, is_master=False, timeout=timedelta(seconds=10))


def test_reports_come_in_any_order_and_leave_nothing_behind(served: TCPStore) -> None:
    """... also longer after one another than the store's own patience, and for one step again and again."""
    patient = connection(served)
    patient.set_timeout(timedelta(seconds=0.5))
    keys = served.num_keys()
    for _ in range(2):
        report(connection(served), 7, Report(2, {"state-002.safetensors": ENTRY}))
        late = threading.Timer(0.7, report, (connection(served), 7, Report(0, {"state-000.safetensors": ENTRY})))
        late.start()
        report(connection(served), 7, Report(1))  # a rank without a share
        files = wait_for_all(patient, 7, 3, FOLDER)
        late.join()
        assert files == {"state-002.safetensors": ENTRY, "state-000.safetensors": ENTRY}
        assert served.num_keys() == keys


def test_a_fault_ends_the_wait_at_once_whoever_is_still_writing(served: TCPStore) -> None:
    report(connection(served), 7, Report(2, fault="OSError(28, 'No space left on device')"))
    with pytest.raises(RuntimeError, match=r"rank 2 could not write its part of .*No space left on device"):
        wait_for_all(connection(served), 7, 3, FOLDER)


def test_ranks_that_report_nothing_are_named(served: TCPStore) -> None:
    report(connection(served), 7, Report(1, {"state-001.safetensors": ENTRY}))
    with pytest.raises(TimeoutError, match=r"rank\(s\) 0, 2 have not written their part within 1 s"):
        wait_for_all(connection(served), 7, 3, FOLDER, timedelta(seconds=1))


def test_a_report_without_rank_0_fails_instead_of_waiting() -> None:
    """The saver takes that RuntimeError for: rank 0 does not know."""
    served = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    alone = connection(served)
    alone.set("x", "")
    del served
    with pytest.raises(RuntimeError):
        report(alone, 7, Report(1, fault="lost"))
