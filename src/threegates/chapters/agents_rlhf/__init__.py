"""Table 3 and the pairs of agents and RLHF."""
