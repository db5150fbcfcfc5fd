"""A module a kind of job, or a family: its tables, how pairs are cut into jobs of it, what measures one."""
