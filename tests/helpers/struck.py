"""A process that signals itself as it writes its files: `python struck.py SIGNAL COUNT PART SCRIPT ARGUMENTS...`.

The moment, before operation number COUNT on a path that contains PART, is the same on slow and on fast machines.
"""

import os
import runpy
import signal
import sys
from pathlib import Path


def command(number: int, count: int, part: object, *script: object) -> list[str]:
    """The command of the process."""
    return list(map(str, [sys.executable, __file__, int(number), count, part, *script]))


def main() -> None:
    number, left, part = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    del sys.argv[:4]

    def strike(event: str, arguments: tuple) -> None:
        nonlocal left
        if any(isinstance(a, (str, os.PathLike)) and part in os.fspath(a) for a in arguments):
            left -= 1
            if not left:
                os.kill(os.getpid(), number)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    sys.addaudithook(strike)
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
