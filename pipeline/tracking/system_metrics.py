"""Each node's load during a run, in RUN/system/<node>.jsonl: names and units as in MLflow, below ``system/<node>/``.

A thread of each node's first rank measures; rank 0's sync sends all nodes' files to MLflow. A sample, twice per minute,
takes a few milliseconds.
"""

import contextlib
import os
import re
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from pipeline.runs import records
from pipeline.runs.folder import SYSTEM
from pipeline.runs.records import Line

PERIOD = 30.0  # seconds between samples


class Sampler:
    """Samples the load of one node. ``start`` starts the thread, ``stop`` takes a last sample and ends it."""

    def __init__(self, run_dir: Path, node: str, attempt: int) -> None:
        self._prefix = f"system/{re.sub('[^A-Za-z0-9_.-]', '_', node)}"
        path = run_dir / SYSTEM / f"{self._prefix.rpartition('/')[2]}.jsonl"
        self._path, self._attempt = path, attempt
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system metrics", daemon=True)

    def start(self) -> "Sampler":
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(PERIOD)  # unless the driver or the disk hangs, which must not hold up the training

    def _run(self) -> None:
        """Sample until stopped. A failing disk or driver costs samples, never the training."""
        with contextlib.suppress(OSError, RuntimeError, psutil.Error):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = records.Appender(self._path)
            step = self._path.read_bytes().count(b"\n")  # counts the node's samples
            nvml, start = open_nvml(), totals()
            psutil.cpu_percent()  # the next call measures from here
            while True:
                last = self._stopped.wait(PERIOD)
                values = {**host_load(), **{name: value - start.get(name, 0.0) for name, value in totals().items()}}
                if nvml is not None:
                    values |= gpu_load(nvml)
                metrics = {f"{self._prefix}/{name}": round(value, 1) for name, value in values.items()}
                file.append(records.to_json(Line(step, 0, time.time(), self._attempt, metrics)))
                step += 1
                if last:
                    file.close()
                    return


def host_load() -> dict[str, float]:
    """CPU (percent since the last call), memory, and the root disk's space."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(os.sep)
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": memory.used / memory.total * 100,
        "disk_usage_percentage": disk.percent,
        "disk_usage_megabytes": disk.used / 1e6,
        "disk_available_megabytes": disk.free / 1e6,
    }


def totals() -> dict[str, float]:
    """What the node has received, sent, read and written since it started; containers may hide the last two."""
    network, disk = psutil.net_io_counters(), psutil.disk_io_counters()
    found = {
        "network_receive_megabytes": network.bytes_recv / 1e6,
        "network_transmit_megabytes": network.bytes_sent / 1e6,
    }
    if disk is not None:
        found |= {"disk_read_megabytes": disk.read_bytes / 1e6, "disk_write_megabytes": disk.write_bytes / 1e6}
    return found


def open_nvml() -> ModuleType | None:
    """nvidia-ml-py's module, ready for use; None without it, a driver or a GPU."""
    try:
        import pynvml  # nvidia-ml-py, which only nodes with GPUs need

        pynvml.nvmlInit()
    except Exception:  # pynvml's errors have no common base if the package is missing
        return None
    return pynvml  # type: ignore[no-any-return]


def gpu_load(nvml: Any) -> dict[str, float]:
    """Use, memory, temperature and power of each GPU of the node. What a GPU doesn't report is absent."""
    found: dict[str, float] = {}
    gpus = 0
    with contextlib.suppress(nvml.NVMLError):  # the driver may be lost while the run lasts, and so may one GPU
        gpus = nvml.nvmlDeviceGetCount()
    for index in range(gpus):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError:
            continue
        name = f"gpu_{index}"
        with contextlib.suppress(nvml.NVMLError):
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            found[f"{name}_memory_usage_megabytes"] = memory.used / 1e6
            found[f"{name}_memory_usage_percentage"] = memory.used / memory.total * 100
        with contextlib.suppress(nvml.NVMLError):
            found[f"{name}_utilization_percentage"] = nvml.nvmlDeviceGetUtilizationRates(handle).gpu
        with contextlib.suppress(nvml.NVMLError):
            found[f"{name}_temperature_celsius"] = nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
        with contextlib.suppress(nvml.NVMLError):
            watts = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
            found[f"{name}_power_usage_watts"] = watts
            limit = nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
            found[f"{name}_power_usage_percentage"] = watts / limit * 100
    return found
