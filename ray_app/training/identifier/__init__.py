"""Heads that name generators: fitting and export."""
