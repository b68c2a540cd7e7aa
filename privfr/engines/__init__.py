"""Engines: how frames get to clients and back. One function each, `exchange`."""
