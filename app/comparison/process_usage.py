"""What processes have used so far, by role: peak resident memory and processor time, as Linux's /proc tells.

Does not know what the processes do.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

PROCESSES = Path("/proc")
USER_TIME, SYSTEM_TIME = 11, 12
"""Places in /proc/PID/stat after the name in brackets."""


@dataclass
class Usage:
    """The largest resident bytes and the processor seconds of each role, over all the processes that had it."""

    _peaks: dict[str, int] = field(default_factory=dict)
    _seconds: dict[tuple[str, int], float] = field(default_factory=dict)

    def look(self, role: str, pid: int | None) -> None:
        """Look at process ``pid``, which has ``role`` now; one that is gone or unknown leaves things as they are."""
        if pid is None:
            return
        peak, seconds = peak_bytes(pid), cpu_seconds(pid)
        if peak is not None:
            self._peaks[role] = max(peak, self._peaks.get(role, 0))
        if seconds is not None:
            self._seconds[role, pid] = seconds

    @property
    def peak(self) -> dict[str, int]:
        """Peak resident bytes by role."""
        return dict(self._peaks)

    @property
    def cpu(self) -> dict[str, float]:
        """Processor seconds by role, of all threads."""
        seconds: dict[str, float] = {}
        for (role, _), used in self._seconds.items():
            seconds[role] = round(seconds.get(role, 0.0) + used, 2)
        return seconds


def peak_bytes(pid: int) -> int | None:
    """Return the largest resident size that process ``pid`` ever had, None where the system does not tell."""
    lines = _read(pid, "status").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


def cpu_seconds(pid: int) -> float | None:
    """Return the seconds that all threads of process ``pid`` have computed, None where the system does not tell."""
    fields = _read(pid, "stat").rpartition(")")[2].split()
    if len(fields) <= SYSTEM_TIME:
        return None
    return (int(fields[USER_TIME]) + int(fields[SYSTEM_TIME])) / os.sysconf("SC_CLK_TCK")


def _read(pid: int, name: str) -> str:
    try:
        return (PROCESSES / str(pid) / name).read_text()
    except OSError:
        return ""
