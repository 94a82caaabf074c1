"""The configuration of `memlab.bench`: what to measure, and at which sizes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from memlab.bounds import Positive
from memlab.config.sections import Config, Section


class FormsConfig(Section):
    models: Annotated[list[str], Field(min_length=1)] | None
    segments: Positive
    segment_length: Positive
    batch_size: Positive
    width: Positive
    layers: Positive
    heads: Positive


class MemoryConfig(Section):
    models: Annotated[list[str], Field(min_length=1)] | None
    segments: Annotated[list[Positive], Field(min_length=1)]
    segment_length: Positive
    batch_size: Positive
    width: Positive
    layers: Positive
    heads: Positive


class RooflineConfig(FormsConfig):
    pass


class PeersConfig(Section):
    models: Annotated[list[str], Field(min_length=1)] | None
    segments: Annotated[
        list[Annotated[list[Positive], Field(min_length=2, max_length=2)]], Field(min_length=1)
    ]
    batch_size: Positive
    width: Positive
    layers: Annotated[int, Field(ge=2)]
    heads: Positive
    memory_tokens: Positive


class StreamingConfig(Section):
    models: Annotated[list[str], Field(min_length=1)] | None
    few: Positive
    many: Positive
    segment_length: Annotated[int, Field(ge=3)]
    batch_size: Positive
    tokens: Positive
    growing_tokens: Positive
    width: Positive
    layers: Positive
    heads: Positive


class PoliciesConfig(Section):
    names: Annotated[list[str], Field(min_length=1)] | None
    quick: bool
    tokens: Annotated[int, Field(ge=1024)]
    segment_length: Positive
    budget: Positive
    width: Positive
    layers: Positive
    heads: Positive
    kv_heads: Positive


class SweepOverheadConfig(Section):
    name: str
    trials: Positive
    steps: Positive


class BenchConfig(Config):
    """A measurement of speed or memory: the configuration of a run, suites and their sizes."""

    suite: Literal[
        "overhead",
        "forms",
        "memory",
        "state_sizes",
        "peers",
        "roofline",
        "streaming",
        "policies",
        "sweep",
        "all",
    ]
    repeats: Positive
    steps: Annotated[int, Field(ge=20)]
    forms: FormsConfig
    memory: MemoryConfig
    peers: PeersConfig
    roofline: RooflineConfig
    streaming: StreamingConfig
    policies: PoliciesConfig
    sweep: SweepOverheadConfig
