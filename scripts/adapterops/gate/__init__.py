"""The gate stage: results and thresholds in, a verdict with reasons out."""

# Whatever changes a verdict on equal evidence raises it: part of the gate key, and of the judgement
# key of a plan, which imports no judge.
JUDGE_VERSION = 4
