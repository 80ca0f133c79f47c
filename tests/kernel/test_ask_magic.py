"""`%ask` and `%%ask` in a real shell against a server on a real socket."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from IPython.core.error import UsageError

from uait_kernel.errors import (
    NotFound,
    ServerNotFound,
    StreamBroken,
    UaitClientError,
    UsageMistake,
)
from uait_kernel.results.answer import Answer

if TYPE_CHECKING:
    from tests.kernel.conftest import Handler, MagicShell, ProtocolServer

TEXT = "UAIT is installed with one command.\n\nYou install it with `make lab`."


def test_the_answer_is_printed_once_and_returned(
    shell: MagicShell, connected: ProtocolServer, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run("%ask how is it installed?")
    shown = capsys.readouterr().out
    assert shown.count("You install it with `make lab`.") == 1
    assert "[1] docs/install.md, § Install: “UAIT is installed with one command.”" in shown
    assert "Out[2]: Answer('UAIT is installed" in shown
    assert shell.user_ns["_"] == TEXT
    assert shell.user_ns["Out"][2] is shell.user_ns["_"]
    shell.run("_")
    assert capsys.readouterr().out.count("You install it with `make lab`.") == 1


def test_the_answer_is_a_string_with_its_evidence(
    shell: MagicShell, connected: ProtocolServer
) -> None:
    shell.run("answer = %ask how?")
    answer = shell.user_ns["answer"]
    assert isinstance(answer, Answer)
    assert isinstance(answer, str)
    assert answer == answer.text == TEXT
    assert type(answer.text) is str
    assert "one command" in answer
    assert answer.extract == "UAIT is installed with one command."
    assert answer.phrasing == "You install it with `make lab`."
    assert (answer.model, answer.backend, answer.declined) == ("echo", "echo", False)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (12, 5)
    assert (answer.seconds, answer.first_token_seconds) == (0.5, 0.1)
    assert (answer.question, answer.collection, answer.state) == ("how?", "default", "done")
    (citation,) = answer.citations
    assert (citation.number, citation.path, citation.place.line) == (1, "docs/install.md", 3)
    assert json.loads(json.dumps(answer.json))["citations"][0]["place"]["label"] == "§ Install"
    assert repr(answer).startswith("Answer('UAIT is installed")
    for twin in (copy.copy(answer), pickle.loads(pickle.dumps(answer))):
        assert twin == answer
        assert twin.json == answer.json


def test_an_answer_is_declined(shell: MagicShell, connected: ProtocolServer) -> None:
    answer = shell.run("%ask an unanswerable thing")
    assert answer.declined
    assert answer.citations == ()
    assert answer.model is None


def test_options_reach_the_server(shell: MagicShell, connected: ProtocolServer) -> None:
    connected.collections["notes"] = ["a"]
    shell.run("%%ask -c notes -m echo -k 3 --max-tokens 50 --no-phrase --to kept\nWhat is it?\n")
    assert connected.requests[-1] == (
        "POST",
        "collections/notes/ask",
        {"question": "What is it?", "model": "echo", "k": 3, "max_tokens": 50, "phrase": False},
    )
    assert shell.user_ns["kept"].phrasing is None


def test_chat_goes_straight_to_the_model(shell: MagicShell, connected: ProtocolServer) -> None:
    answer = shell.run("%ask --chat --max-tokens 1 say these words")
    assert connected.requests[-1][1:] == (
        "chat",
        {"messages": [{"role": "user", "content": "say these words"}], "max_tokens": 1},
    )
    assert (answer, answer.collection, answer.finish_reason) == ("say these words", None, "length")


@pytest.mark.parametrize("option", ["-c notes", "-k 3", "--no-phrase"])
def test_chat_refuses_what_is_about_documents(
    shell: MagicShell, connected: ProtocolServer, option: str
) -> None:
    with pytest.raises(UsageMistake, match="--chat asks the model without documents"):
        shell.run(f"%ask --chat {option} hello")
    assert not connected.requests


def test_values_of_the_kernel_go_into_question_and_options(
    shell: MagicShell, connected: ProtocolServer
) -> None:
    shell.run("topic, where = 'the {{secret}} cost', 'default'")
    shell.run("%%ask --collection {{where}} --to a\nWhat is {{topic}} of {'a': 1}?")
    assert connected.bodies("ask")[-1] == {
        "question": "What is the {{secret}} cost of {'a': 1}?",
    }
    shell.run("%ask {{topic.upper()}} in {{1 + 1}} words")
    assert connected.bodies("ask")[-1] == {"question": "THE {{SECRET}} COST in 2 words"}


def test_earlier_inputs_and_outputs_are_names_too(
    shell: MagicShell, connected: ProtocolServer
) -> None:
    shell.run("6 * 7")
    shell.run("%ask --chat {{In[2]}} is {{Out[2]}}")
    assert shell.user_ns["_"] == "6 * 7 is 42"


def test_raw_replaces_nothing(shell: MagicShell, connected: ProtocolServer) -> None:
    shell.run("%%ask --raw --chat\n{{ not python }} {% x %}")
    assert shell.user_ns["_"] == "{{ not python }} {% x %}"
    shell.run("%ask --raw --chat what is {{ this")
    assert shell.user_ns["_"] == "what is {{ this"


def test_ipythons_own_expansion_is_off(shell: MagicShell, connected: ProtocolServer) -> None:
    shell.run("x = 1")
    shell.run("%ask --chat {x} $x")
    assert shell.user_ns["_"] == "{x} $x"


def test_names_of_a_function_are_seen(shell: MagicShell, connected: ProtocolServer) -> None:
    shell.run("def f(thing):\n    %ask --chat {{thing}}!\n    return _a\n")
    shell.run("def g(thing):\n    a = %ask --chat {{thing}}!\n    return a\n")
    assert shell.run("g('local')") == "local!"


def test_a_cut_value_is_told_beside_the_answer(
    shell: MagicShell, connected: ProtocolServer, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run("numbers = list(range(10_000))")
    shell.run("%%ask --no-phrase\nSum {{numbers}}")
    assert "({{numbers}}: list of 58,890 characters, cut at 20,000.)" in capsys.readouterr().out
    assert shell.user_ns["_"].notices


def test_a_semicolon_shows_nothing_and_returns_the_answer(
    shell: MagicShell, connected: ProtocolServer, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run("%ask how?;")
    assert capsys.readouterr().out.strip() == "Out[2]:"  # a terminal's prompt comes in any case
    shell.run("answer = %ask how? ;")
    assert capsys.readouterr().out == ""
    assert connected.bodies("ask") == [{"question": "how?"}, {"question": "how?"}]
    shell.run("answer")
    assert "make lab" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("%ask", "There is no question"),
        ("%%ask\n \n", "There is no question"),
        ("%%ask what is it\nbody", "'what is it' is none"),
        ("%ask --to 1x what", "cannot be the name of a variable"),
        ("%ask {{unknown_name}}", "names 'unknown_name', which this kernel does not know"),
        ("%ask --colection x y", "Did you mean --collection?"),
    ],
)
def test_mistakes_are_raised_and_nothing_is_sent(
    shell: MagicShell, connected: ProtocolServer, cell: str, message: str
) -> None:
    with pytest.raises(UsageMistake) as caught:
        shell.run(cell)
    assert message in str(caught.value)
    assert not connected.requests


def test_an_empty_cell_is_an_error_too(shell: MagicShell) -> None:
    with pytest.raises(UsageError):
        shell.run("%%ask\n")


def test_errors_of_the_server_show_as_one_line(
    shell: MagicShell, connected: ProtocolServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NotFound) as caught:
        shell.run("%ask -c missing --to kept what?")
    assert caught.value.code == "collection-not-found"
    captured = capsys.readouterr()
    assert (captured.out + captured.err).strip().splitlines() == [
        "NotFound: There is no collection 'missing'. Make it with an ingest."
    ]
    assert "kept" not in shell.user_ns
    with pytest.raises(NotFound, match="No model 'gpt' is known"):
        shell.run("%ask -m gpt what?")


def test_without_a_server_one_line_says_what_to_do(
    shell: MagicShell, fresh_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ServerNotFound):
        shell.run("%ask anything")
    captured = capsys.readouterr()
    (line,) = (captured.out + captured.err).strip().splitlines()
    assert "Start one with `uait lab`" in line


def test_a_server_that_breaks_off_leaves_the_part_and_the_name(
    shell: MagicShell, connected: ProtocolServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(handler: Handler) -> None:
        handler.begin_stream()
        handler.event({"type": "delta", "text": "Half an ans"})
        handler.connection.close()

    connected.faults["chat"] = fault
    shell.run("kept = 'before'")
    with pytest.raises(StreamBroken):
        shell.run("%ask --chat --to kept what?")
    shown = capsys.readouterr().out
    assert "Half an ans\n\n(Broken off: this is only a part." in shown
    assert shell.user_ns["kept"] == "before"


def test_a_problem_before_any_word_shows_only_the_error(
    shell: MagicShell, connected: ProtocolServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(handler: Handler) -> None:
        handler.begin_stream()
        handler.event({"status": 503, "code": "worker-died", "detail": "It died."}, "error")

    connected.faults["ask"] = fault
    with pytest.raises(UaitClientError, match="It died"):
        shell.run("%ask what?")
    captured = capsys.readouterr()
    assert (captured.out + captured.err).strip() == "Unavailable: It died."


def test_an_interrupt_cancels_keeps_the_part_and_stops_the_cell(
    shell: MagicShell,
    connected: ProtocolServer,
    within: Callable[[threading.Event], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    connected.pause = threading.Event()

    def interrupt() -> None:
        connected.paused.wait(5)
        time.sleep(0.5)  # let the client read what was sent
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        shell.run("%ask --chat --to part one two three four\nafter = True")
    thread.join()
    within(connected.cancelled)
    part = shell.user_ns["part"]
    assert part in ("one ", "one two ")
    assert part.state == "stopped"
    assert "after" not in shell.user_ns
    assert "(Stopped: this is only a part.)" in capsys.readouterr().out


class Terminal(io.StringIO):
    """A stream that says it is a terminal and remembers each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        return super().write(text)

    def isatty(self) -> bool:
        return True


def test_a_terminal_prints_words_as_they_come(
    shell: MagicShell, connected: ProtocolServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uait_kernel.display import live

    monkeypatch.setattr(live, "FRAME_SECONDS", 0.0)
    monkeypatch.setattr(live, "DRAWING_SHARE", 1e9)
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    shell.run("%ask --chat one two three")
    assert terminal.writes[:3] == ["one ", "two ", "three"]
    assert terminal.getvalue().count("one two three\n") == 1


def test_help(shell: MagicShell, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.run("%ask -h") is None
    shown = capsys.readouterr().out
    for option in ("--collection", "--model", "-k", "--max-tokens", "--no-phrase", "--chat"):
        assert option in shown
    shell.run("%ask?")
    assert "usage: %ask QUESTION" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("%ask --chat what is it?", "what is it?"),
        ("%ask --chat what is it??", "what is it??"),
        ("  \n%ask --chat really?  ", "really?"),
        ("if True:\n    %ask --chat who?\n", None),
        ("a = %ask --chat what's that?", None),
        ("%%ask --chat\nwhat is it?", "what is it?"),
    ],
)
def test_questions_may_end_with_their_mark(
    shell: MagicShell, connected: ProtocolServer, cell: str, value: str | None
) -> None:
    result = shell.run(cell)
    assert result == value
    ((_, _, body),) = connected.requests
    assert body is not None
    assert body["messages"][0]["content"].endswith("?")


def test_other_cells_are_left_alone(
    shell: MagicShell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "notes.txt"
    shell.run(f"%%writefile {target}\n%ask what?\n%kb search x?\n")
    assert target.read_text() == "%ask what?\n%kb search x?\n"
    assert shell.run("text = '''\n%ask what?\n'''\ntext") == "\n%ask what?\n"
    shell.run("print?")
    assert "Prints the values" in capsys.readouterr().out


def test_loading_is_quiet_repeatable_and_undone(
    shell: MagicShell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run("%reload_ext uait_kernel")
    shell.run("%load_ext uait_kernel")
    before = len(shell.input_transformers_cleanup), len(shell.Completer.custom_matchers)
    shell.run("%reload_ext uait_kernel")
    assert before == (
        len(shell.input_transformers_cleanup),
        len(shell.Completer.custom_matchers),
    )
    shell.run("%unload_ext uait_kernel")
    assert not {"ask", "kb", "models"} & set(shell.magics_manager.magics["line"])
    assert "ask" not in shell.magics_manager.magics["cell"]
    assert len(shell.Completer.custom_matchers) == before[1] - 1
    assert "already loaded" in capsys.readouterr().out
    shell.run("%load_ext uait_kernel")
    assert capsys.readouterr().out == ""
