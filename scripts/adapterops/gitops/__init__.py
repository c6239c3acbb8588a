"""What the workflows do beside the stages: intake of pull requests, candidates, promotion, the
required check, the GitHub API.
"""
