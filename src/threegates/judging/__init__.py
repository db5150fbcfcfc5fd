"""Claims, their verdicts, and how these depend on free choices."""
