"""Looks on while a network trains: shows progress, stops what goes wrong, and checkpoints when the machine is about to go."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from adapterops.errors import InfrastructureError, RejectedError

# A loss that stays this far above its smoothed minimum, in nats and as a factor, for this many log lines has diverged.
_DIVERGED_NATS, _DIVERGED_FACTOR, _DIVERGED_LINES = 1.0, 1.5, 5
_SMOOTHING = 0.7


@dataclass
class LossGuard:
    """Says when a loss curve is beyond hope.

    Args:
        where: the recipe, for messages.
        learning_rate: the recipe's.
    """

    where: str
    learning_rate: float
    _smooth: float | None = None
    _lowest: float = math.inf
    _bad: int = 0

    def see(self, step: int, loss: float, norm: float | None = None) -> None:
        """Take one logged loss, and the gradient's norm if it is known.

        Raises:
            RejectedError: not a number, or diverged.
        """
        fix = f"In {self.where}: lower training.learning_rate {self.learning_rate} or training.max_grad_norm, or raise warmup_ratio."
        if not math.isfinite(loss) or (norm is not None and not math.isfinite(norm)):
            what = f"loss {loss}" if not math.isfinite(loss) else f"gradient norm {norm}"
            raise RejectedError(f"training diverged: {what} at step {step}. {fix}")
        self._smooth = loss if self._smooth is None else _SMOOTHING * self._smooth + (1 - _SMOOTHING) * loss
        self._lowest = min(self._lowest, self._smooth)
        far = self._smooth > self._lowest + _DIVERGED_NATS and self._smooth > _DIVERGED_FACTOR * self._lowest
        self._bad = self._bad + 1 if far else 0
        if self._bad >= _DIVERGED_LINES:
            raise RejectedError(
                f"training diverges: at step {step} the smoothed loss is {self._smooth:.3f} after {self._lowest:.3f}, "
                f"for {self._bad} log lines. {fix}"
            )


@dataclass
class EarlyStopping:
    """Stops when the loss on held-back rows has not fallen for `patience` looks.

    Args:
        patience: looks without improvement.
    """

    patience: int
    best: float = math.inf
    best_step: int = 0
    _without: int = 0

    def see(self, step: int, loss: float) -> bool:
        """Take one evaluation loss; True when it is time to stop."""
        if loss < self.best:
            self.best, self.best_step, self._without = loss, step, 0
        else:
            self._without += 1
        return self._without >= self.patience


@dataclass
class Watch(TrainerCallback):  # type: ignore[misc]  # transformers ships no types for it
    """The one callback of a training.

    Args:
        console: where progress is shown.
        tokens: real tokens of an epoch.
        guard: stops a lost training.
        checkpoint_seconds: how long a training may go on without one.
        evaluate: the loss on held-back rows, or None.
        evaluate_steps: how often to look at it.
        early_stopping: what then decides.
        keep: called when the held-back loss is the best so far: remembers these weights.
        main: whether this process speaks for all.
    """

    console: Console
    tokens: int
    guard: LossGuard
    checkpoint_seconds: float = 900.0
    evaluate: Callable[[], float] | None = None
    evaluate_steps: int = 0
    early_stopping: EarlyStopping | None = None
    keep: Callable[[], None] | None = None
    main: bool = True
    history: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    stopped: str | None = None
    interrupted: bool = False

    def __post_init__(self) -> None:
        self._started = self._saved = time.monotonic()
        self._first_step = 0
        self._signalled: str | None = None
        self._training = False
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]} · {task.fields[speed]} tok/s"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not (self.console.is_terminal and self.main),
        )
        self._task = self._bar.add_task("", total=None, loss="-", speed="-")

    def __enter__(self) -> None:
        self._bar.start()
        self._former: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):  # SIGUSR1 is what Slurm sends before time runs out
                self._former[number] = signal.signal(number, self._heard)

    def __exit__(self, _type: object, error: object, _traceback: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._bar.stop()
        # transformers turns what is raised while it converts weights into an error of its own.
        if self._signalled and not self._training and isinstance(error, Exception) and not isinstance(error, InfrastructureError):
            raise self._too_early() from None

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        self._signalled = signal.Signals(number).name
        if not self._training:
            raise self._too_early()
        # Only noted: a checkpoint is whole only between two steps.

    def _too_early(self) -> InfrastructureError:
        return InfrastructureError(f"interrupted by {self._signalled} before the first step. The same command starts again.")

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Start the clock; a resumed training starts with what it logged before."""
        self._started = self._saved = time.monotonic()
        self._training = True
        self._first_step = state.global_step
        self.history = [
            _entry(entry["step"], entry["epoch"], entry) for entry in state.log_history if "loss" in entry and entry["step"] > 0
        ]

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint when it is time or a signal came; look at the held-back rows."""
        self._bar.update(self._task, total=state.max_steps, completed=state.global_step)
        if self._signalled:
            control.should_training_stop = self.interrupted = True
            control.should_save = True
        elif time.monotonic() - self._saved > self.checkpoint_seconds:
            control.should_save = True
        if self.evaluate and state.global_step % self.evaluate_steps == 0 and not self.interrupted:
            self._evaluate(state, control)

    def _evaluate(self, state: Any, control: Any) -> None:
        assert self.evaluate is not None
        loss = self.evaluate()
        self.evaluations.append({"step": state.global_step, "loss": round(loss, 5)})
        if self.main and not self.console.is_terminal:
            self.console.print(f"step {state.global_step}/{state.max_steps} | held-back loss {loss:.4f}")
        if self.early_stopping:
            if self.early_stopping.see(state.global_step, loss):
                control.should_training_stop = True
                self.stopped = (
                    f"held-back loss has not fallen for {self.early_stopping.patience} looks: {loss:.4f} at step {state.global_step}, "
                    f"{self.early_stopping.best:.4f} at step {self.early_stopping.best_step}, whose weights are kept"
                )
            elif self.early_stopping.best_step == state.global_step and self.keep:
                self.keep()

    def on_save(self, *_: Any, **__: Any) -> None:
        """Start the clock of the next checkpoint."""
        self._saved = time.monotonic()

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Record a loss, show it, and let the guard see it."""
        if "loss" not in logs:
            return
        norm = logs.get("grad_norm")
        self.guard.see(state.global_step, float(logs["loss"]), None if norm is None else float(norm))
        self.history.append(_entry(state.global_step, state.epoch, logs))
        elapsed = time.monotonic() - self._started
        # Epochs are what Trainer counts in fractions; steps before a resumption took none of this time.
        share = (state.global_step - self._first_step) / max(1, state.global_step)
        speed = self.tokens * state.epoch * share / elapsed
        if self.console.is_terminal:
            self._bar.update(self._task, loss=f"{logs['loss']:.3f}", speed=f"{speed:.0f}")
        elif self.main:
            self.console.print(
                f"step {state.global_step}/{state.max_steps} | loss {float(logs['loss']):.4f} | lr {logs['learning_rate']:.2e} | "
                f"{speed:.0f} tok/s | {elapsed:.0f} s"
            )


def _entry(step: int, epoch: float, logs: dict[str, Any]) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": round(epoch, 3),
        "loss": round(float(logs["loss"]), 5),
        "learning_rate": logs["learning_rate"],
    }
