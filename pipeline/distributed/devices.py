"""What GPUs and CPUs can do: peak FLOP/s by name, memory, and a measured matrix product."""

import re
import time

import torch
import torch.distributed

# Dense bfloat16 FLOP/s by a part of the device's name, from data sheets (SXM if the name doesn't contain PCIe)
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 FLOP/s of a GPU by its name; None if it isn't in the table."""
    return next((peak for part, peak in PEAKS.items() if is_device(part, device_name)), None)


def is_device(part: str, device_name: str) -> bool:
    """Whether a device's name contains ``part`` as whole words: "L40" does not contain "L4"."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(part)}(?![A-Za-z0-9])", device_name) is not None


# GPU memory in GB (10**9 bytes) by a part of the name, for names that don't state it, from data sheets
GIGABYTES = {
    "B200": 180,
    "H200": 141,
    "H100 NVL": 94,
    "H100": 80,
    "A100": 80,
    "L40S": 48,
    "L40": 48,
    "RTX 4090": 24,
    "RTX 3090": 24,
    "A10G": 24,
    "L4": 24,
}


def memory_of(device_name: str) -> int | None:
    """A GPU's memory in GB, from its name (A100-SXM4-40GB) or the table; None if it is in neither."""
    if said := re.search(r"(\d+) ?GB", device_name):
        return int(said[1])
    return next((size for part, size in GIGABYTES.items() if is_device(part, device_name)), None)


GEMM_SIZE = {"cuda": 8192, "cpu": 768}


def best_flops(device: torch.device) -> float:
    """Peak FLOP/s of ``device``: from the data sheet for known GPUs, else measured."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return peak_flops(name) or gemm(device)


def gemm(device: torch.device, rounds: int = 5) -> float:
    """FLOP/s of a square matrix product, bfloat16 on GPUs and float32 on CPUs: the best of several."""
    size = GEMM_SIZE[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    fastest = float("inf")
    for _ in range(rounds):
        began = _now(device)
        a @ b
        fastest = min(fastest, _now(device) - began)
    return 2 * size**3 / fastest


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
