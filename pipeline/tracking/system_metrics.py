"""The machine's load beside a run, into RUN/system.jsonl, by MLflow's own monitors and under MLflow's own names."""

import contextlib
import time
from pathlib import Path
from typing import Any

from pipeline.runs import records
from pipeline.runs.folder import SYSTEM
from pipeline.runs.records import Line

PERIOD = 10.0  # seconds, as MLflow's own default


class Sampler:
    """CPU, memory, disk, network and, where nvidia-ml-py finds one, GPUs of rank 0's node."""

    def __init__(self, run_dir: Path) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        kinds: list[Any] = [CPUMonitor, DiskMonitor, NetworkMonitor]
        self._monitors = [kind() for kind in kinds]
        gpu: Any = GPUMonitor
        with contextlib.suppress(ImportError, RuntimeError):  # no GPU
            self._monitors.append(gpu())
        record = records.read_record(run_dir)
        assert record is not None
        self._attempt = record.attempts[-1].number
        lines, _ = records.read_lines(run_dir / SYSTEM)
        self._step = lines[-1].step + 1 if lines else 0
        self._file = records.Appender(run_dir / SYSTEM)
        self._due = time.monotonic()

    def sample_if_due(self) -> None:
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + PERIOD
        metrics = {}
        for monitor in self._monitors:
            monitor.clear_metrics()
            monitor.collect_metrics()
            metrics.update({f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()})
        self._file.append(records.to_json(Line(self._step, 0, time.time(), self._attempt, metrics)))
        self._step += 1
