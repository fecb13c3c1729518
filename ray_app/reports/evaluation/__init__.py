"""The result of an evaluation, and how it is shown: an HTML page, and lines for the terminal."""
