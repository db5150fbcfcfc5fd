"""Which runs there are: the plan of each profile, its arms, and the larger model."""
