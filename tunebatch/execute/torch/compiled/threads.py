"""Run a compiled kernel on the threads that torch already has.

Numba's own thread pool beside torch's would leave each spinning while the other works, which on few
cores costs more than the kernels take. On Linux torch's threads are GNU OpenMP's, and its entry point
``GOMP_parallel`` runs any C function on them. Elsewhere kernels run on the calling thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from numba import carray, cfunc, types

# Below this many elements of work, waking the other threads takes longer than the work.
SERIAL_WORK = 4096

_thread_number = types.ExternalFunction("omp_get_thread_num", types.int32())
_number_of_threads = types.ExternalFunction("omp_get_num_threads", types.int32())
_ENTRY = types.void(types.CPointer(types.int64))


class Kernel:
    """A compiled kernel, ready to be called with integers (addresses, sizes, bits of floats).

    Args:
        body: A compiled ``body(arguments, thread, num_threads)`` that does its thread's share.
        num_arguments: Integers that it takes.
    """

    __slots__ = ("_address", "_arguments", "_call", "_entry")

    def __init__(self, body: Any, num_arguments: int) -> None:
        self._arguments = (ctypes.c_int64 * num_arguments)()
        self._address = ctypes.addressof(self._arguments)
        self._entry = _entry(body, num_arguments)
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._entry.address)

    def __call__(self, work: int, *arguments: int) -> None:
        """Run; ``work`` says roughly how many elements there are to touch."""
        self._arguments[:] = list(arguments)
        threads = torch.get_num_threads()
        start = gomp_parallel()
        if work < SERIAL_WORK or threads == 1 or start is None:
            self._call(self._address)
        else:
            start(self._entry.address, self._address, threads, 0)


@cache
def gomp_parallel() -> Callable[[int, int, int, int], None] | None:
    """``GOMP_parallel(function, data, num_threads, flags)`` of the OpenMP that torch runs on, if there."""
    try:
        start = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    start.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    start.restype = None
    return start


def _entry(body: Any, num_arguments: int) -> Any:
    """A C function of the arguments' address; called outside a parallel region it is the only thread."""
    if gomp_parallel() is None:

        @cfunc(_ENTRY)
        def everything(arguments: Any) -> None:
            body(carray(arguments, num_arguments), 0, 1)

        return everything

    @cfunc(_ENTRY)
    def share(arguments: Any) -> None:
        body(carray(arguments, num_arguments), _thread_number(), _number_of_threads())

    return share
