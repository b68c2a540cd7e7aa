"""Differential privacy: noise that is drawn exactly, and an account of what it is worth."""
