"""Three Gates, Tested: a controlled reproduction of The Path Not Taken (arXiv 2511.08567)."""
