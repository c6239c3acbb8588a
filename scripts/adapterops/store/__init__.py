"""The object store: immutable releases, a mutable channel each, an append-only audit log."""
