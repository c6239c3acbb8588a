"""What runs in CI to bring a release to the hosts: rollout, fleet, counters."""
