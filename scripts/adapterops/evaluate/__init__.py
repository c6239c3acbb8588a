"""The evaluate stage: adapter and rows in, `eval_results.json` and `eval_samples.jsonl` out."""
