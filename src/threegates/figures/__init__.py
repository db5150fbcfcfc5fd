"""How figures and tables look, and those that several chapters draw."""
