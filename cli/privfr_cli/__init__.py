"""The command line: each command parses, calls privfr, and has `render` show what came back."""
