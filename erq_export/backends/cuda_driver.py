"""How many GPUs the CUDA driver offers, asked without loading torch."""

import ctypes
import sys


def cuda_device_count() -> int:
    """The number of visible GPUs; 0 where there is no driver or the driver has none. Creates no CUDA context."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    ready = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if ready else 0
