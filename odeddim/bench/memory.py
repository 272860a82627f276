"""The memory that a run takes: what torch has allocated within it, at most, beyond what was there when it began."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

_RECORD = "[memory]"  # the name by which torch's profiler reports that memory was taken or given back


def peak(run: Callable[[], Any], device: torch.device | None = None) -> int | None:
    """The most bytes that torch has allocated within a run, beyond what was there when it began.

    On a GPU it is what the allocator counts. On a CPU it is what torch's profiler reports, so the run takes longer.
    What other libraries allocate is not seen.

    Args:
        run: The run. What it returns is dropped.
        device: The device of the run; None for the CPU.

    Returns:
        The bytes; None where torch does not say.

    Example:
        >>> import torch
        >>> from odeddim.bench.memory import peak
        >>> peak(lambda: torch.zeros(1000).add(1)) >= 8000
        True
    """
    if device is not None and device.type != "cpu":
        if device.type != "cuda" or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            run()
            return None
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return int(torch.cuda.max_memory_allocated(device)) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would write to the terminal
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    results = getattr(getattr(profile, "profiler", None), "kineto_results", None)
    if results is None:
        return None
    records = sorted((it.start_ns(), it.nbytes()) for it in results.events() if it.name() == _RECORD)
    now = most = 0
    for _, taken in records:
        now += taken
        most = max(most, now)
    return most
