"""The power that a stage draws, for its manifest.

Measured where codecarbon (extra `energy`) finds energy counters: RAPL of the CPU (Linux), and
those of the GPUs that the run uses. Estimated from `energy.watts` of the recipe where there is
none. Otherwise unknown, never 0.

A counter measures whatever runs on its device; memory and the rest of the machine are not counted.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillhouse.extras import missing_modules

if TYPE_CHECKING:
    from stillhouse.energy.settings import EnergyRecipe

READ_EVERY_SECONDS = 30.0  # counters of CPUs start again from 0 after some minutes
SHORT_SECONDS = 1.0  # a counter may not change in less
JOULES_PER_KWH = 3.6e6
RAPL = Path("/sys/class/powercap/intel-rapl/subsystem")


@dataclass(frozen=True)
class Power:
    """Mean power of a stage in watts, of all devices together; None where it is unknown."""

    kind: Literal["measured", "estimated", "unknown"]
    watts: float | None
    source: str
    devices: int = 1


class CounterError(Exception):
    """An energy counter that can no longer be read."""


class Counters:
    """The energy counters of this machine."""

    def __init__(self, *, rapl: Path = RAPL, gpu_ids: frozenset[str] = frozenset()) -> None:
        """Those that are found.

        Args:
            rapl: The folder of the CPU's counters.
            gpu_ids: Unique ids of the GPUs that count.
        """
        self._cpu, self._gpus, self._gpu_ids = None, None, gpu_ids
        self._joules, self._last = 0.0, time.monotonic()
        if missing_modules("energy") or not (gpu_ids or rapl.exists()):
            return
        logging.getLogger("codecarbon").setLevel(logging.CRITICAL + 1)
        from codecarbon.core.cpu import IntelRAPL, is_rapl_available
        from codecarbon.core.gpu import AllGPUDevices

        if rapl.exists() and is_rapl_available(str(rapl)):
            self._cpu = IntelRAPL(str(rapl))
            self._cpu.start()
        if gpu_ids:
            self._gpus = AllGPUDevices()
            try:
                self._gpu_start = self._gpu_joules()
            except CounterError:  # a GPU without one
                self._gpus = None

    @property
    def names(self) -> list[str]:
        """What is counted."""
        found = [] if self._gpus is None else [f"energy counters of {len(self._gpu_ids)} GPU"]
        return found if self._cpu is None else [*found, "RAPL counters of the CPU"]

    def joules(self) -> float:
        """Since the counters were found.

        Raises:
            CounterError: a counter cannot be read any more.
        """
        return self._cpu_joules() + (
            0.0 if self._gpus is None else self._gpu_joules() - self._gpu_start
        )

    def _cpu_joules(self) -> float:
        if self._cpu is None:
            return 0.0
        from codecarbon.core.units import Time

        now = time.monotonic()
        elapsed, self._last = now - self._last, now
        found = self._cpu.get_cpu_details(Time.from_seconds(elapsed))
        more = sum(value for name, value in found.items() if "Energy" in name) * JOULES_PER_KWH
        if more <= 0 and elapsed > SHORT_SECONDS:
            raise CounterError("the RAPL counters of the CPU")
        self._joules += more
        return self._joules

    def _gpu_joules(self) -> float:
        assert self._gpus is not None
        own = [each for each in self._gpus.get_gpu_details() if each["uuid"] in self._gpu_ids]
        found = [each["total_energy_consumption"] for each in own]
        if len(found) < len(self._gpu_ids) or None in found:
            raise CounterError("the energy counter of a GPU")
        return sum(found) / 1000


class Meter:
    """The mean power since the last stage began."""

    def __init__(
        self,
        recipe: "EnergyRecipe",
        counters: Counters | None,
        say: Callable[[str], None],
        devices: int = 1,
    ) -> None:
        """
        Args:
            counters: None where they would not count all devices.
            devices: GPUs, or machines without.
        """
        self.recipe, self.devices, self._say = recipe, devices, say
        self._counters = counters if counters and counters.names else None
        self._lock = threading.Lock()
        self._lost = ""
        self.begin()

    def begin(self) -> None:
        """A stage begins."""
        self._began, self._at_start = time.monotonic(), self._read()

    def power(self) -> Power:
        """The mean power of the stage so far."""
        joules, seconds = self._read(), time.monotonic() - self._began
        if joules is not None and self._at_start is not None and self._counters is not None:
            watts = (joules - self._at_start) / max(seconds, 1e-3)
            return Power("measured", watts, ", ".join(self._counters.names), self.devices)
        if self.recipe.watts is not None:
            watts = self.recipe.watts * self.devices
            return Power("estimated", watts, "energy.watts of the recipe", self.devices)
        reason = self._lost or "no energy counter, and no energy.watts in the recipe"
        return Power("unknown", None, reason, self.devices)

    def _read(self) -> float | None:
        with self._lock:
            if self._counters is None:
                return None
            try:
                return self._counters.joules()
            except CounterError as error:
                self._counters = None
                self._lost = f"{error} could not be read to the end"
                self._say(
                    f"energy: {error} can no longer be read; the energy of this stage and of later "
                    "ones is estimated from energy.watts, or unknown without it"
                )
                return None

    def watch(self, ended: threading.Event) -> None:
        """Read the counters now and then, until `ended` is set."""
        while not ended.wait(READ_EVERY_SECONDS):
            self._read()


_meter: Meter | None = None


@contextmanager
def metered(meter: Meter) -> Iterator[None]:
    """Within, `current_power` is that of the meter."""
    global _meter
    ended = threading.Event()
    watcher = threading.Thread(target=meter.watch, args=(ended,), daemon=True)
    watcher.start()
    before, _meter = _meter, meter
    try:
        yield
    finally:
        _meter = before
        ended.set()
        watcher.join()


def begin_stage() -> None:
    """The power of what follows is that of another stage."""
    if _meter is not None:
        _meter.begin()


def current_power() -> dict[str, Any] | None:
    """The mean power of the running stage, as plain values; None outside of a run."""
    return None if _meter is None else asdict(_meter.power())


def meter_of(recipe: "EnergyRecipe", device: str, ranks: int, say: Callable[[str], None]) -> Meter:
    """The meter of a run on this many ranks.

    Args:
        device: `cpu` or `cuda`.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    machines = -(-ranks // here)
    counters = None
    if machines == 1:
        counters = Counters(gpu_ids=_gpu_ids(here) if device == "cuda" else frozenset())
    return Meter(recipe, counters, say, ranks if device == "cuda" else machines)


def _gpu_ids(number: int) -> frozenset[str]:
    """The unique ids of the first GPUs that this process sees, as NVML writes them."""
    import torch

    found = (torch.cuda.get_device_properties(place) for place in range(number))
    return frozenset(f"GPU-{each.uuid}" for each in found)
