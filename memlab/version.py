"""Which memlab this is. The build reads it from here, and every room may import it."""

__version__ = "0.2.0"
