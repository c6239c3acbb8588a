"""Rollouts that tests begin with."""

from adapterops.specs.adapter import Rollout

LIMITS = {"error_rate": 0.02, "latency_p95_ratio": 1.5, "saturation": 0.9}
ROLLOUT = Rollout("canary", (10, 100), 0, 60, 300, 0, 0.95, LIMITS)
# Judges nothing: for tests of what comes before and after.
UNJUDGED = Rollout("immediate", (100,), 0, 1, 1, 0, 0.95, LIMITS)
# Probes only, limits that forty answers can meet; a bound of a p95 at this confidence needs 32. A
# step ends as soon as it is decided; the minute is for a machine that is busy with something else.
QUICK = Rollout(
    "canary",
    (10, 100),
    0,
    60,
    40,
    60,
    0.8,
    {"error_rate": 0.2, "latency_p95_ratio": 6, "saturation": 0.9},
)
