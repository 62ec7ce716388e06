"""A node's load in its file. That each node's reaches MLflow: test_training.py."""

import builtins
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from pipeline.runs import records
from pipeline.tracking import system_metrics
from pipeline.tracking.system_metrics import Sampler, gpu_load, open_nvml

HOST = {
    "cpu_utilization_percentage", "system_memory_usage_megabytes", "system_memory_usage_percentage",
    "disk_usage_percentage", "disk_usage_megabytes", "disk_available_megabytes",
    "network_receive_megabytes", "network_transmit_megabytes",
}  # fmt: skip


def test_a_node_goes_on_counting_its_samples_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_metrics, "PERIOD", 0.02)
    for attempt in (1, 2):
        sampler = Sampler(tmp_path / "run", "node 1/a", attempt).start()
        sampler._stopped.wait(0.1)
        sampler.stop()
        sampler._thread.join()  # stop() waits no longer than a PERIOD
    (path,) = (tmp_path / "run" / "system").iterdir()
    assert path.name == "node_1_a.jsonl"
    lines, _ = records.read_lines(path)
    assert [line.step for line in lines] == list(range(len(lines)))
    assert {line.attempt for line in lines} == {1, 2}
    names = {name.removeprefix("system/node_1_a/") for name in lines[0].metrics}
    assert HOST <= names <= HOST | {"disk_read_megabytes", "disk_write_megabytes"}
    assert 0 < lines[-1].metrics["system/node_1_a/system_memory_usage_percentage"] <= 100
    assert all(line.metrics["system/node_1_a/network_receive_megabytes"] >= 0 for line in lines)


def test_a_short_run_has_one_sample_and_a_full_disk_costs_only_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Sampler(tmp_path, "a", 1).start().stop()
    assert len((tmp_path / "system" / "a.jsonl").read_text().splitlines()) == 1

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records, "Appender", full)
    Sampler(tmp_path, "b", 1).start().stop()
    assert not (tmp_path / "system" / "b.jsonl").exists()
    assert capfd.readouterr().err == ""


class NVMLError(Exception):
    pass


def nvml(**more: Any) -> Any:
    """nvidia-ml-py's functions with NVML's units: bytes, percent, degrees, milliwatts."""
    functions: dict[str, Any] = {
        "NVMLError": NVMLError,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": lambda _: types.SimpleNamespace(used=20_000_000_000, total=80_000_000_000),
        "nvmlDeviceGetUtilizationRates": lambda index: types.SimpleNamespace(gpu=90 + index),
        "nvmlDeviceGetTemperature": lambda _, sensor: 61 if sensor == 0 else -1,
        "nvmlDeviceGetPowerUsage": lambda _: 350_000,
        "nvmlDeviceGetEnforcedPowerLimit": lambda _: 700_000,
    }
    return types.SimpleNamespace(**functions | more)


def test_each_gpu_has_use_memory_temperature_and_power() -> None:
    assert gpu_load(nvml(nvmlDeviceGetCount=lambda: 1)) == {
        "gpu_0_memory_usage_megabytes": 20_000,
        "gpu_0_memory_usage_percentage": 25,
        "gpu_0_utilization_percentage": 90,
        "gpu_0_temperature_celsius": 61,
        "gpu_0_power_usage_watts": 350,
        "gpu_0_power_usage_percentage": 50,
    }
    assert gpu_load(nvml())["gpu_1_utilization_percentage"] == 91


def test_what_a_gpu_does_not_report_is_absent() -> None:
    def unsupported(*_: object) -> None:
        raise NVMLError

    found = gpu_load(nvml(nvmlDeviceGetPowerUsage=unsupported, nvmlDeviceGetUtilizationRates=unsupported))
    assert {name.removeprefix("gpu_0_") for name in found if name.startswith("gpu_0")} == {
        "memory_usage_megabytes", "memory_usage_percentage", "temperature_celsius",
    }  # fmt: skip


@pytest.mark.parametrize("call", ["nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"])
def test_a_driver_or_gpu_that_is_lost_during_the_run_costs_only_the_gpus_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], call: str
) -> None:
    def lost(*_: object) -> None:
        raise NVMLError

    monkeypatch.setattr(system_metrics, "open_nvml", lambda: nvml(**{call: lost}))
    Sampler(tmp_path, "a", 1).start().stop()
    lines, _ = records.read_lines(tmp_path / "system" / "a.jsonl")
    assert [line.step for line in lines] == [0]
    assert not [name for name in lines[0].metrics if "gpu_" in name]
    assert "system/a/cpu_utilization_percentage" in lines[0].metrics
    assert capfd.readouterr().err == ""


def test_one_lost_gpu_leaves_the_others() -> None:
    def first_lost(index: int) -> int:
        if index == 0:
            raise NVMLError
        return index

    found = gpu_load(nvml(nvmlDeviceGetHandleByIndex=first_lost))
    assert {name[:6] for name in found} == {"gpu_1_"}
    assert found["gpu_1_utilization_percentage"] == 91


def test_without_the_package_or_a_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise NVMLError

    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlInit=no_driver))
    assert open_nvml() is None
    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlInit=lambda: None))
    assert open_nvml() is sys.modules["pynvml"]
    monkeypatch.delitem(sys.modules, "pynvml")
    real = builtins.__import__

    def missing(name: str, *others: Any) -> Any:
        if name == "pynvml":
            raise ModuleNotFoundError(name)
        return real(name, *others)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert open_nvml() is None
