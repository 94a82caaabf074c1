"""The comparisons of `suite=peers`, and the module that each one needs, without importing any of them."""

PACKAGES = {
    "infini": "infini_transformer_pytorch",
    "infini_delta": "infini_transformer_pytorch",
    "memorizing": "memorizing_transformers_pytorch",
    "transformer_xl": "x_transformers",
    "transformer_xl_rope": "x_transformers",
    "rmt": "recurrent_memory_transformer_pytorch",
    "rmt_as_installed": "recurrent_memory_transformer_pytorch",
}
