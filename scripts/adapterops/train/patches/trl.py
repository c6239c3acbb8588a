"""TRL 1.16: what SFTTrainer does beside training."""

from __future__ import annotations

from typing import Any

from trl import SFTTrainer


class QuietTrainer(SFTTrainer):  # type: ignore[misc]  # TRL ships no types for it
    """SFTTrainer that neither reports its use nor writes a model card."""

    def _send_telemetry(self) -> None:
        """A training tells nobody about itself (https://github.com/huggingface/trl/pull/5758).

        `HF_HUB_DISABLE_TELEMETRY` would say so too, if it were set before anything is imported.
        """

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Written once, when the training is done (`artifacts.model_card`).

        TRL writes a card of its own with every checkpoint. No issue is known that asks for a
        setting.
        """


def adapter_in_compute_type(model: Any) -> None:
    """Have the adapter in the type that its base model computes in.

    TRL makes the adapter of a quantised base model bf16, whatever that computes in
    (https://github.com/huggingface/peft/issues/2889): a CPU without bf16 would emulate it.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(model.get_base_model().dtype)
