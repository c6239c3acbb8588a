"""The evaluate stage: an adapter and evaluation rows in, `eval_results.json` and
`eval_samples.jsonl` out.
"""
