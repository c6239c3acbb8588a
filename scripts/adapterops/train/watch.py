"""Looks on while a network trains: shows progress, stops what goes wrong, asks for checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from adapterops.errors import RejectedError
from adapterops.shapes.train_manifest import HeldBackItem, LossHistoryItem
from adapterops.train.interruptions import Interruptions
from adapterops.train.processes import any_process, of_first

# A loss has diverged that stays for so many steps so far above its smoothed minimum: in nats, and
# as a factor.
_DIVERGED_NATS, _DIVERGED_FACTOR, _DIVERGED_STEPS = 1.0, 1.5, 8
# Over about five steps: rows of like length come together, and their losses are alike.
_SMOOTHING = 0.8


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
        """Take the loss of one step, and the gradient's norm if it is known.

        Raises:
            RejectedError: not a number, or diverged.
        """
        fix = (
            f"In {self.where}: lower training.learning_rate {self.learning_rate} or"
            " training.max_grad_norm, or raise warmup_ratio."
        )
        if not math.isfinite(loss) or (norm is not None and not math.isfinite(norm)):
            what = f"loss {loss}" if not math.isfinite(loss) else f"gradient norm {norm}"
            raise RejectedError(f"training diverged: {what} at step {step}. {fix}")
        if self._smooth is None:
            self._smooth = loss
        else:
            self._smooth = _SMOOTHING * self._smooth + (1 - _SMOOTHING) * loss
        self._lowest = min(self._lowest, self._smooth)
        far = self._smooth > max(self._lowest + _DIVERGED_NATS, _DIVERGED_FACTOR * self._lowest)
        self._bad = self._bad + 1 if far else 0
        if self._bad >= _DIVERGED_STEPS:
            raise RejectedError(
                f"training diverges: at step {step} the smoothed loss is {self._smooth:.3f} after"
                f" {self._lowest:.3f}, for {self._bad} steps. {fix}"
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
    """The one callback of a training, whose trainer logs every step.

    Args:
        console: where progress is shown.
        tokens: real tokens of an epoch.
        guard: stops a lost training.
        interruptions: whether a signal came.
        logging_steps: how many steps share a line of the history, with their mean loss; the first
            and the last step end one.
        checkpoint_seconds: how long a training may go on without one. Its last step has one.
        evaluate: the loss on held-back rows, or None.
        evaluate_steps: how often to look at it.
        early_stopping: what then decides.
        keep: called when the held-back loss is the best so far: remembers these weights.
        main: whether this process speaks for all.
    """

    console: Console
    tokens: int
    guard: LossGuard
    interruptions: Interruptions = field(default_factory=Interruptions)
    logging_steps: int = 1
    checkpoint_seconds: float = 900.0
    evaluate: Callable[[], float] | None = None
    evaluate_steps: int = 0
    early_stopping: EarlyStopping | None = None
    keep: Callable[[], None] | None = None
    main: bool = True
    history: list[LossHistoryItem] = field(default_factory=list)
    evaluations: list[HeldBackItem] = field(default_factory=list)
    stopped: str | None = None
    interrupted: bool = False

    def __post_init__(self) -> None:
        self._started = self._saved = time.monotonic()
        self._first_step = 0
        self._losses: list[float] = []  # of the steps since the last line
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

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def resume(self, state: Any) -> None:
        """Be as if all that a checkpoint's state tells of had been seen here."""
        for entry in state.log_history:
            if "loss" in entry:
                self.guard.see(entry["step"], float(entry["loss"]))
                self._record(entry["step"], state.max_steps, entry["epoch"], entry)
            elif "held_back_loss" in entry:
                self._look(entry["step"], entry["held_back_loss"])

    def on_train_begin(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock, and make up for a look that an interruption prevented."""
        self._started = self._saved = time.monotonic()
        self.interruptions.stepping = True
        self._first_step = state.global_step
        if self._due(state) and all(look["step"] != state.global_step for look in self.evaluations):
            self._evaluate(state, control)

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the held-back rows, and ask for a checkpoint when there is a reason to.

        Reasons are the clock, a signal, an early stop, and the last step.
        """
        self._bar.update(self._task, total=state.max_steps, completed=state.global_step)
        # Clocks and signals differ between processes, and a checkpoint is written by all of them.
        signalled, due = any_process(
            self.interruptions.heard is not None,
            time.monotonic() - self._saved > self.checkpoint_seconds,
        )
        if self._due(state) and not signalled:
            self._evaluate(state, control)
        if signalled:
            control.should_training_stop = self.interrupted = True
        if signalled or due or self.stopped or state.global_step >= state.max_steps:
            control.should_save = True

    def _due(self, state: Any) -> bool:
        return (
            self.evaluate is not None
            and state.global_step > 0
            and state.global_step % self.evaluate_steps == 0
        )

    def _evaluate(self, state: Any, control: Any) -> None:
        assert self.evaluate is not None
        loss = of_first(self.evaluate())
        # The history goes with the checkpoint.
        state.log_history.append(
            {"step": state.global_step, "epoch": state.epoch, "held_back_loss": loss}
        )
        if self.main and not self.console.is_terminal:
            self.console.print(
                f"step {state.global_step}/{state.max_steps} | held-back loss {loss:.4f}"
            )
        best = self._look(state.global_step, loss)
        if self.stopped:
            control.should_training_stop = True
        elif best and self.keep:
            self.keep()

    def _look(self, step: int, loss: float) -> bool:
        """Record a look at the held-back rows; True if it is the best so far."""
        self.evaluations.append({"step": step, "loss": round(loss, 5)})
        if not self.early_stopping:
            return False
        if self.early_stopping.see(step, loss):
            self.stopped = (
                f"held-back loss has not fallen for {self.early_stopping.patience} looks:"
                f" {loss:.4f} at step {step}, {self.early_stopping.best:.4f} at step"
                f" {self.early_stopping.best_step}, whose weights are kept"
            )
        return self.early_stopping.best_step == step

    def on_save(self, *_: Any, **__: Any) -> None:
        """Start the clock of the next checkpoint."""
        self._saved = time.monotonic()

    def on_log(
        self, _args: Any, state: Any, _control: Any, logs: Mapping[str, float], **_: Any
    ) -> None:
        """Let the guard see the loss of a step, record it, and show it when a line is full."""
        if "loss" not in logs:
            return
        norm = logs.get("grad_norm")
        self.guard.see(
            state.global_step, float(logs["loss"]), None if norm is None else float(norm)
        )
        if not self._record(state.global_step, state.max_steps, state.epoch, logs):
            return
        loss = self.history[-1]["loss"]
        elapsed = time.monotonic() - self._started
        # Trainer counts epochs in fractions; steps before a resumption took none of this time.
        share = (state.global_step - self._first_step) / max(1, state.global_step)
        speed = self.tokens * state.epoch * share / elapsed
        if self.console.is_terminal:
            self._bar.update(self._task, loss=f"{loss:.3f}", speed=f"{speed:.0f}")
        elif self.main:
            self.console.print(
                f"step {state.global_step}/{state.max_steps} | loss {loss:.4f} | lr"
                f" {logs['learning_rate']:.2e} | {speed:.0f} tok/s | {elapsed:.0f} s"
            )

    def _record(self, step: int, last: int, epoch: float, logs: Mapping[str, float]) -> bool:
        """Take the loss of a step; True if a line of the history ends with it."""
        self._losses.append(float(logs["loss"]))
        if step != 1 and step % self.logging_steps and step != last and not self.stopped:
            return False
        loss = sum(self._losses) / len(self._losses)
        self.history.append(
            {
                "step": step,
                "epoch": round(epoch, 3),
                "loss": round(loss, 5),
                "learning_rate": logs["learning_rate"],
            }
        )
        self._losses = []
        return True
