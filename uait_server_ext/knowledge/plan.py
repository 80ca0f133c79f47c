"""Decide what an ingest has to do, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from uait_server_ext.errors import InvalidInput
from uait_server_ext.knowledge.store import KnownDocument, Source, SourceFile, Store, below
from uait_server_ext.knowledge.walk import find_files


@dataclass(slots=True)
class Plan:
    """The work of one ingest; every file is in one of the lists."""

    sources: list[Source] = field(default_factory=list)
    todo: list[SourceFile] = field(default_factory=list)
    unchanged: list[SourceFile] = field(default_factory=list)
    failed: dict[SourceFile, str] = field(default_factory=dict)
    removed: dict[int, str] = field(default_factory=dict)
    vanished: list[Source] = field(default_factory=list)
    known: dict[str, KnownDocument] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    @property
    def files(self) -> int:
        """Number of files that will be reported."""
        lists = (self.todo, self.unchanged, self.failed, self.removed, self.vanished)
        return sum(len(part) for part in lists)


class Planner:
    """Makes plans; ``is_allowed`` says where links may lead."""

    def __init__(self, *, is_allowed: Callable[[Path], bool], max_file_bytes: int) -> None:
        self._is_allowed = is_allowed
        self._max_file_bytes = max_file_bytes

    def for_path(self, path: Path, store: Store | None) -> Plan:
        """Plan to add or refresh a file or folder.

        Raises:
            InvalidInput: there is no document in it, and none of it was added before.

        """
        others = store.sources() if store else []
        plan = Plan()
        self._refresh(plan, Source(str(path), _shown(path, others)), store, others)
        if not plan.files:
            raise InvalidInput(
                f"There are no documents in {path}: UAIT reads Markdown, text, HTML, PDF, "
                "notebooks and source code; hidden files are left out."
            )
        return plan

    def to_resume(self, store: Store) -> Plan:
        """Plan to go on with what is pending or, where nothing is, to refresh all sources.

        Raises:
            InvalidInput: nothing was ever added.

        """
        plan = Plan()
        pending = store.pending()
        if pending:
            plan.known = store.known()
            for waiting in pending:
                self._resume(plan, waiting)
            return plan
        sources = store.sources()
        for source in sources:
            if Path(source.path).exists():
                self._refresh(plan, source, store, sources)
            else:
                plan.failed[SourceFile(source.path, source.shown, 0, 0)] = (
                    f"{source.path} is not there; its documents are kept. Bring it back, or "
                    "delete the collection and add what is left."
                )
        if not plan.files and not plan.sources:
            raise InvalidInput("Nothing was added to this collection yet: give a path to add.")
        return plan

    def _refresh(
        self, plan: Plan, source: Source, store: Store | None, others: Sequence[Source]
    ) -> None:
        known = store.known(under=source.path) if store else {}
        found = find_files(Path(source.path), source.shown, self._is_allowed)
        plan.sources.append(source)
        plan.known |= known
        plan.failed |= found.failed
        for file in found.files:
            self._sort_in(plan, file, known)
        here = {file.path for file in found.files}
        inner = _prefixes(s.path for s in others if s.path.startswith(below(source.path)))
        unseen = _prefixes(found.unseen)
        plan.removed |= {
            document.id: document.shown
            for path, document in known.items()
            if path not in here
            and not below(path).startswith(unseen)
            # What the walk leaves out may have been added by its own name.
            and not (below(path).startswith(inner) and Path(path).exists())
        }

    def _sort_in(self, plan: Plan, file: SourceFile, known: Mapping[str, KnownDocument]) -> None:
        if file.path in plan.seen:
            return
        plan.seen.add(file.path)
        earlier = known.get(file.path)
        if earlier:
            file = replace(file, shown=earlier.shown)
        if file.size_bytes > self._max_file_bytes:
            plan.failed[file] = (
                f"The file has {file.size_bytes / 1e6:,.0f} MB, the limit is "
                f"{self._max_file_bytes / 1e6:,.0f} MB: split it, or raise UaitApp.max_file_bytes."
            )
        elif earlier and (earlier.size_bytes, earlier.modified_ns) == (
            file.size_bytes,
            file.modified_ns,
        ):
            plan.unchanged.append(file)
        else:
            plan.todo.append(file)

    def _resume(self, plan: Plan, waiting: Source) -> None:
        try:
            status = Path(waiting.path).stat()
        except OSError:
            if document := plan.known.get(waiting.path):
                plan.removed[document.id] = document.shown
            else:
                plan.vanished.append(waiting)
            return
        file = SourceFile(waiting.path, waiting.shown, status.st_size, status.st_mtime_ns)
        self._sort_in(plan, file, plan.known)


def _shown(path: Path, others: Sequence[Source]) -> str:
    """Return the folder's or file's name; its whole path where another source has that name."""
    for source in others:
        if source.path == str(path):
            return source.shown
    taken = {source.shown for source in others}
    return path.as_posix() if not path.name or path.name in taken else path.name


def _prefixes(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(below(path) for path in paths)
