"""The result of an evaluation, and its report as an HTML page or as lines for the terminal."""
