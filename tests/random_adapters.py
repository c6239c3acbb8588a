"""LoRA adapters with random weights that change what a real engine says."""

import shutil
from pathlib import Path

from adapterops.basemodels.materialize import base_model_directory
from adapterops.schemas import ROOT


class RandomAdapters:
    """Adapters of rank 8 for a base model, whose network is read once."""

    def __init__(self, base_model):
        import peft
        import torch
        from transformers import AutoModelForCausalLM

        self.base_model = base_model
        model = AutoModelForCausalLM.from_pretrained(
            base_model_directory(base_model), dtype=torch.bfloat16
        )
        lora = peft.LoraConfig(
            r=8, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
        )
        torch.manual_seed(0)  # the A matrices; `seed` is for the B matrices
        self.network = peft.get_peft_model(model, lora)

    def make(self, directory: Path, seed, scale=0.05):
        """An adapter directory; scale 0 makes an adapter without effect, NaN one whose weights are
        not numbers."""
        import torch
        from safetensors.torch import load_file, save_file

        self.network.save_pretrained(directory)
        (directory / "README.md").unlink(missing_ok=True)
        weights = load_file(directory / "adapter_model.safetensors")
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in sorted(weights.items()):
            if "lora_B" in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
        save_file(weights, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        shutil.copy(ROOT / self.base_model.chat_template_path, directory / "chat_template.jinja")
        return directory
