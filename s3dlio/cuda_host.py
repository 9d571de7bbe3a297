"""Page-locked host memory for CUDA, through the runtime that torch has loaded.

Owns the two calls, on which device they are made, and what becomes of a failure: it is said once; the pending error is
taken from CUDA, where the next kernel of the training would be blamed for it; and copies go on through memory that is
not page-locked, which is slower and as correct. Never imports torch or starts CUDA. Those that warm a pool up ask for
the ``registrar``; the pool's arena calls it, and has everything let go before it is unmapped: with the last store, or
at the interpreter's exit, while Python still runs and so does CUDA. A forked child has neither.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from pathlib import Path
from typing import Any

from .engine.pins import Registrar

_log = logging.getLogger("s3dlio")

_PORTABLE = 1  # cudaHostRegisterPortable: page-locked for all devices, not only for the one that registers
# Codes of cudaHostUnregister with which nothing is registered any more: cudaErrorCudartUnloading, as the process ends,
# and cudaErrorHostMemoryNotRegistered.
_GONE = (4, 713)
_RUNTIMES = {"libcudart.so": "cudaGetLastError", "libamdhip64.so": "hipGetLastError"}


class CudaHost:
    """Registers memory with the CUDA of ``torch``."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._told = False

    def register(self, address: int, size: int) -> bool:
        code, reason = self._call("cudaHostRegister", address, size, _PORTABLE)
        if code and not self._told:
            self._told = True
            _log.warning(
                "%d bytes of memory could not be page-locked for CUDA (%s): copies from devices go on without, slower; "
                "a lower memory= may help",
                size,
                reason,
            )
        return not code

    def unregister(self, address: int) -> bool:
        code, reason = self._call("cudaHostUnregister", address)
        if code and code not in _GONE:
            _log.warning("page-locked memory is kept until the process ends: CUDA does not let it go (%s)", reason)
            return False
        return True

    def _call(self, name: str, *arguments: int) -> tuple[int, str]:
        """Code, 0 for success, and reason."""
        try:
            with self._device():
                cudart = self._torch.cuda.cudart()
                result = getattr(cudart, name)(*arguments)
                if int(result):
                    self._clear()
                return int(result), f"{name}: {cudart.cudaGetErrorString(result)}"
        except RuntimeError as error:  # something that ran on the device before has failed
            return -1, f"{name}: {error}"

    def _device(self) -> Any:
        """The present device, or one that is in use: on another, the call would take memory for a context."""
        cuda = self._torch.cuda
        in_use = self._torch._C._cuda_hasPrimaryContext
        device = cuda.current_device()
        if not in_use(device):
            device = next((other for other in range(cuda.device_count()) if in_use(other)), device)
        return cuda.device(device)

    def _clear(self) -> None:
        """Take the error, which is of this thread, from the runtime."""
        loaded = [clear for library, name in _RUNTIMES.items() for clear in _functions(library, name)]
        for clear in loaded:
            clear()
        if not loaded:  # linked into torch: whatever launches a kernel reports the error as its own, and so takes it
            try:
                self._torch.ones(1, device="cuda").neg_()
            except RuntimeError:
                pass


def _functions(library: str, name: str) -> list[Any]:
    """A function of each loaded copy of a library."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        paths = {line.rstrip("\n").split(maxsplit=5)[-1] for line in file if library in line}
    found = []
    for path in sorted(paths):
        if Path(path).name.startswith(library):
            try:
                found.append(getattr(ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY), name))
            except (OSError, AttributeError):
                continue  # deleted since it was loaded, or something else of that name
    return found


_host: CudaHost | None = None


def registrar() -> Registrar | None:
    """What page-locks memory for CUDA; ``None`` while torch has not initialised CUDA in this process."""
    global _host
    torch: Any = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)  # not there while torch is being imported
    if cuda is None or not cuda.is_initialized():
        return None
    if _host is None:
        _host = CudaHost(torch)
    return _host
