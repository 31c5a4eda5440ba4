"""Profiles in the terminal and as a page."""
