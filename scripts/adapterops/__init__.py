"""Adapters as code: the library behind the scripts, one sub-package per stage."""

import os

# Threads of a product that wait for each other sleep instead of spinning (libgomp reads this when torch is loaded; children inherit it).
# Where anything else wants a core, a spinning thread keeps it from the very one that it waits for (tests/benchmarks/train_cpu.py).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
