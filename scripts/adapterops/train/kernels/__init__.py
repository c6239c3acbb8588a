"""Faster pieces of a network: fused layers, attention of packed rows, chunked loss."""
