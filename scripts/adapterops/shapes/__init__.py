"""Documents between stages and YAML files, each as one typed shape.

Written from `configs/schemas/` by `make types`; a test holds them equal.
"""
