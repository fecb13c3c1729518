"""Estimates for a whole archive from people's labels of a few images, or from known reals. No Ray,
no torch at import.
"""
