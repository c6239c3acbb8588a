"""The object store: immutable releases, one mutable document a channel, an append-only audit
log.
"""
