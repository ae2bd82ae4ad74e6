"""Where a network runs: its arithmetic, the way there and back, and how much goes at a time."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from typing import Final

import torch

from fusionflow.config import Method
from fusionflow.cpu_layers import has_winograd
from fusionflow.errors import DeviceMemoryError
from fusionflow.subbands import FloatArray

logger = logging.getLogger(__name__)

#: Pixels of all images of one forward pass. On a processor the features of so few stay in its
#: caches, and in blocks of memory that the C library keeps for the next pass; larger ones it gives
#: back to the system, which clears them page by page each time. A GPU has enough to do only with
#: more, and room for it.
_MOST_PIXELS: Final = {"cpu": 1 << 15, "cuda": 1 << 21}
#: How those say that there is no memory who raise no `torch.OutOfMemoryError`: torch's allocator on
#: a processor, that of Winograd's convolutions, CUDA's libraries, CUDA itself, and oneDNN, which
#: finds no room for its code.
_NO_MEMORY: Final = (
    "DefaultCPUAllocator",
    "posix_memalign failed",
    "ALLOC_FAILED",
    "CUDA error: out of memory",
    "could not create a primitive",
)


def kind_of(device: str) -> str:
    """Return the type of a device without its number: ``cpu`` or ``cuda``."""
    return device.split(":", maxsplit=1)[0]


@contextlib.contextmanager
def arithmetic(device: str, precision: str) -> Iterator[None]:
    """Run networks without gradients in a precision of `fusionflow.config.Method`.

    float32 means float32: cuDNN would shorten it to TF32, and choose among algorithms by what is
    fastest at the moment.
    """
    kind = kind_of(device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        bfloat16 = precision == "bfloat16"
        stack.enter_context(torch.autocast(kind, torch.bfloat16, enabled=bfloat16))
        if kind == "cuda":
            flags = torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=False
            )
            stack.enter_context(flags)
        yield


def described(device: str, precision: str) -> str:
    """Return what records say of where a network ran; which convolutions decides last bits."""
    direct = kind_of(device) == "cpu" and precision == "float32" and not has_winograd()
    return f"{device} (direct convolutions)" if direct else device


def memory_format(device: str, precision: str) -> torch.memory_format:
    """Return how weights lie in memory where a network runs, and so the features it makes."""
    if kind_of(device) == "cpu" and precision == "float32" and has_winograd():
        return torch.contiguous_format  # of Winograd's convolutions
    return torch.channels_last


def to_device(values: FloatArray, device: str) -> torch.Tensor:
    """Return an array as a tensor there; the processor does not wait until it has arrived."""
    if kind_of(device) == "cpu":
        return torch.from_numpy(values)
    pinned = host_buffer(values.shape, device)
    pinned.copy_(torch.from_numpy(values))
    return pinned.to(device, non_blocking=True)


def host_buffer(shape: tuple[int, ...], device: str) -> torch.Tensor:
    """Return room for results, float32, in memory that the device writes to by itself."""
    return torch.empty(shape, dtype=torch.float32, pin_memory=kind_of(device) == "cuda")


def arrived(buffer: torch.Tensor, device: str) -> FloatArray:
    """Return what was copied into a buffer without waiting, once it is all there."""
    if kind_of(device) == "cuda":
        torch.cuda.current_stream(device).synchronize()
    values: FloatArray = buffer.numpy()
    return values


class Batch:
    """How many images go through a network at a time: fewer from where memory was short.

    That follows from the method and the size of the images alone, unless memory does not hold
    them.

    Parameters
    ----------
    method : Method
        Gives the most images of a forward pass.
    device : str
        Where the network runs.

    Attributes
    ----------
    device : str
    halved : int or None
        The smallest number after memory was short; None if it never was.
    """

    def __init__(self, method: Method, device: str = "cpu") -> None:
        self.device = device
        self.halved: int | None = None
        # In 8 bits every image has a scale of its own, and goes alone.
        self._most = 1 if method.precision == "int8" else method.batch

    def at_once(self, pixels: int) -> int:
        """Return how many images of so many pixels go at a time."""
        fitting = max(1, _MOST_PIXELS.get(kind_of(self.device), 1 << 15) // pixels)
        return min(fitting, self._most)

    def spans(self, count: int, pixels: int) -> Iterator[slice]:
        """Yield parts of `count` images, as equal as they can be, that go at a time."""
        parts = math.ceil(count / self.at_once(pixels))
        for part in range(parts):
            yield slice(count * part // parts, count * (part + 1) // parts)

    def each(
        self,
        count: int,
        shape: tuple[int, int],
        forward: Callable[[slice], None],
        images: int = 1,
    ) -> None:
        """Call `forward` on parts of `count` things until all are done.

        Where memory does not hold a part it is tried again, and the rest goes on, with half as
        many images at a time.

        Parameters
        ----------
        count : int
            How many there are.
        shape : tuple of int
            (y', x') of an image.
        forward : callable
            Takes the part that is next. It may be called again with part of that.
        images : int
            How many images each thing has.

        Raises
        ------
        DeviceMemoryError
            If memory does not hold one image.
        """
        pixels, start = math.prod(shape), 0
        while start < count:
            at_once = self.at_once(pixels)
            rest = count - start
            step = math.ceil(rest / math.ceil(rest / max(1, at_once // images)))
            part = slice(start, start + step)
            refusal = _refusal(forward, part)
            if refusal is None:
                start += step
                continue
            # Here, outside the handler, nothing refers to the frames that held the features.
            if kind_of(self.device) == "cuda":
                torch.cuda.empty_cache()
            if at_once == 1:
                raise DeviceMemoryError(
                    f"The memory of {self.device} does not hold the features of one band of "
                    f"{shape[0]} x {shape[1]} coefficients ({refusal})",
                    "Run fewer tasks beside it, give it more memory, or take another device",
                )
            self._most = self.halved = at_once // 2
            logger.warning(
                "out of memory on %s, from here %d images at a time: %s",
                self.device,
                self.halved,
                refusal,
            )


def _refusal(forward: Callable[[slice], None], part: slice) -> str | None:
    """Call `forward`, and return what is said if memory was not enough for it.

    Not the exception, whose frames hold the features.
    """
    try:
        forward(part)
    except (torch.OutOfMemoryError, MemoryError) as error:
        return _first_line(error)
    except RuntimeError as error:
        if not says_no_memory(error):
            raise
        return _first_line(error)
    return None


def says_no_memory(error: BaseException) -> bool:
    """Whether an error that may be anything is of memory that was not enough."""
    return any(text in str(error) for text in _NO_MEMORY)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
