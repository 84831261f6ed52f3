"""Standing back from all other work on the machine."""

import os
import sys

NICENESS = 10

if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    _BELOW_NORMAL = 0x4000

    def stand_back() -> None:
        """Run this process below normal priority."""
        kernel32 = ctypes.WinDLL("kernel32")
        kernel32.GetCurrentProcess.restype = wintypes.HANDLE
        kernel32.SetPriorityClass.argtypes = (wintypes.HANDLE, wintypes.DWORD)
        kernel32.SetPriorityClass(kernel32.GetCurrentProcess(), _BELOW_NORMAL)

else:

    def stand_back() -> None:
        """Run this process below normal priority."""
        os.nice(NICENESS)
