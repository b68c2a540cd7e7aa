"""privfr."""
