"""Who is gone: each rank shows a sign of life, and names the rank that shows none.

A rank that was killed breaks its peers' collective at once (gloo) or leaves them waiting (NCCL); neither says who it
was. So a thread of each rank counts up a number in a store on rank 0, and rank 0's thread looks whose stands still.
Nothing here is collective after :meth:`Heartbeat.start`, and training never waits for it.
"""

import datetime
import logging
import os
import socket
import threading
import time

import torch.distributed
from torch._C._distributed_c10d import TCPStore  # torch.distributed.TCPStore, where mypy finds it

logger = logging.getLogger(__name__)

PERIOD = 1.0  # seconds between signs of life
SILENCE = 30.0  # seconds after which a rank is gone, whatever the others see
SUSPICION = 5.0  # the same where a collective has failed already
PATIENCE = datetime.timedelta(seconds=10)  # for the store to answer
EXIT_PEER_GONE = 1


class Heartbeat:
    """Of one rank. ``start`` after the process group, ``stop`` before it is left."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self.hosts: list[str] = []
        self._stopped = threading.Event()
        self._failed = False  # this rank is in fail(): it will leave by itself
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> "Heartbeat":
        """Collective: rank 0 opens the store, all learn each other's hosts."""
        port = [0]
        address = os.environ["MASTER_ADDR"]
        if self.rank == 0:
            self._store = TCPStore(address, 0, is_master=True, timeout=PATIENCE, wait_for_workers=False)
            port = [self._store.port]
        torch.distributed.broadcast_object_list(port)
        if self.rank != 0:
            self._store = TCPStore(address, port[0], is_master=False, timeout=PATIENCE)
        self.hosts = [""] * self.world_size
        torch.distributed.all_gather_object(self.hosts, socket.gethostname())
        self._store.add(f"beat/{self.rank}", 1)
        torch.distributed.barrier()
        if self.world_size > 1:
            self._thread.start()
        return self

    def connect(self) -> TCPStore:
        """Another connection to the store that all ranks share: a wait on one holds up every other use of it."""
        return TCPStore(os.environ["MASTER_ADDR"], self._store.port, is_master=False, timeout=PATIENCE)

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def fail(self, error: BaseException) -> str:
        """Tell the others why this rank leaves; return what is known about the first cause, waiting for it."""
        self._failed = True
        if self.world_size == 1:
            return ""
        text = " ".join(f"{self.name(self.rank)}: {type(error).__name__}: {error}".split())[:300]
        try:
            number = self._store.add("failures", 1)
            self._store.set(f"failure/{number}", text)
            self._store.add(f"failed/{self.rank}", 1)
            if number == 1 and not isinstance(error, RuntimeError):  # torch's error where a peer is gone
                return f"first failure: {text}"
            gone = self._silent_ranks(SUSPICION)
            return f"{self._named(gone)} gone" if gone else f"first failure: {self._store.get('failure/1').decode()}"
        except RuntimeError:  # also a timeout
            return f"{self._named([0])} gone"
        finally:
            time.sleep(0 if self.rank else SUSPICION + 2 * PERIOD)  # rank 0 holds the store that the others ask

    def name(self, rank: int) -> str:
        return f"rank {rank} on {self.hosts[rank]}"

    def _named(self, ranks: list[int]) -> str:
        named = ", ".join(map(self.name, ranks))
        return f"{named} {'is' if len(ranks) == 1 else 'are'}"

    def _silent_ranks(self, seconds: float) -> list[int]:
        """Ranks without a sign of life in ``seconds``, of those that haven't failed in words."""
        before = self._beats()
        time.sleep(seconds)
        after = self._beats()
        spoke = [self._store.add(f"failed/{rank}", 0) > 0 for rank in range(self.world_size)]
        return [rank for rank in range(self.world_size) if after[rank] == before[rank] and not spoke[rank]]

    def _beats(self) -> list[int]:
        return [self._store.add(f"beat/{rank}", 0) for rank in range(self.world_size)]

    def _run(self) -> None:
        counts = [0] * self.world_size
        changed = [time.monotonic()] * self.world_size
        while not self._stopped.wait(PERIOD):
            try:
                self._store.add(f"beat/{self.rank}", 1)
                if self.rank == 0:
                    now = time.monotonic()
                    beats = self._beats()
                    for rank, count in enumerate(beats):
                        if count != counts[rank]:
                            counts[rank], changed[rank] = count, now
                    gone = [rank for rank in range(1, self.world_size) if now - changed[rank] > SILENCE]
                    if gone:
                        self._store.set("gone", self._named(gone))
                        time.sleep(3 * PERIOD)  # the others read it
                        self._leave(self._named(gone))
                elif self._store.check(["gone"]):
                    self._leave(self._store.get("gone").decode())
            except RuntimeError:
                if not self._stopped.is_set():
                    self._leave(self._named([0]))

    def _leave(self, who: str) -> None:
        """End the process from this thread: the main one may hang in a collective for good."""
        if self._failed:
            return
        logger.error("%s gone: rank %d leaves; a restart goes on from the last checkpoint", who, self.rank)
        os._exit(EXIT_PEER_GONE)
