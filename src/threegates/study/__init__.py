"""Records, notebooks, claims and the book."""
