"""For which notebook and run a client asks: what it says, made safe."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uait_kernel.transport import place_headers
from uait_server_ext.api.callers import within
from uait_server_ext.api.exchange import MAX_LABEL, label


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (None, None),
        ("", None),
        ("reports/a.ipynb", "reports/a.ipynb"),
        (quote("Über uns.ipynb"), "Über uns.ipynb"),
        ("a%0d%0aSet-Cookie%3a b", "aSet-Cookie: b"),
        ("%ff%00", "\ufffd"),
        ("%00 %0a", None),
    ],
)
def test_a_label_is_plain_text(header: str | None, said: str | None) -> None:
    assert label(header) == said


@given(st.text(max_size=1000))
def test_any_header_is_bounded(text: str) -> None:
    said = label(text)
    assert said is None or (0 < len(said) <= MAX_LABEL and said.isprintable())


def test_a_notebook_is_named_as_people_see_it() -> None:
    root = Path("/home/ada/work")
    assert within("/home/ada/work/reports/a.ipynb", root) == "reports/a.ipynb"
    assert within("/elsewhere/a.ipynb", root) == "/elsewhere/a.ipynb"
    assert within("reports/a.ipynb", root) == "reports/a.ipynb"
    assert within(None, root) is None


def test_a_kernel_says_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.delenv("UAIT_RUN_DIR", raising=False)
    assert place_headers() == {}
    monkeypatch.setenv("JPY_SESSION_NAME", "/work/Über uns.ipynb")
    monkeypatch.setenv("UAIT_RUN_DIR", "/work/runs/2026-11-23-a")
    sent = place_headers()
    assert label(sent["UAIT-Notebook"]) == "/work/Über uns.ipynb"
    assert label(sent["UAIT-Run"]) == "2026-11-23-a"
