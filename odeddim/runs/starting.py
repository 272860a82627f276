"""How this process starts others: where it can, as copies of one that has loaded PyTorch.

A fresh interpreter takes two seconds of a core to load PyTorch. A copy of this process would have the locks of torch
and of HDF5 as they happen to be. So there is a server, which loads PyTorch once and does nothing else, and processes
are copies of it. It ends with this process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, SpawnContext

LOADED = "odeddim.jobs"
"""What the server loads, by name: this module is imported before PyTorch is."""


def begin() -> ForkServerContext | SpawnContext:
    """Let the server begin to load PyTorch, if it has not yet, and do not wait for it.

    Returns:
        The context whose processes are copies of it; off Linux and in forks, fresh interpreters.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([LOADED])
    resource_tracker.ensure_running()  # which unblocks Ctrl-C
    # Ctrl-C reaches the server too, in the middle of an import. It inherits what is blocked.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    except ChildProcessError:  # this process is a fork of the one whose server it is
        return multiprocessing.get_context("spawn")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def follow_parent(environment: dict[str, str]) -> None:
    """End this process when the one that started it ends, and leave Ctrl-C, which reaches both, to that one.

    Args:
        environment: That of the process that started this one; the server's may be older.
    """
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
