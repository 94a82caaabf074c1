"""The version of memlab. The build reads it from here, and every package may import it."""

__version__ = "0.2.0"
