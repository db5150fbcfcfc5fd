"""Released records: packed, taken, laid out."""
