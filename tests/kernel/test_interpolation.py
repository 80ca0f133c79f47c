"""`{{expression}}`: one pass, errors with near names, a visible limit."""

from __future__ import annotations

import keyword
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uait_kernel.errors import UsageMistake
from uait_kernel.magics import interpolation
from uait_kernel.magics.interpolation import interpolate

TEXT = st.text()
NAMES = st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(lambda n: not keyword.iskeyword(n))


@given(TEXT.filter(lambda text: "{{" not in text))
def test_text_without_double_braces_is_untouched(text: str) -> None:
    filled = interpolate(text, {"a": 1})
    assert filled.text == text
    assert filled.notices == ()


@given(TEXT.filter(lambda text: "{" not in text), TEXT, TEXT, NAMES)
def test_a_value_goes_in_as_it_is_and_is_not_looked_at_again(
    before: str, value: str, after: str, name: str
) -> None:
    after = after.replace("{{", "")
    filled = interpolate(f"{before}{{{{{name}}}}}{after}", {name: value})
    assert filled.text == before + value + after


@given(st.text(alphabet="{} ax'\"[]:1\n", max_size=40))
def test_any_braces_give_text_or_a_usage_mistake(text: str) -> None:
    try:
        filled = interpolate(text, {"a": "A", "x": "{{a}}"})
    except UsageMistake:
        assert "{{" in text
    else:
        assert "{{" in text or filled.text == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{name}}", "Ann"),
        ("{{ name }}!", "Ann!"),
        ("a {{1 + 1}} b {{name.upper()}}", "a 2 b ANN"),
        ('{{ {"a": {"b": 1}}["a"] }}', "{'b': 1}"),
        ("{{ {1: {2: {3: 'deep'}}}[1][2][3] }}", "deep"),
        ('{{"{{"}}name}}', "{{name}}"),
        ("{{'}}'}}", "}}"),
        ('{"json": {"b": 1}}', '{"json": {"b": 1}}'),
        ("{} {0} ${name} $name", "{} {0} ${name} $name"),
        ("{{twice}}", "{{name}}"),
        ("{{[\n  n for n in\n  (1, 2)\n]}}", "[1, 2]"),
        ("{{[name for _ in '12']}}", "['Ann', 'Ann']"),
    ],
)
def test_expressions(text: str, expected: str) -> None:
    assert interpolate(text, {"name": "Ann", "twice": "{{name}}"}).text == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{nmae}}", "Did you mean 'name'?"),
        ("{{nmae}}", "With --raw nothing"),
        ("{{pritn}}", "Did you mean 'print'?"),
        ("{{1/0}}", "'{{1/0}}' failed: ZeroDivisionError"),
        ("{{name.uper()}}", "AttributeError"),
        ("{{}}", "'{{}}' holds no Python expression"),
        ("{{x = 1}}", "holds no Python expression"),
        ("{{\\frac}}", "holds no Python expression"),
        ("if (a) {{ b", "'{{ b' is not closed"),
    ],
)
def test_mistakes_say_what_to_do(text: str, message: str) -> None:
    with pytest.raises(UsageMistake) as caught:
        interpolate(text, {"name": "Ann"})
    assert message in str(caught.value)


def test_a_doubtful_expression_warns_nobody() -> None:
    assert interpolate("{{1 is 1}} {{'\\d'}}", {}).text == "True \\d"


def test_strings_go_in_whole() -> None:
    text = "x" * 1_000_000
    filled = interpolate("{{text}}", {"text": text})
    assert filled.text == text
    assert filled.notices == ()


def test_large_objects_are_cut_with_a_notice_in_both_places() -> None:
    filled = interpolate("{{numbers}}", {"numbers": list(range(100_000))})
    assert len(filled.text) < 21_000
    assert filled.text.endswith("[cut here]")
    assert filled.notices == ("{{numbers}}: list of 688,890 characters, cut at 20,000.",)


class Frame:
    """A data frame as far as the magics know one: `shape`, `head`, `to_csv`."""

    def __init__(self, rows: int) -> None:
        self.shape = (rows, 2)

    def __len__(self) -> int:
        return self.shape[0]

    def head(self, rows: int) -> Frame:
        return Frame(min(rows, len(self)))

    def to_csv(self, *, index: bool) -> str:
        assert index is False
        return "n,square\n" + "".join(f"{n},{n * n}\n" for n in range(len(self)))


def test_small_tables_go_in_whole() -> None:
    filled = interpolate("{{frame}}", {"frame": Frame(2)})
    assert filled.text == "n,square\n0,0\n1,1\n"
    assert filled.notices == ()


def test_large_tables_are_cut_at_a_row() -> None:
    filled = interpolate("{{frame}}", {"frame": Frame(1_000_000)})
    (notice,) = filled.notices
    *rows, mark = filled.text.splitlines()
    shown = len(rows) - 1
    assert rows[-1] == f"{shown - 1},{(shown - 1) ** 2}"
    assert mark == f"[cut here: {shown:,} of 1,000,000 rows]"
    assert notice == f"{{{{frame}}}}: the first {shown:,} of 1,000,000 rows."


def test_an_abbreviated_array_says_so() -> None:
    class Array(SimpleNamespace):
        shape = (1000,)

        def __str__(self) -> str:
            return "[0 1 ... 999]"

    filled = interpolate("{{array}}", {"array": Array()})
    assert filled.text == "[0 1 ... 999]"
    assert filled.notices == ("{{array}}: Array of shape (1000,), abbreviated.",)


def test_the_search_for_the_end_of_an_expression_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interpolation, "LONGEST_EXPRESSION", 100)
    with pytest.raises(UsageMistake, match="holds no Python expression"):
        interpolate("{{(" + "}}" * 1_000, {})
