"""One run at a time in an output folder: who holds it, since when, and whether it still lives.

``OUT/run.lock`` names the holder. Three things say whether it lives, the strongest first: an
``flock`` on the file, which the kernel lets go when the process ends; the process itself, on the
same machine; and the file's time, renewed every few seconds, on file systems and machines where
neither reaches. A lock whose holder is gone is taken over. A holder that was asleep for so long
that this happened finds out before it publishes anything.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from fusionflow.errors import LockedError, StoreError
from fusionflow.holder import Holder, read_holder
from fusionflow.io.files import UNFINISHED

logger = logging.getLogger(__name__)

#: Seconds between two signs of life.
HEARTBEAT = 10.0
#: Seconds without one after which a holder that cannot be asked otherwise counts as gone.
PATIENCE = 60.0
#: The runs of this process that hold a folder.
_holding: set[str] = set()
#: Seconds after which a lock is looked at again that nothing but the file itself guards.
_SECOND_LOOK = 0.5
_MOST_TRIES = 20


def living_holder(path: Path) -> Holder | None:
    """Return who holds a lock, as far as can be said without waiting; None if nobody does."""
    holder = read_holder(path)
    if holder is None or holder.is_alive_here() is False:
        return None
    with contextlib.suppress(OSError):
        if holder.is_alive_here() or time.time() - path.stat().st_mtime < PATIENCE:
            return holder
    return None


class RunLock:
    """Holds an output folder for one run; a context manager.

    Parameters
    ----------
    path : Path
        The lock file; its folder exists.
    run : str
        Which run.
    on_wait : callable, optional
        Told, before it waits, whom it waits for and for how many seconds at most.

    Raises
    ------
    LockedError
        On entering, if another run holds the folder; it says who and since when.
    StoreError
        On entering, if the folder cannot be written.
    """

    def __init__(
        self, path: Path, run: str, on_wait: Callable[[Holder, float], None] | None = None
    ) -> None:
        self.path, self.run = path, run
        self.on_wait = on_wait or _say_wait
        #: Who held the folder before and did not end well.
        self.taken_from: Holder | None = None
        self._descriptor = -1
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="run-lock", daemon=True)

    def __enter__(self) -> Self:
        """Take hold."""
        _holding.add(self.run)  # before others of this process can see it
        try:
            for _ in range(_MOST_TRIES):
                if self._try():
                    self._heart.start()
                    return self
        except LockedError:
            _holding.discard(self.run)
            raise
        except OSError as error:
            _holding.discard(self.run)
            raise StoreError(
                f"Cannot write {self.path}: {error.strerror or error}",
                "Check space and permissions",
            ) from error
        raise StoreError(
            f"{self.path} cannot be taken hold of: it is another file at every look",
            "Remove it if no run is at work",
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go."""
        self._ended.set()
        self._heart.join()
        with contextlib.suppress(OSError):
            if self._is_ours():
                self.path.unlink()
        os.close(self._descriptor)
        _holding.discard(self.run)

    def check(self) -> None:
        """Make sure that the folder is still held.

        Raises
        ------
        LockedError
            If another run took over.
        StoreError
            If that cannot be told.
        """
        try:
            ours = self._is_ours()
        except OSError as error:
            raise StoreError(f"Cannot read {self.path}: {error.strerror or error}") from error
        if not ours:
            other = read_holder(self.path)
            raise LockedError(
                f"{self.path.parent} was taken over"
                + (f" by {other}" if other else ", or its run.lock removed")
                + ": this run gave no sign of life for too long",
                "Nothing is lost. Run again when the other run is done",
            )

    @property
    def is_held(self) -> bool:
        """Whether the folder is still held, as far as can be told."""
        with contextlib.suppress(OSError):
            return self._is_ours()
        return False

    def _is_ours(self) -> bool:
        try:
            there, held = os.stat(self.path), os.fstat(self._descriptor)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
                return False
            raise
        return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)

    def _try(self) -> bool:
        """Take hold if nobody has it; False if it changed meanwhile and is to be tried again."""
        try:
            descriptor = _open(self.path)
        except FileNotFoundError:
            return self._put(_link, sure=False)
        try:
            locked = _flock(descriptor)
            if locked is False:
                return self._wait_for_the_next()
            if not _same(self.path, descriptor):
                return False
            holder = read_holder(self.path)
            if holder is not None:
                self._make_sure_it_is_gone(holder)
                if not _same(self.path, descriptor):
                    return False
                self.taken_from = holder
            return self._put(os.replace, sure=locked is True)
        except FileNotFoundError:  # its holder let go
            return False
        finally:
            os.close(descriptor)

    def _put(self, into_place: Callable[[Path, Path], bool | None], *, sure: bool) -> bool:
        """Write a lock file of our own, lock it, and move it into place.

        Parameters
        ----------
        into_place : callable
            Moves it; True if nobody else can have done so at the same time.
        sure : bool
            Whether nobody else can have, in any case.
        """
        aside = self.path.with_name(f"{UNFINISHED}{uuid.uuid4().hex[:8]}-{self.path.name}")
        descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, json.dumps(asdict(Holder.me(self.run)), indent=2).encode())
            _flock(descriptor)
            sure = bool(into_place(aside, self.path)) or sure
            if not sure:  # two may have done so, each over the other's: the last one has it
                time.sleep(_SECOND_LOOK)
            if not _same(self.path, descriptor):
                os.close(descriptor)
                return False
        except (FileExistsError, FileNotFoundError):
            os.close(descriptor)
            if not self.path.parent.is_dir():
                raise
            return False
        except BaseException:
            os.close(descriptor)
            raise
        finally:
            aside.unlink(missing_ok=True)
        self._descriptor = descriptor
        return True

    def _wait_for_the_next(self) -> bool:
        """Refuse; but a lock that is locked and names a dead process is just being taken over."""
        holder = read_holder(self.path)
        if holder is None or holder.is_alive_here() is not False:
            raise self._locked()
        time.sleep(_SECOND_LOOK)
        now = read_holder(self.path)
        if now == holder:
            raise LockedError(
                f"{self.path.parent} is being taken over by another run", "Run again when it ended"
            )
        return False

    def _make_sure_it_is_gone(self, holder: Holder) -> None:
        """Return once the holder of a lock that nothing in the kernel holds is known to be gone."""
        alive = holder.is_alive_here()
        if alive and holder.pid == os.getpid() and holder.run not in _holding:
            return  # it let go when it could not remove the file
        if alive:  # on a file system that does not lock
            raise self._locked()
        if alive is None:
            left = min(PATIENCE, PATIENCE - _age(self.path))  # its time may be in the future
            if left <= 0:
                return
            before = _sign_of_life(self.path)
            self.on_wait(holder, left)
            until = time.monotonic() + left
            while time.monotonic() < until:
                time.sleep(min(1.0, PATIENCE / 10))
                if _sign_of_life(self.path) != before:
                    raise self._locked()

    def _locked(self) -> LockedError:
        holder = read_holder(self.path)
        who = f"by {holder}" if holder else "by another run"
        return LockedError(f"{self.path.parent} is being written {who}", "Run again when it ended")

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            try:
                os.utime(self._descriptor)
            except OSError as error:
                logger.debug("no sign of life in %s: %s", self.path, error)


def _say_wait(holder: Holder, seconds: float) -> None:
    logger.warning(
        "run.lock names a run on another machine (%s). Waiting %.0f s for a sign of life",
        holder, seconds,
    )  # fmt: skip


def _open(path: Path) -> int:
    """Open a lock file, perhaps of another user."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _same(path: Path, descriptor: int) -> bool:
    """Whether a path still names the file that was opened."""
    return os.path.samestat(os.stat(path), os.fstat(descriptor))


def _sign_of_life(path: Path) -> tuple[int, int]:
    """Return what changes as long as a holder lives; opening asks a network's server anew."""
    with path.open("rb") as stream:
        status = os.fstat(stream.fileno())
    return status.st_ino, status.st_mtime_ns


def _link(aside: Path, path: Path) -> bool:
    """Give a file a name that is not taken; True if nobody else can have done so just now."""
    try:
        os.link(aside, path)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise FileExistsError(path) from None
        aside.rename(path)
        return False
    return True


def _flock(descriptor: int) -> bool | None:
    """Lock a file; False if another process has it, None where files cannot be locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logger.debug("this file system does not lock: %s", error)
        return None
    return True


def _age(path: Path) -> float:
    """Return the seconds since a file's last change, by the clock of its file system."""
    probe = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex[:8]}-clock")
    try:
        probe.touch()
        now = probe.stat().st_mtime
        return now - path.stat().st_mtime
    except OSError:
        return time.time() - path.stat().st_mtime if path.exists() else PATIENCE
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
