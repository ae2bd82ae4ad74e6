"""Locks that another process holds, or one that is not here left behind."""

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace

import psutil

from fusionflow.holder import Holder, process_start

HOLD = """
import sys
from pathlib import Path
from fusionflow import runlock
runlock.HEARTBEAT = float(sys.argv[2])
with runlock.RunLock(Path(sys.argv[1]), "other-run"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def python(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def holding(path, heartbeat=10.0):
    """Let another process hold a lock."""
    with python(HOLD, path, heartbeat) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def left_by(path, *, age=0.0, **changes):
    """Write the lock of a holder that is not here."""
    above = psutil.Process(os.getppid())  # a process that lives and is another's
    me = replace(Holder.me("old-run"), pid=above.pid, process_started=process_start(above))
    holder = replace(me, **changes)
    path.write_text(json.dumps(asdict(holder)))
    then = time.time() - age
    os.utime(path, (then, then))
    return holder


def of_the_dead(path):
    """Write the lock of a process of this machine that ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return left_by(path, pid=process.pid)


def wait_for(condition, seconds=20):
    """Wait until something is so."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to be"
        time.sleep(0.01)
