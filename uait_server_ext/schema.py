"""The base of what goes over the wire: pydantic builds a model when first used, not at import.

A server declares some hundred of them and a start uses few: this keeps `import` within its budget.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Schema(BaseModel):
    """A request, an answer or a part of one."""

    model_config = ConfigDict(defer_build=True)
