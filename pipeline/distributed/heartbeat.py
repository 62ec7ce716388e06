"""Detect and name dead and hung ranks: each rank shows signs of life and progress.

A killed rank breaks its peers' collective at once (gloo) or leaves them waiting (NCCL); a hung one leaves them waiting
with both. Neither says which rank it was. So a thread of each rank writes its state (see hangs.py) to a store on rank 0
once per second, and rank 0's thread compares the states. If rank 0 is frozen, calls to the store never return, despite
its time limit: a second thread of every other rank detects that. Nothing here is collective after
:meth:`Heartbeat.start`, and training never waits for it.
"""

import contextlib
import datetime
import faulthandler
import json
import logging
import multiprocessing
import os
import sys
import threading
import time
import traceback
from pathlib import Path

import torch.distributed
from torch._C._distributed_c10d import TCPStore  # torch.distributed.TCPStore, where mypy finds it

from pipeline.distributed.flight_recorder import dump_collectives
from pipeline.distributed.hangs import Phase, Stall, State, Watch
from pipeline.distributed.ranks import node_name

logger = logging.getLogger(__name__)

PERIOD = 1.0  # seconds between signs of life
# Periods that the others have to read which rank hangs. So a hang is named at most hang_timeout and 3 + READ periods
# after the rank's last mark: one until the mark is in the store, one until rank 0 reads it, one until it looks again
READ = 3
SILENCE = 30.0  # seconds after which a rank counts as gone, whatever the others see
SUSPICION = 5.0  # the same if a collective has already failed
PATIENCE = datetime.timedelta(seconds=10)  # for the store to answer
STACK = 12  # frames of a hung rank's stack that the log shows, innermost last
EXIT_PEER_GONE = 1


class Heartbeat:
    """The heartbeat of one rank. ``start`` it after the process group, ``stop`` it before leaving the group.

    ``hang_timeout``: seconds that the others wait for a rank that makes no progress in a step.
    ``collectives``: folder for the ranks' last collectives. ``blamed``: file that names the culprit as slurm/rank.sh
    does; it is written if its folder exists.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        hang_timeout: float = 50.0,
        collectives: Path | None = None,
        blamed: Path | None = None,
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self.hang_timeout, self._collectives, self._blamed = hang_timeout, collectives, blamed
        self.hosts: list[str] = []
        self._point: tuple[int, int, Phase] = (0, 0, "start")  # State's marks, step and phase: replaced as a whole
        self._first_step = sys.maxsize
        self._beat = 0
        self._rank_0 = State(0)  # as last seen
        self._main = threading.get_ident()
        self._stopped = threading.Event()
        self._failed = False  # this rank is in fail(): it will leave by itself
        self._ending = False  # the thread is ending this process
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> "Heartbeat":
        """Collective: rank 0 opens the store, all learn each other's hosts. Call in the main thread."""
        port = [0]
        address = os.environ["MASTER_ADDR"]
        if self.rank == 0:
            self._store = TCPStore(address, 0, is_master=True, timeout=PATIENCE, wait_for_workers=False)
            port = [self._store.port]
        torch.distributed.broadcast_object_list(port)
        if self.rank != 0:
            self._store = TCPStore(address, port[0], is_master=False, timeout=PATIENCE)
        self.hosts = [""] * self.world_size
        torch.distributed.all_gather_object(self.hosts, node_name(os.environ))
        self._store.set(f"state/{self.rank}", self._state().to_json())
        if self.rank == 0:
            self._store.set("verdict", "null")
        torch.distributed.barrier()
        if self.world_size > 1:
            self._thread.start()
            if self.rank != 0:
                threading.Thread(target=self._watch_rank_0, name="watch of rank 0", daemon=True).start()
        return self

    def connect(self) -> TCPStore:
        """Another connection to the store that all ranks share: a wait on one holds up every other use of it."""
        return TCPStore(os.environ["MASTER_ADDR"], self._store.port, is_master=False, timeout=PATIENCE)

    def mark(self, phase: Phase, step: int | None = None) -> None:
        """Mark that the main thread begins ``phase`` (of ``step``, from 1). All ranks must make the same marks."""
        marks, last, _ = self._point
        if step is not None and self._first_step == sys.maxsize:
            self._first_step = step
        self._point = (marks + 1, last if step is None else step, phase)

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def fail(self, error: BaseException) -> str:
        """Tell the others why this rank exits; wait for, and return, what is known about the first cause."""
        if self.world_size == 1:
            return ""
        text = " ".join(f"{self.name(self.rank)}: {type(error).__name__}: {error}".split())[:300]
        try:
            if self._thread.is_alive() and (self._ending or self._store.get("verdict") != b"null"):
                self._thread.join()  # the others' exit caused this error; the thread ends this process, too
            self._failed = True
            number = self._store.add("failures", 1)
            self._store.set(f"failure/{number}", text)
            self._store.add(f"failed/{self.rank}", 1)
            if number == 1 and not isinstance(error, RuntimeError):  # torch's error if a peer is gone
                return f"first failure: {text}"
            gone = self._silent_ranks(SUSPICION)
            return f"{self._named(gone)} gone" if gone else f"first failure: {self._store.get('failure/1').decode()}"
        except RuntimeError:  # also a timeout
            self._failed = True
            return f"{self._named([0])} gone"
        finally:
            time.sleep(0 if self.rank else SUSPICION + 2 * PERIOD)  # rank 0 holds the store that the others ask

    def name(self, rank: int) -> str:
        return f"rank {rank} on {self.hosts[rank]}"

    def _named(self, ranks: list[int]) -> str:
        named = ", ".join(map(self.name, ranks))
        return f"{named} {'is' if len(ranks) == 1 else 'are'}"

    def _silent_ranks(self, seconds: float) -> list[int]:
        """Ranks without a sign of life in ``seconds``, except those that have reported a failure."""
        before = self._states()
        time.sleep(seconds)
        after = self._states()
        spoke = [self._store.add(f"failed/{rank}", 0) > 0 for rank in range(self.world_size)]
        return [rank for rank in range(self.world_size) if after[rank].beat == before[rank].beat and not spoke[rank]]

    def _states(self) -> list[State]:
        texts = self._store.multi_get([f"state/{rank}" for rank in range(self.world_size)])
        return [State.from_json(text) for text in texts]

    def _state(self) -> State:
        return State(self._beat, *self._point, collective=_in_collective(self._main))

    def _run(self) -> None:
        awake, before = 0.0, time.monotonic()  # seconds in which this process was not suspended
        watch = Watch([State(0)] * self.world_size, awake)
        warned = -1.0  # about the stall since this moment
        while not self._stopped.wait(PERIOD):
            try:
                self._beat += 1
                self._store.set(f"state/{self.rank}", self._state().to_json())
                if self.rank == 0:
                    awake += min(time.monotonic() - before, 3 * PERIOD)
                    before = time.monotonic()
                    watch.update(self._states(), awake)
                    if gone := watch.silent(min(SILENCE, self.hang_timeout), awake):
                        self._end(gone, f"{self._named(gone)} gone: no sign of life since {watch.states[gone[0]]}")
                    stall = watch.stall(awake)
                    if stall.over(self.hang_timeout, self._first_step):
                        self._end(stall.ranks, self._describe(stall))
                    elif stall.seconds > self.hang_timeout and warned != watch.moved and stall.state.phase != "end":
                        logger.warning("%s", self._describe(stall))
                        warned = watch.moved
                    continue
                self._rank_0 = State.from_json(self._store.get("state/0"))
                if verdict := json.loads(self._store.get("verdict")):
                    self._obey(*verdict)
            except RuntimeError:
                if not self._stopped.is_set():
                    self._leave_without_rank_0()

    def _watch_rank_0(self) -> None:
        beat, silent = self._beat, 0  # periods without an answer; counted, because this process itself may be suspended
        while not self._stopped.wait(PERIOD):
            silent = 0 if self._beat != beat else silent + 1
            beat = self._beat
            if silent * PERIOD > min(SILENCE, self.hang_timeout):
                self._failed = False  # whatever the main thread is in, it waits for the store as well
                self._leave_without_rank_0()

    def _leave_without_rank_0(self) -> None:
        self._blame([0])
        self._leave(f"{self._named([0])} gone: no answer since {self._rank_0}")

    def _describe(self, stall: Stall) -> str:
        """Describe a stall."""
        if not stall.ranks:
            return (
                f"no rank has made progress for {stall.seconds:.0f} s, and all are at the same point ({stall.state}): "
                "a GPU or the network may hang"
            )
        named = self._named(stall.ranks).rpartition(" ")[0]
        verb = "has" if len(stall.ranks) == 1 else "have"
        return f"{named} {verb} made no progress for {stall.seconds:.0f} s while others wait ({stall.state})"

    def _end(self, ranks: list[int], why: str) -> None:
        """On rank 0: tell all ranks to exit because of ``ranks`` (none: it isn't known which), then exit."""
        if self._failed:
            return
        self._ending = True
        self._blame(ranks)
        self._store.set("verdict", json.dumps([ranks, why]))
        if 0 in ranks:
            self._report_stack()
        time.sleep(READ * PERIOD)
        for rank in ranks:
            if self._store.check([f"stack/{rank}"]):
                why += f"\n{self.name(rank)} is here:\n{self._store.get(f'stack/{rank}').decode()}"
            else:
                why += f"\n{self.name(rank)} does not answer: it or its host is dead or stopped"
        self._leave(why)

    def _obey(self, ranks: list[int], why: str) -> None:
        """Exit with rank 0's verdict; on the other ranks."""
        if self.rank in ranks:
            self._report_stack()
        self._leave(why)

    def _report_stack(self) -> None:
        """Send the main thread's stack to rank 0; print all threads' to stderr."""
        frame = sys._current_frames().get(self._main)
        self._store.set(f"stack/{self.rank}", "".join(traceback.format_stack(frame)[-STACK:]).rstrip())
        with contextlib.suppress(OSError, ValueError):  # no stderr
            faulthandler.dump_traceback(all_threads=True)

    def _blame(self, ranks: list[int]) -> None:
        """Name the culprit for slurm/launch.sh, which avoids nodes that fail twice; the first writer counts."""
        if self._blamed is None or len(ranks) != 1:
            return
        with contextlib.suppress(OSError), self._blamed.open("x", encoding="utf-8") as file:
            file.write(f"{self.hosts[ranks[0]]} {ranks[0]} {EXIT_PEER_GONE}\n")

    def _leave(self, why: str) -> None:
        """End the process from this thread: the main one may hang in a collective forever."""
        if self._failed:
            return
        logger.error("%s", why)
        logger.error("rank %d exits; a restart resumes from the last checkpoint", self.rank)
        faulthandler.dump_traceback_later(10, exit=True)  # what follows must not hang as well
        if self._collectives is not None:
            dump_collectives(self._collectives, self.rank)
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(EXIT_PEER_GONE)


def _in_collective(thread: int) -> bool:
    """Whether ``thread`` is inside torch.distributed, as while it waits for other ranks; by its Python stack."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_filename == torch.distributed.distributed_c10d.__file__:
            return True
        frame = frame.f_back
    return False
