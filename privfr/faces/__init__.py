"""Faces: where they come from, networks and heads for them, and how recognition is judged."""
