"""Pages about the whole study: verdicts, sensitivity, larger model, benchmarks, tutorial."""
