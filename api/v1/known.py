"""Bodies with no more keys than they may have.

Pydantic says of each key that is unknown that it is: of a body of some megabytes, hundreds of
thousands of faults, which take gigabytes. A body that has more keys than there are fields is
refused before it comes to that.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Known(BaseModel):
    """A body in which no key is unknown."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _no_more_keys_than_fields(cls, value: Any) -> Any:
        return few_keys(value, len(cls.model_fields))


def few_keys(value: Any, most: int) -> Any:
    """`value`, unless it is an object with more keys than that."""
    if isinstance(value, dict) and len(value) > most:
        raise PydanticCustomError(
            "too_many_keys",
            "It has {keys} keys; {most} are allowed.",
            {"keys": len(value), "most": most},
        )
    return value
