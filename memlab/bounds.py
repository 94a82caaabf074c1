"""Number types with bounds, as annotations: `memory_tokens: Positive` documents an argument and checks it."""

from __future__ import annotations

from typing import Annotated

import annotated_types

Positive = Annotated[int, annotated_types.Ge(1)]
NonNegative = Annotated[int, annotated_types.Ge(0)]
Seed = Annotated[int, annotated_types.Ge(0), annotated_types.Lt(2**32)]  # what NumPy takes
PositiveFloat = Annotated[float, annotated_types.Gt(0)]
NonNegativeFloat = Annotated[float, annotated_types.Ge(0)]
Fraction = Annotated[float, annotated_types.Ge(0), annotated_types.Le(1)]
Dropout = Annotated[float, annotated_types.Ge(0), annotated_types.Lt(1)]
Share = Annotated[float, annotated_types.Gt(0), annotated_types.Le(1)]  # of something that is not nothing
