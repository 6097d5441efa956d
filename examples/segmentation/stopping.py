"""Stop a training on Ctrl-C or SIGTERM, every process after the same iteration."""

import signal
import time

import torch
from accelerate import Accelerator

PAUSE = 3.0  # seconds after which several processes ask each other again


class Stopping:
    """Notes Ctrl-C and SIGTERM from now on; a second Ctrl-C interrupts at once.

    Args:
        accelerator: The processes.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.signals: list[int] = []
        self.pause = self.left = 1  # iterations between two exchanges, and until the next one
        self.clock = time.monotonic()  # of the last exchange
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.signals.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def is_agreed(self) -> bool:
        """Whether to stop after this iteration; call it once in each.

        An exchange in every iteration would wait for the GPU. Several processes ask each other about every `PAUSE`
        seconds, and since that has to be in the same iteration, the first one's clock says after how many.
        """
        if self.accelerator.num_processes == 1:
            return bool(self.signals)
        self.left -= 1
        if self.left:
            return False
        now = time.monotonic()
        fitting = max(int(self.pause * PAUSE / max(now - self.clock, 1e-3)), 1)
        own = [float(bool(self.signals)), fitting if self.accelerator.is_main_process else 0.0]
        total = self.accelerator.reduce(torch.tensor(own, device=self.accelerator.device), "sum")
        signaled, pause = total.tolist()
        self.pause = self.left = int(pause)
        self.clock = now
        return signaled > 0
