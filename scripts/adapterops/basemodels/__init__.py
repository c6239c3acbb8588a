"""The allow-list of base models, their chat templates, and their weights on this machine."""

from adapterops.basemodels.allowlist import BaseModel, find_base_model, load_base_models
from adapterops.basemodels.materialize import base_model_directory, load_tokenizer

__all__ = [
    "BaseModel",
    "base_model_directory",
    "find_base_model",
    "load_base_models",
    "load_tokenizer",
]
