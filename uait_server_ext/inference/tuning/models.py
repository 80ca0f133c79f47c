"""What goes into and comes out of tuning: jobs, settings, events, scores."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from uait_server_ext.inference.models import DEFAULT_MODEL
from uait_server_ext.schema import Schema

TuneState = Literal["queued", "running", "completed", "failed", "cancelled"]
ENDED: frozenset[TuneState] = frozenset({"completed", "failed", "cancelled"})

AdapterName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,39}$")]
JobId = Annotated[str, Field(pattern=r"^tune_[a-z0-9]{16}$")]


class TuneSettings(Schema):
    """How to learn; the defaults suit a small model and a few hundred short examples."""

    model_config = ConfigDict(extra="forbid")
    method: Literal["auto", "lora", "qlora"] = Field(
        "auto",
        description="`qlora` leaves the base model's weights packed, which saves memory; `lora` "
        "unpacks them, which is much faster on a CPU; `auto`: `lora` on a CPU, else `qlora`.",
    )
    steps: int = Field(100, ge=1, le=100_000)
    batch_size: int = Field(4, ge=1, le=256, description="Examples in one step.")
    learning_rate: float = Field(2e-4, gt=0.0, le=0.1, description="At its highest.")
    warmup_steps: int = Field(5, ge=0, description="Steps over which the rate rises to that.")
    rank: int = Field(8, ge=1, le=256)
    scale: float = Field(20.0, gt=0.0, le=1000.0)
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    layers: int = Field(0, ge=0, description="Of the last so many blocks; 0: of all.")
    max_tokens: int | None = Field(
        None, ge=8, description="Longest example; none: what the model's context holds, up to 2048."
    )
    answer_only: bool = Field(True, description="Learn the last answer, not the prompt before it.")
    seed: int = Field(0, ge=0, le=2**31 - 1)
    report_every: int = Field(10, ge=1, description="Steps between two training losses.")
    evaluate_every: int = Field(20, ge=1, description="Steps between two validation losses.")
    checkpoint_every: int = Field(20, ge=1, description="Steps between two checkpoints.")
    patience: int = Field(
        0, ge=0, description="Stop after so many validations without a lower loss; 0: never."
    )
    keep: Literal["best", "last"] = Field(
        "best", description="Which weights: of the lowest validation loss, or the last."
    )
    recompute: bool = Field(
        False, description="Compute activations twice to need less memory (gradient checkpointing)."
    )
    score_limit: int = Field(100, ge=0, description="Held-out examples to score; 0: none.")
    answer_tokens: int = Field(128, ge=1, le=4096, description="Longest answer when scoring.")


class TuneRequest(Schema):
    """A job to start."""

    model_config = ConfigDict(extra="forbid")
    name: AdapterName = Field(description="Of the adapter: the model is then `base+name`.")
    data: str = Field(
        min_length=1,
        max_length=4096,
        description="A JSON Lines file, or a folder with `train.jsonl` and, where there are any, "
        "`valid.jsonl` and `heldout.jsonl` (or `test.jsonl`).",
    )
    model: str = Field(DEFAULT_MODEL, max_length=200)
    valid_share: float = Field(
        0.1, gt=0.0, le=0.5, description="Of the examples, where there is no `valid.jsonl`."
    )
    settings: TuneSettings = Field(default_factory=TuneSettings)


class Duplicate(Schema):
    """An example that occurs again in another part, or in its own."""

    first: str = Field(description="`file:line`")
    again: str = Field(description="`file:line`")


class DataReport(Schema):
    """What a data set holds, and what is suspicious about it."""

    train: int
    valid: int
    heldout: int
    split: bool = Field(description="Whether the validation part was split off from the training.")
    duplicates: int = Field(description="Examples that occur again in the same part.")
    leaked: int = Field(description="Of `valid` and `heldout`: prompts that occur in `train` too.")
    samples: list[Duplicate] = Field(description="The first of the duplicated and leaked ones.")


class ScoredAnswer(Schema):
    """One scored answer."""

    prompt: str
    expected: str
    got: str


class Score(Schema):
    """How well held-out examples are answered, greedily."""

    examples: int
    exact: float = Field(description="Share of answers that are as expected, spaces aside.")
    fields: float | None = Field(
        None, description="Where JSON objects are expected: share of fields with the right value."
    )
    similarity: float = Field(description="Mean F1 of the words.")
    answers: list[ScoredAnswer] = Field(default_factory=list, description="The first few.")

    @property
    def main(self) -> float:
        """The one figure: fields where there are any, else exact."""
        return self.exact if self.fields is None else self.fields


class Base(Schema):
    """What every event has."""

    sequence: int = 0
    at: float = Field(0.0, description="Seconds since the epoch.")


class TuneStarted(Base):
    """Learning begins, or goes on after an interruption."""

    type: Literal["started"] = "started"
    step: int = Field(description="Steps that are done already.")
    steps: int
    trained_parameters: int
    parameters: int
    method: Literal["lora", "qlora"]
    longest: int = Field(description="Tokens of the longest example.")


class TuneNote(Base):
    """Something that the person should know."""

    type: Literal["note"] = "note"
    text: str


class TuneLoss(Base):
    """The mean training loss since the last report."""

    type: Literal["loss"] = "loss"
    step: int
    loss: float
    tokens_per_second: float
    memory_bytes: int


class TuneValidation(Base):
    """The loss on the validation part."""

    type: Literal["validation"] = "validation"
    step: int
    loss: float
    best: bool = Field(description="Whether it is the lowest so far.")


class TuneCheckpoint(Base):
    """A checkpoint is on the disk: an interruption now loses nothing before it."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int


class TuneScore(Base):
    """The score of the held-out part."""

    type: Literal["score"] = "score"
    when: Literal["before", "after"]
    score: Score


class TuneStateChange(Base):
    """The job has another state."""

    type: Literal["state"] = "state"
    state: TuneState
    detail: str = ""


TuneEvent = Annotated[
    TuneStarted
    | TuneNote
    | TuneLoss
    | TuneValidation
    | TuneCheckpoint
    | TuneScore
    | TuneStateChange,
    Field(discriminator="type"),
]


class TuneJob(Schema):
    """A job and how it stands."""

    id: str
    owner: str
    name: str
    model: str
    state: TuneState
    detail: str = Field(description="Why it failed, or waits.")
    settings: TuneSettings
    data: DataReport
    step: int
    steps: int
    best_step: int | None = None
    best_loss: float | None = None
    before: Score | None = None
    after: Score | None = None
    adapter: str | None = Field(None, description="The model id with the adapter, once it is done.")
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None


class TuneJobs(Schema):
    """Jobs, newest first."""

    jobs: list[TuneJob]


class FuseRequest(Schema):
    """How to write the tuned model out."""

    model_config = ConfigDict(extra="forbid")
    unpacked: bool = Field(
        True, description="Write 16-bit weights; else packed as the base model's are."
    )


class Fused(Schema):
    """A model with its adapter worked in, as files."""

    folder: str
    size_bytes: int
    format: Literal["mlx"] = "mlx"
