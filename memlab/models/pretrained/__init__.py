"""Pretrained models as backbones: what they are (`describe`), and their weights in our blocks (`load`).

`describe` is called when a configuration is composed, `check_room` before a model is built, `load` after it.
"""
