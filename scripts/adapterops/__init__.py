"""Adapters as code: the library behind the scripts, one sub-package per stage."""
