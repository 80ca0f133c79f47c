"""Tab completion in magic lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import uait_kernel

if TYPE_CHECKING:
    from tests.kernel.conftest import MagicShell, ProtocolServer


def complete(shell: MagicShell, text: str) -> list[str]:
    """Return what Tab offers at the end of a cell."""
    return [completion.text for completion in shell.Completer.completions(text, len(text))]


@pytest.fixture(autouse=True)
def _provisional(recwarn: pytest.WarningsRecorder) -> None:
    """Let IPython call its own completion API provisional."""
    import warnings

    from IPython.core.completer import ProvisionalCompleterWarning

    warnings.simplefilter("ignore", ProvisionalCompleterWarning)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%ask --mo", ["--model"]),
        ("%%ask --ch", ["--chat"]),
        ("x = %ask --no", ["--no-phrase"]),
        ("%kb se", ["search"]),
        ("%kb search x --mo", ["--mode"]),
        ("%kb search x --mode ", ["dense", "hybrid", "text"]),
        ("%kb delete x --y", ["--yes"]),
        ("%models --h", ["--help"]),
        ("1 + 1\n%kb sta", ["status"]),
    ],
)
def test_verbs_and_options(shell: MagicShell, text: str, expected: list[str]) -> None:
    assert complete(shell, text) == expected


def test_names_are_asked_of_a_server_that_is_known(
    shell: MagicShell, connected: ProtocolServer
) -> None:
    assert "echo" not in complete(shell, "%ask -m ")
    assert not connected.requests
    uait_kernel.connect()
    connected.collections["books"] = []
    assert complete(shell, "%ask -m ") == ["echo"]
    assert complete(shell, "%%ask --model e") == ["echo"]
    assert complete(shell, "%ask -c b") == ["books"]
    assert complete(shell, "%kb status ") == ["books", "default"]
    assert complete(shell, "%kb add x --collection d") == ["default"]


def test_a_server_in_trouble_offers_nothing(shell: MagicShell, connected: ProtocolServer) -> None:
    uait_kernel.connect()
    connected.faults |= dict.fromkeys(
        ("models", "collections"), lambda handler: handler.send(500, "text/html", b"?")
    )
    assert "echo" not in complete(shell, "%ask -m ")
    assert "default" not in complete(shell, "%kb status d")


def test_other_lines_are_ipythons(shell: MagicShell) -> None:
    shell.run("value_of_mine = 1")
    assert complete(shell, "value_of_m") == ["value_of_mine"]
    assert "value_of_mine" in complete(shell, "%ask --chat {{value_of")
