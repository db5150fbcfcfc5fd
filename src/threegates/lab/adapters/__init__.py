"""Low-rank adapters on the lab's model: their starts, their training, their files."""
