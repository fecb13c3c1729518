"""Models that predict prompts: learning and export."""
