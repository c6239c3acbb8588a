"""What a pull request changes, which adapters that affects by key, and what it would cost."""
