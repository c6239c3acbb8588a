"""The weekly report: what was released, what failed, what it cost, what is open."""
