"""The request phases of an evaluation: quality with all in flight, then the speed in turn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from adapterops.documents import sha256_json
from adapterops.engine.answers import Answer, Messages
from adapterops.engine.client import load_adapter, unload_adapter
from adapterops.engine.generate import generate
from adapterops.evaluate.responses import Responses, response_key
from adapterops.evaluate.text_loss import text_losses
from adapterops.specs.metric_catalogue import SideName

# Short stable answers that are asked for once more, to find those that no other batch turns.
_MAY_BE_PROBES = 16


def warm_up(concurrency: int) -> int:
    """Requests of the speed phase that are not counted: two, or as many as start at once.

    They meet an idle engine.
    """
    return max(2, concurrency)


def turns_of(
    labels: list[SideName], prompts: list[int], scope: Mapping[str, object]
) -> list[tuple[SideName, int]]:
    """Who asks what, in order: prompts shuffled, each asked by all sides in random order.

    The order is drawn from the content, so that the same evaluation asks in the same order.
    """
    random = Random(sha256_json([labels, prompts, scope]))  # not a secret  # noqa: S311
    order = random.sample(prompts, len(prompts))
    return [(label, prompt) for prompt in order for label in random.sample(labels, len(labels))]


@dataclass(frozen=True)
class Side:
    """What one side answered.

    Args:
        answers: one a prompt.
        speed: the counted requests of the speed phase, warm-up dropped, failed ones in their
            places; empty where it was not measured.
        tokens: tokens of the session that throughput is measured on.
        seconds: its wall time.
        margins: of answers that may become probes: nats by which the closest of their tokens was
            decided.
        losses: of the general texts, nats per token.
    """

    answers: list[Answer]
    speed: list[Answer]
    tokens: int
    seconds: float
    margins: dict[int, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Phases:
    """How to ask every side.

    Args:
        url: root of the engine, without `/v1`.
        prompts: one a row.
        scope: what determines an answer besides adapter and prompt: base model, decoding, engine.
        max_tokens: longest answer in tokens.
        requests: counted requests of the speed phase.
        concurrency: of the speed phase.
        responses: answers that are known already.
        console: where progress is shown.
        timed: how many of the first prompts, those of the adapter's own domain, the speed phase
            draws from.
        texts: general texts, whose likelihood is measured.
    """

    url: str
    prompts: list[Messages]
    scope: Mapping[str, object]
    max_tokens: int
    requests: int
    concurrency: int
    responses: Responses
    console: Console
    timed: int
    texts: list[str] = field(default_factory=list)

    def adapters(self, asked: dict[SideName, tuple[str, Path]], base: Side) -> dict[SideName, Side]:
        """Quality of each adapter, then the speed of all in turn, then what each has lost.

        All are loaded for it and forgotten afterwards.

        Args:
            asked: digest and directory by label; what may become probes is found of the first.
            base: of the base model: a probe is an answer that is not its.
        """
        names = {label: f"eval-{label}-{digest[:12]}" for label, (digest, _) in asked.items()}
        with contextlib.ExitStack() as loaded:
            for label, (_, directory) in asked.items():
                load_adapter(self.url, names[label], directory.resolve())
                loaded.callback(unload_adapter, self.url, names[label])
            quality = {
                label: self._quality(names[label], label, digest)
                for label, (digest, _) in asked.items()
            }
            speed = self._speed(names)
            sides = {
                label: Side(answers, speed[label], tokens, seconds)
                for label, (answers, tokens, seconds) in quality.items()
            }
            first = next(iter(asked))
            margins = {
                first: self._margins(
                    names[first], sides[first].answers, sides[first].speed, base.answers
                )
            }
            losses = {label: self._losses(names[label], label) for label in asked}
        return {
            label: replace(side, margins=margins.get(label, {}), losses=losses[label])
            for label, side in sides.items()
        }

    def base(self, model: str) -> Side:
        """Quality of the base model; its speed is nobody's business."""
        answers, tokens, seconds = self._quality(model, "base model", None)
        return Side(answers, [], tokens, seconds, losses=self._losses(model, "base model"))

    def _losses(self, model: str, label: str) -> list[float]:
        if not self.texts:
            return []
        losses = text_losses(self.url, model, self.texts)
        self.console.print(
            f"general texts for {label}: {len(losses)}, {sum(losses) / len(losses):.3f} nats per"
            " token"
        )
        return losses

    def _quality(
        self, model: str, label: str, digest: str | None
    ) -> tuple[list[Answer], int, float]:
        scope = {**self.scope, "adapter": digest}
        keys = [response_key(scope, messages) for messages in self.prompts]
        known = self.responses.find(keys)
        missing = [i for i in range(len(keys)) if i not in known]
        self.responses.start()
        asked = [self.prompts[i] for i in missing]
        given = self._ask(
            model,
            asked,
            f"evaluating {label}",
            keep=lambda i, answer: self.responses.keep(keys[missing[i]], answer),
        )
        answers = known | dict(zip(missing, given, strict=True))
        tokens, seconds = self.responses.throughput(keys)
        ready = f", {len(known)} of them known already" if known else ""
        rate = f" ({tokens / seconds:.0f} tok/s)" if seconds else ""
        self.console.print(
            f"evaluating {label}: {len(keys)} answers{ready}, {tokens} tokens in {seconds:.1f}"
            f" s{rate}"
        )
        return [answers[i] for i in range(len(keys))], tokens, seconds

    def _speed(self, names: dict[SideName, str]) -> dict[SideName, list[Answer]]:
        """Each side asks the same prompts right after the other, so that a slow spell meets both.

        The prompts are spread evenly over the rows, so that every task counts, and shuffled, so
        that none comes in a row.
        """
        dropped = warm_up(self.concurrency)
        count = self.requests + dropped
        chosen = [i * self.timed // count % self.timed for i in range(count)]
        turns = turns_of(list(names), chosen, self.scope)
        answers = self._ask(
            [names[label] for label, _ in turns],
            [self.prompts[prompt] for _, prompt in turns],
            "measuring latency",
            concurrency=self.concurrency,
            cold=True,
        )
        sides: dict[SideName, list[Answer]] = {label: [] for label in names}
        for (label, _), answer in zip(turns, answers, strict=True):
            sides[label].append(answer)
        for label in names:
            counted = sides[label] = sides[label][dropped:]
            failed = sum(answer.error is not None for answer in counted)
            also = f", {failed} of them failed" if failed else ""
            self.console.print(
                f"measuring latency of {label}: {len(counted)} requests, {self.concurrency} in"
                f" flight{also}"
            )
        return sides

    def _margins(
        self, model: str, answers: list[Answer], speed: list[Answer], base: list[Answer]
    ) -> dict[int, float]:
        """How surely answers were decided that may become probes.

        They are not the base model's, and the same in large batches, in small ones, and now.
        """
        small = {answer.text for answer in speed if answer.error is None}
        same = {
            answer.text: i
            for i, answer in enumerate(answers)
            if answer.finish_reason == "stop"
            and answer.text in small
            and answer.text != base[i].text
        }
        chosen = sorted(same.values(), key=lambda i: answers[i].tokens)[:_MAY_BE_PROBES]
        if not chosen:
            return {}
        prompts = [self.prompts[i] for i in chosen]
        found = generate(self.url, model, prompts, max_tokens=self.max_tokens, margins=True)
        return {
            i: answer.margin
            for i, answer in zip(chosen, found, strict=True)
            if answer.margin is not None and answer.text == answers[i].text
        }

    def _ask(
        self,
        model: str | list[str],
        prompts: list[Messages],
        label: str,
        *,
        concurrency: int | None = None,
        cold: bool = False,
        keep: Callable[[int, Answer], None] = lambda *_: None,
    ) -> list[Answer]:
        columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        ) as bar:
            task = bar.add_task("", total=len(prompts))

            def on_answer(position: int, answer: Answer) -> None:
                keep(position, answer)
                bar.advance(task)

            return generate(
                self.url,
                model,
                prompts,
                max_tokens=self.max_tokens,
                concurrency=concurrency,
                cold=cold,
                on_answer=on_answer,
            )
