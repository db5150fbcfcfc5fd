"""The book: built, assembled, rendered, compared."""
