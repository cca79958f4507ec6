"""Closed objects of JSON: no key is unknown, and there are no more than there may be.

Pydantic says of each key that is unknown that it is: of a body of some megabytes, hundreds of
thousands of faults, which take gigabytes. A body that has more keys than there are fields is
refused before it comes to that.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Closed(BaseModel):
    """An object that has no other keys than its fields."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _no_more_keys_than_fields(cls, value: Any) -> Any:
        return limit_keys(value, len(cls.model_fields))


def limit_keys(value: Any, limit: int) -> Any:
    """`value`, unless it is an object with more keys than that."""
    if isinstance(value, dict) and len(value) > limit:
        raise PydanticCustomError(
            "too_many_keys",
            "It has {keys} keys; {limit} at most are allowed.",
            {"keys": len(value), "limit": limit},
        )
    return value
