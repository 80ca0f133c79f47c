"""Magic lines: words, quotes, options, and what can never become an option."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uait_kernel.errors import UsageMistake
from uait_kernel.magics.arguments import (
    HelpWanted,
    MagicParser,
    Word,
    between,
    fill,
    one_of,
    sentence,
    split_words,
    variable,
)


def texts(line: str) -> list[str]:
    return [word.text for word in split_words(line)]


@pytest.fixture
def parser() -> MagicParser:
    parser = MagicParser("%demo TEXT", "Do a demonstration.", "Notes with 100 % care.")
    parser.option("-k", kind=between(1, 9), metavar="N", help="How many.")
    parser.option("--mode", kind=one_of("fast", "slow"), metavar="M", help="How.")
    parser.option("--to", kind=variable, metavar="NAME", help="Where.")
    parser.option("-c", "--collection", metavar="NAME", help="Which.")
    parser.flag("--yes", help="Really, 100 %.")
    return parser


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("  a   b ", ["a", "b"]),
        ("what's a cat's life", ["what's", "a", "cat's", "life"]),
        ('"two words" next', ["two words", "next"]),
        ("'it''s' 'a b' c", ["it''s", "a b", "c"]),
        ("'what's up' now", ["what's up", "now"]),
        ('"never closed word', ['"never', "closed", "word"]),
        ("C:\\new\\table.md", ["C:\\new\\table.md"]),
        ('"" x', ["", "x"]),
        ("--to=name 5' 6\"", ["--to=name", "5'", '6"']),
        ("{{ a + b }} c", ["{{ a + b }}", "c"]),
        ("--model={{ a or b }} c", ["--model={{ a or b }}", "c"]),
        ("{{ 'a b' }}{{ c }}", ["{{ 'a b' }}{{ c }}"]),
    ],
)
def test_words(line: str, words: list[str]) -> None:
    assert texts(line) == words


@given(st.text().filter(lambda text: "{{" not in text))
def test_words_cover_the_line_and_only_space_is_between(line: str) -> None:
    position = 0
    for word in split_words(line):
        start = line.index(word.written, position)
        assert not line[position:start].strip()
        position = start + len(word.written)
    assert not line[position:].strip()


def test_a_question_keeps_its_quotes_unless_they_hold_it_all() -> None:
    assert sentence(split_words('"all of it"')) == "all of it"
    assert sentence(split_words('what is "foo bar" for')) == 'what is "foo bar" for'
    assert sentence([]) == ""


def test_values_go_into_words_and_stay_one_word() -> None:
    namespace = {"path": "my docs/a b.md", "quoted": "x y"}
    words, notices = fill(split_words('add {{path}} "{{quoted}}" p/{{quoted}}/q'), namespace)
    assert [word.text for word in words] == ["add", "my docs/a b.md", "x y", "p/x y/q"]
    assert sentence(words[2:]) == '"x y" p/x y/q'
    assert notices == ()


def test_options_may_stand_anywhere(parser: MagicParser) -> None:
    options, rest = parser.read(split_words("what -k 3 is --mode fast it --yes"))
    assert (options.k, options.mode, options.yes, options.to) == (3, "fast", True, None)
    assert sentence(rest) == "what is it"


def test_after_two_dashes_nothing_is_an_option(parser: MagicParser) -> None:
    options, rest = parser.read(split_words("--yes -- -k --mode x"))
    assert options.yes
    assert sentence(rest) == "-k --mode x"


def test_quoted_and_filled_words_are_never_options(parser: MagicParser) -> None:
    words, _ = fill(split_words('{{name}} "--yes" -c {{name}} -k {{k}}'), {"name": "--yes", "k": 7})
    options, rest = parser.read(words)
    assert options.yes is False
    assert (options.collection, options.k) == ("--yes", 7)
    assert [word.text for word in rest] == ["--yes", "--yes"]


@pytest.mark.parametrize("word", ["-", "-5", "--", "-1.5"])
def test_dashes_and_negative_numbers_are_words(parser: MagicParser, word: str) -> None:
    options, rest = parser.read([Word("a", "a"), Word(word, word)])
    assert [found.text for found in rest] == (["a"] if word == "--" else ["a", word])
    assert not options.yes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--moed fast", "%demo has no option --moed. Did you mean --mode?"),
        ("-x", "into quotes or after --"),
        ("--yess", "Did you mean --yes?"),
        ("-k", "expected one argument"),
        ("-k 10", "'10' is no whole number from 1 to 9"),
        ("-k many", "'many' is no whole number from 1 to 9"),
        ("--mode quick", "'quick' is none of fast, slow"),
        ("--to 2x", "'2x' cannot be the name of a variable"),
        ("--to class", "'class' cannot be the name of a variable"),
        ("--to a.b", "'a.b' cannot be the name of a variable"),
    ],
)
def test_mistakes_name_what_is_wrong(parser: MagicParser, line: str, message: str) -> None:
    with pytest.raises(UsageMistake) as caught:
        parser.read(split_words(line))
    assert message in str(caught.value)
    assert "\0" not in str(caught.value)


@pytest.mark.parametrize("line", ["-h", "--help", "-k 2 -h x"])
def test_help_is_asked_for(parser: MagicParser, line: str) -> None:
    with pytest.raises(HelpWanted):
        parser.read(split_words(line))
    assert parser.format_help() == (
        "usage: %demo TEXT\n\nDo a demonstration.\n\noptions:\n"
        "  -h, --help             Show this help and do nothing else.\n"
        "  -k N                   How many.\n"
        "  --mode M               How.\n"
        "  --to NAME              Where.\n"
        "  -c, --collection NAME  Which.\n"
        "  --yes                  Really, 100 %.\n\n"
        "Notes with 100 % care."
    )
