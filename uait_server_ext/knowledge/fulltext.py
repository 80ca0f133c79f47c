"""The full-text index: tantivy (BM25, English stems) over the chunks' texts, derived from the rows.

A query is never parsed: its text is analysed like a document's, and any of its terms may match. So
every text is a valid query.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import tantivy

from uait_server_ext.knowledge.seal import Seal, sealed_seq

if TYPE_CHECKING:
    from uait_server_ext.knowledge.store import Ids

FOLDER = "text"
FORM = "en_stem 1"
WRITER_BYTES = 32_000_000
MAX_QUERY_TERMS = 64
BACKGROUND = 100

Scores = npt.NDArray[np.float32]


class FullText:
    """Texts by chunk id; ``seq`` is the journal entry up to which the index is current."""

    name = FOLDER

    def __init__(self, folder: Path, store_uid: str) -> None:
        self._folder = folder / FOLDER
        self._seal = folder / f"{FOLDER}.seal"
        self._form = f"{store_uid} {FORM}"
        self._analyse = english()
        builder = tantivy.SchemaBuilder()
        builder.add_integer_field("id", indexed=True, fast=True)
        builder.add_text_field("body", tokenizer_name="en_stem", index_option="freq")
        self._schema = builder.build()
        self._writer: tantivy.IndexWriter | None = None
        self.seq: int | None = sealed_seq(self._seal, self._folder, self._form)
        if self.seq is None:
            self.clear()
            return
        try:
            self._index = tantivy.Index(self._schema, str(self._folder))
        except ValueError:  # another version's file format
            self.clear()

    def __len__(self) -> int:
        return int(self._index.searcher().num_docs)

    def clear(self) -> None:
        """Start anew with no texts."""
        self._seal.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        self._index = tantivy.Index(self._schema, str(self._folder))
        self._writer = None
        self.seq = None

    def apply(self, gone: Ids, ids: Ids, texts: Sequence[str]) -> None:
        """Remove and add chunks, replacing ids that are there; searches see it after `finish`."""
        if self._writer is None:
            self._writer = self._index.writer(WRITER_BYTES, 1)
        for id_ in (*gone.tolist(), *ids.tolist()):
            self._writer.delete_documents_by_term("id", id_)
        for id_, text in zip(ids.tolist(), texts, strict=True):
            self._writer.add_document(tantivy.Document(id=id_, body=text))

    def finish(self, seq: int) -> None:
        """Commit what was applied and seal it as journal entry ``seq``; durable on return."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.commit()
            # Merges change the files, so they must end before the seal is written.
            writer.wait_merging_threads()
            self._index.reload()
        files = [file for file in sorted(self._folder.iterdir()) if file.name[0] != "."]
        Seal(self._form, seq).write(self._seal, files)
        self.seq = seq

    def abandon(self) -> None:
        """Forget what was applied and not finished."""
        self._writer = None

    def terms(self, text: str) -> list[str]:
        """Return the distinct terms of a text, in order: lower-case stems."""
        return list(dict.fromkeys(self._analyse.analyze(text)))

    def search(self, query: str, limit: int) -> tuple[Ids, Scores]:
        """Return ids and BM25 scores of the chunks that share a term with the query, best first."""
        terms = self.terms(query)
        searcher = self._index.searcher()
        if len(terms) > MAX_QUERY_TERMS:
            terms = sorted(terms, key=lambda term: searcher.doc_freq("body", term) or math.inf)
        wanted = tantivy.Query.boolean_query(
            [
                (
                    tantivy.Occur.Should,
                    tantivy.Query.term_query(self._schema, "body", term, "freq"),
                )
                for term in terms[:MAX_QUERY_TERMS]
            ]
        )
        hits = searcher.search(wanted, limit, count=False).hits
        ids = searcher.fast_field_values("id", [address for _, address in hits])
        return np.array(ids, dtype=np.int64), np.array([s for s, _ in hits], dtype=np.float32)

    def rarity(self, terms: Iterable[str]) -> dict[str, float]:
        """Return each term's inverse document frequency in [0, 1]: 1 where no chunk has it.

        A small collection says little of how rare a word is, so as many chunks as
        ``BACKGROUND`` that have none of the terms are counted in.
        """
        searcher = self._index.searcher()
        chunks = searcher.num_docs + BACKGROUND
        return {
            term: 1 - math.log(1 + searcher.doc_freq("body", term)) / math.log(chunks)
            for term in terms
        }


def english() -> tantivy.TextAnalyzer:
    """Return the analyser that tantivy knows as ``en_stem``, to take queries apart with."""
    return (
        tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        .filter(tantivy.Filter.remove_long(40))
        .filter(tantivy.Filter.lowercase())
        .filter(tantivy.Filter.stemmer("english"))
        .build()
    )
