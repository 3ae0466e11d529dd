"""Checks that a recipe's losses are what they claim to be, on the user's own teacher and text."""
