"""One page of the book: opened, executed, made plain."""
