"""A port for a server that another process starts."""

import random
import socket

NEVER_GIVEN = range(10_000, 32_768)  # below those that Linux, macOS and Windows give to whoever asks for any


def free_port() -> int:
    """Find a free port that no other process is given until the server takes it."""
    for port in random.SystemRandom().sample(NEVER_GIVEN, 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):  # nobody answers
                return port
    raise OSError("no port is free")
