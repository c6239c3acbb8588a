"""The gate stage: results and thresholds in, a verdict with reasons out."""
