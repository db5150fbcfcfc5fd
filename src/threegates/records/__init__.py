"""Tables of results on disk, and what made them."""
