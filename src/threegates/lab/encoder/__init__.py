"""A pre-trained sentence encoder as the lab's second subject: a one-step bandit, a real trained spectrum."""
