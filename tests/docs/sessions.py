"""A shell and a Python that take blocks of a page, one after the other."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

#: Ends what a block says.
_END = "\x04end of block"

_SHELL = ["bash", "--noprofile", "--norc"]
_PYTHON = f"""
import json, sys, traceback
if __name__ == "__main__":
    for line in sys.stdin:
        code, where = json.loads(line)
        try:
            exec(compile(code, where, "exec"), globals())
            state = 0
        except BaseException:
            traceback.print_exc()
            state = 1
        print({_END!r}, state, flush=True)
"""


class Session:
    """A process that runs blocks; what one leaves, the next finds."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command, cwd=folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(ProcessLookupError):  # what it left in the background
            os.killpg(self._process.pid, signal.SIGTERM)
        self._process.stdout.close()

    def _ask(self, text: str) -> tuple[int, str]:
        """Send a block; its exit code and what it said."""
        self._process.stdin.write(text)
        self._process.stdin.flush()
        said = []
        for line in self._process.stdout:
            if _END in line:
                before, _, state = line.partition(_END)
                return int(state), "".join([*said, before])
            said.append(line)
        return self._process.wait(), "".join(said)


class Shell(Session):
    """A bash that stops at the first command that fails."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        super().__init__(_SHELL, folder, environment)
        # Jobs in the background keep its output open, so its end would not be seen.
        self._ask(f"set -euo pipefail\ntrap \"echo '{_END}' \\$?\" EXIT\necho '{_END}' 0\n")

    def run(self, code: str, _where: str) -> tuple[int, str]:
        """Run commands; their exit code and what they said."""
        return self._ask(f"{{ {code}\n}} </dev/null\necho '{_END}' $?\n")


class Python(Session):
    """A Python that keeps its names."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        script = folder / ".session.py"
        script.write_text(_PYTHON)
        super().__init__([sys.executable, "-u", str(script)], folder, environment)

    def run(self, code: str, where: str) -> tuple[int, str]:
        """Run statements; 0 or 1 and what they said."""
        return self._ask(json.dumps([code, where]) + "\n")
