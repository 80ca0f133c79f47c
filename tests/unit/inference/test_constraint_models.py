"""The embedded model keeps to every form of the benchmark, whatever its budget."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

COUNT = 40


def structured() -> Any:
    """Return the benchmark as a module."""
    path = REPOSITORY / "benchmarks" / "structured.py"
    spec = importlib.util.spec_from_file_location("structured", path)
    assert spec
    assert spec.loader
    module = sys.modules["structured"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.long
def test_forty_answers_of_a_real_model_are_valid(model_cache: Path) -> None:
    benchmark = structured()
    found = asyncio.run(benchmark.measure(COUNT, benchmark.MODEL))
    wrong = [one for counted in found.values() for one in counted.wrong]
    assert not wrong
    assert sum(counted.valid for counted in found.values()) == COUNT
