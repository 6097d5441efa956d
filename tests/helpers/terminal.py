"""A terminal for a program's errors, in which it shows its progress bars."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading
from collections.abc import Sequence
from contextlib import suppress


def start(command: Sequence[object], **options: object) -> tuple[subprocess.Popen, bytearray]:
    """Start a process whose stderr is a terminal.

    Returns:
        The process, and what it has written to the terminal so far.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))  # rows and columns; bars need some
    process = subprocess.Popen(list(map(str, command)), stderr=theirs, **options)
    os.close(theirs)
    shown = bytearray()

    def read() -> None:
        with suppress(OSError), os.fdopen(ours, "rb", buffering=0) as terminal:  # an error ends what a process wrote
            while part := terminal.read(4096):
                shown.extend(part)

    threading.Thread(target=read, daemon=True).start()
    return process, shown
