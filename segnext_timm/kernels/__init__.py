"""Faster forms of what the models compute."""
