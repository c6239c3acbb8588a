"""Base models on this machine: their weights, tokenizers and chat templates."""
