"""The algorithms that a recipe of reinforcement learning can name, a module each."""
