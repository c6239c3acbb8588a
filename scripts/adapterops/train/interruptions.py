"""Signals that end a training.

SIGTERM and SIGINT come when a spot instance goes or a job is cancelled, SIGUSR1 from Slurm before
time runs out.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any, NoReturn

from adapterops.errors import InfrastructureError

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# GitHub follows SIGINT with SIGTERM, launchers send SIGINT twice at once; who presses Ctrl-C again
# after this long means it.
_AGAIN_S = 3.0


class Interruptions:
    """A signal raises `InfrastructureError` at once, or is only noted while `stepping`.

    Attributes:
        heard: name of the signal that came, or None.
        stepping: whether steps are taken: a checkpoint is whole only between two of them, so that
            who takes them looks at `heard`.
        when: what is under way while it is not, and what the same command would do, for the
            message.
    """

    def __init__(self) -> None:
        self.heard: str | None = None
        self.stepping = False
        self.when = "before the first step. The same command starts again."
        self._since = 0.0

    def __enter__(self) -> Interruptions:
        self._former: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._hear) for number in _SIGNALS}
        return self

    def __exit__(self, _type: object, error: object, _traceback: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        # transformers turns what is raised while it converts weights into an error of its own.
        if (
            self.heard
            and not self.stepping
            and isinstance(error, Exception)
            and not isinstance(error, InfrastructureError)
        ):
            self._end()

    def check(self) -> None:
        """End now if a signal was only noted.

        Raises:
            InfrastructureError: it was.
        """
        if self.heard:
            self._end()

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self.heard and number == signal.SIGINT and time.monotonic() - self._since > _AGAIN_S:
            raise KeyboardInterrupt
        if not self.heard:
            self._since = time.monotonic()
        self.heard = signal.Signals(number).name
        if not self.stepping:
            self._end()

    def _end(self) -> NoReturn:
        raise InfrastructureError(f"interrupted by {self.heard} {self.when}") from None
