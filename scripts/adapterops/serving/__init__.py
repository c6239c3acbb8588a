"""A serving host: gateway, reconciler and their supervision; and the deployment that moves
channels.
"""
