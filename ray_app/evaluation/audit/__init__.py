"""What people's labels of a few images, or known reals, say of a whole archive. No Ray, no torch at import."""
