"""The YAML of the repository as typed data: adapters, recipes, base models, gates, policies,
serving.
"""
