"""memlab compares memory architectures of Transformers: one contract, one data path, honest figures."""

__version__ = "0.1.0"
