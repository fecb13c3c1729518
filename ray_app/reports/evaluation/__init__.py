"""The result of an evaluation, and its page and lines for the terminal."""
