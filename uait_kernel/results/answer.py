"""An answer: a string that also knows its sources, its model and what it took."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

from .decode import decoding, known
from .knowledge import Citation
from .shown import Bundle, Shown

Json = dict[str, Any]
AnswerState = Literal["streaming", "done", "stopped", "failed"]


@dataclass(frozen=True)
class Usage:
    """Tokens counted by the model's own tokenizer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class AnswerDetails:
    """All that an answer is besides its text."""

    question: str = ""
    collection: str | None = None
    declined: bool = False
    extract: str | None = None
    phrasing: str | None = None
    citations: tuple[Citation, ...] = ()
    model: str | None = None
    backend: str | None = None
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    first_token_seconds: float | None = None
    finish_reason: str | None = None
    state: AnswerState = "done"
    error: str | None = None
    notices: tuple[str, ...] = ()


class Answer(Shown, str):
    """The answer's text, as a `str`, with its evidence and figures (see `AnswerDetails`).

    Attributes:
        text: what to show: the supporting sentence, then the model's phrasing.
        declined: the documents hold nothing relevant.
        extract: the best supporting sentence, word for word.
        phrasing: the model's own words, not checked.
        citations: numbered pointers to documents and places.
        state: `done`; `stopped` by the user or `failed` on the way, and then `text` is a part.
        notices: what was cut from values that were put into the question.
        json: all of it as a plain dict.
    """

    details: AnswerDetails
    question: str
    collection: str | None
    declined: bool
    extract: str | None
    phrasing: str | None
    citations: tuple[Citation, ...]
    model: str | None
    backend: str | None
    usage: Usage
    seconds: float
    first_token_seconds: float | None
    finish_reason: str | None
    state: AnswerState
    error: str | None
    notices: tuple[str, ...]

    def __new__(cls, text: str = "", details: AnswerDetails | None = None) -> Self:
        answer = super().__new__(cls, text)
        answer.details = details or AnswerDetails()
        vars(answer).update(vars(answer.details))
        return answer

    def __getnewargs__(self) -> tuple[str, AnswerDetails]:  # type: ignore[override]
        return str(self), self.details

    def __repr__(self) -> str:
        shown = self if len(self) <= 60 else self[:59] + "…"
        parts = [repr(str(shown)), f"model={self.model!r}"]
        if self.collection is not None:
            parts.append(f"citations={len(self.citations)}")
        if self.declined:
            parts.append("declined=True")
        if self.state != "done":
            parts.append(f"state={self.state!r}")
        return f"Answer({', '.join(parts)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print the answer in full; IPython would else print it as any str, by its repr."""
        nested = len(printer.stack) > 1
        printer.text(repr(self) if nested or self.is_above else self.bundle().plain)

    @property
    def text(self) -> str:
        """The answer's text as an ordinary string."""
        return str(self)

    @property
    def json(self) -> Json:
        """The answer and all its details as a plain dict."""
        return {"text": str(self), **asdict(self.details)}

    def bundle(self) -> Bundle:
        """Return what a front end shows."""
        from uait_kernel.display.answer import answer_bundle

        return answer_bundle(self)


class AnswerInProgress:
    """Gathers the events of `ask` or `chat` into an answer, which can be had at any time."""

    def __init__(
        self,
        question: str,
        *,
        collection: str | None,
        model: str | None = None,
        notices: tuple[str, ...] = (),
    ) -> None:
        self._details = AnswerDetails(
            question=question,
            collection=collection,
            model=model,
            state="streaming",
            notices=notices,
        )
        self._written = ""
        self._text: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show yet."""
        return not self._written and self._details.extract is None and self._text is None

    def add(self, event: Json) -> None:
        """Take the next event.

        Raises:
            UnexpectedAnswer: it is not as this package knows it.
        """
        with decoding("answer"):
            match event["type"]:
                case "evidence":
                    evidence = _evidence(event)
                    self._details = replace(self._details, **evidence)
                case "delta":
                    self._written = (self._written + event["text"]).lstrip()
                case "failover":  # a model broke off, another begins anew
                    self._written = ""
                case "done":
                    self._finish(event.get("answer", event))

    def _finish(self, whole: Json) -> None:
        """Take the whole answer of the last event."""
        members = known(AnswerDetails, whole) | _evidence(whole)
        members["usage"] = Usage(**known(Usage, whole.get("usage") or {}))
        self._text = str(whole["text"])
        self._details = replace(self._details, **members | {"state": "done"})

    def answer(self, state: AnswerState | None = None, error: str | None = None) -> Answer:
        """Return the answer as it stands; `state` and `error` say why it goes no further."""
        details = self._details
        if state is not None:
            details = replace(details, state=state, error=error)
        if self._text is not None:
            return Answer(self._text, details)
        if details.collection is None:
            return Answer(self._written, details)
        details = replace(details, phrasing=self._written or None)
        return Answer("\n\n".join(filter(None, (details.extract, self._written))), details)


def _evidence(data: Json) -> Json:
    """Return the members that say what the documents hold, as far as there are any."""
    members: Json = {name: data[name] for name in ("declined", "extract") if name in data}
    if "citations" in data:
        members["citations"] = tuple(Citation.of(item) for item in data["citations"])
    return members
