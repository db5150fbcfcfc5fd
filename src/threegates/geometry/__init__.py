"""Weight-space geometry on tensors: precision, masks, nulls. Knows no files."""
