"""Whatever a file holds: a right result, or a refusal that names it; never anything else.

Another exception, a warning, a hang, a value that is not finite or memory without end is a fault.
The cases are the same every time, so that a change is not blamed for what it did not do;
``FUSIONFLOW_FUZZ=20`` makes twenty times as many, other ones each time.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import subprocess
import sys
import textwrap
import tracemalloc

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fusionflow.errors import FusionflowError
from fusionflow.untrusted import printable

TIMES = int(os.environ.get("FUSIONFLOW_FUZZ", "1"))
MB = 1 << 20


def cases(number):
    """Run a test that many times; an example takes milliseconds, so that seconds are a hang."""
    return settings(
        max_examples=number * TIMES,
        deadline=datetime.timedelta(seconds=10),
        derandomize=TIMES == 1,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def refused_at_most(*paths):
    """Let errors pass that are meant for people: they name a file, and fit on a line."""
    try:
        yield
    except FusionflowError as error:
        said = str(error)
        assert any(printable(path) in said for path in paths), said
        assert said.isprintable()
        assert len(said) < 4000


@contextlib.contextmanager
def memory_below(most):
    """Fail if Python and NumPy take more than that many bytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def damaged(content, edits):
    """Return bytes with some flipped, cut out, put in or cut off; places are parts of the whole."""
    content = bytearray(content)
    for kind, place, new in edits:
        at = int(place * len(content))
        if kind == "flip" and content:
            content[min(at, len(content) - 1)] ^= new[0] or 1
        elif kind == "over":
            content[at : at + len(new)] = new
        elif kind == "insert":
            content[at:at] = new
        elif kind == "remove":
            del content[at : at + len(new)]
        elif kind == "end":
            del content[at:]
        elif kind == "repeat":
            content += content[at:]
    return bytes(content)


edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "flip", "flip", "over", "insert", "remove", "end", "repeat"]),
        st.floats(0, 1),
        st.binary(min_size=1, max_size=12) | st.sampled_from([b"\xff" * 4, bytes(8), b"\x7f"]),
    ),
    min_size=1,
    max_size=4,
)
#: Reads a file in a process that may take that many more bytes than it has after its imports.
IN_LITTLE_MEMORY = """
    import resource, sys
    from pathlib import Path
    from fusionflow.errors import FusionflowError
    from fusionflow.{module} import {function}

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + {most},) * 2)
    try:
        {function}(Path(sys.argv[1]))
    except FusionflowError as error:
        print(error)
"""


def said_in_little_memory(module, function, path, most):
    code = textwrap.dedent(IN_LITTLE_MEMORY).format(module=module, function=function, most=most)
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout
