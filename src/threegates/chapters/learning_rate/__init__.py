"""Gate III: learning rate and optimiser."""
