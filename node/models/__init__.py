"""Model files: the bundled one and those of the user."""
