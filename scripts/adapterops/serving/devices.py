"""Utilisation and memory of the devices that the engines run on: NVIDIA GPUs, else this machine's
CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class DeviceCollector(Collector):
    """Reads the devices when it is scraped."""

    def __init__(self) -> None:
        self._gpus = _gpus()
        psutil.cpu_percent()  # the first reading is what the later ones are compared with

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Utilisation between 0 and 1, and memory in bytes, by device."""
        utilisation = GaugeMetricFamily(
            "llm_device_utilisation_ratio", "Share of time at work, 0 to 1", labels=["device"]
        )
        used = GaugeMetricFamily("llm_device_memory_used_bytes", "Memory in use", labels=["device"])
        total = GaugeMetricFamily("llm_device_memory_total_bytes", "Memory", labels=["device"])
        for name, share, in_use, size in self._read():
            utilisation.add_metric([name], share)
            used.add_metric([name], in_use)
            total.add_metric([name], size)
        yield from (utilisation, used, total)

    def _read(self) -> Iterator[tuple[str, float, float, float]]:
        if not self._gpus:
            memory = psutil.virtual_memory()
            yield "cpu", psutil.cpu_percent() / 100, memory.total - memory.available, memory.total
            return
        import pynvml  # comes with vLLM

        for number, handle in enumerate(self._gpus):
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            yield (
                f"gpu{number}",
                pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
                memory.used,
                memory.total,
            )


def _gpus() -> list[Any]:
    """NVML's handles; none where there is no GPU, no driver or no NVML."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return [
            pynvml.nvmlDeviceGetHandleByIndex(number)
            for number in range(pynvml.nvmlDeviceGetCount())
        ]
    except (
        Exception
    ):  # NVML's errors differ by driver; a host without figures of its GPU still serves
        return []
