"""Measure search on a collection in BEIR layout, through the HTTP API of a server.

    python benchmarks/retrieval.py --data ../shared/data/scifact [--quick] [--check]

The corpus is written as one text file a document and ingested; each query is searched by words, by
meaning and by both, one after the other. A document counts with its best passage. The last line is
the figure that matters; ``--check`` fails where it is below the floor.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, quantiles

from uait_kernel.client import Client
from uait_server_ext.workflows.server import own_server

MODES = ("text", "dense", "hybrid")
FLOOR = 0.71
PASSAGES = 100
QUICK_QUERIES = 30
QUICK_DOCUMENTS = 120
COLLECTION = "benchmark"

Relevance = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Task:
    """Documents, queries and which documents are relevant to which query, by id."""

    documents: Mapping[str, str]
    queries: Mapping[str, str]
    relevance: Relevance


@dataclass
class Scores:
    """Figures of each query in one search mode."""

    ndcg: list[float] = field(default_factory=list)
    recall_10: list[float] = field(default_factory=list)
    recall_100: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder in BEIR layout")
    parser.add_argument("--quick", action="store_true", help="a sample that takes a minute")
    parser.add_argument("--check", action="store_true", help=f"fail below nDCG@10 {FLOOR}")
    parser.add_argument("--url", help="a running server on this machine; else one is started")
    parser.add_argument("--token", help="its token")
    options = parser.parse_args(arguments)

    task = read(options.data)
    if options.quick:
        task = sample(task)
    with tempfile.TemporaryDirectory(prefix="uait-retrieval-") as name:
        folder = Path(name)
        with client(folder, options.url, options.token) as api:
            ids = write_files(task, folder / "corpus")
            ingest(api, folder / "corpus")
            try:
                scores = search(api, task, ids)
            finally:
                api.delete(COLLECTION)
    report(options.data.name, task, scores)
    figure = mean(scores["hybrid"].ndcg)
    print(f"hybrid nDCG@10 {figure:.3f}")
    return 1 if options.check and figure < FLOOR else 0


def read(folder: Path) -> Task:
    """Read corpus.jsonl, queries.jsonl and qrels/test.tsv; keep queries that have a judgement."""
    relevance: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, score = line.split("\t")
        if int(score) > 0:
            relevance.setdefault(query, {})[document] = int(score)
    documents = {
        entry["_id"]: "\n\n".join(part for part in (entry.get("title"), entry["text"]) if part)
        for entry in _lines(folder / "corpus.jsonl")
    }
    queries = {
        entry["_id"]: entry["text"]
        for entry in _lines(folder / "queries.jsonl")
        if entry["_id"] in relevance
    }
    return Task(documents, queries, relevance)


def sample(task: Task) -> Task:
    """Return the first queries with their documents and some others."""
    queries = dict(list(task.queries.items())[:QUICK_QUERIES])
    wanted = dict.fromkeys(id_ for query in queries for id_ in task.relevance[query])
    wanted |= dict.fromkeys(list(task.documents)[:QUICK_DOCUMENTS])
    return Task({id_: task.documents[id_] for id_ in wanted}, queries, task.relevance)


@contextmanager
def client(folder: Path, url: str | None, token: str | None) -> Iterator[Client]:
    """Return a client of the given server, or of one that runs as long as this."""
    if url:
        yield Client(url, token)
        return
    options = {"data_dir": str(folder / "state"), "knowledge_roots": [str(folder)]}
    with own_server(folder, options=options) as server:
        yield Client(server.url, server.token)


def write_files(task: Task, folder: Path) -> dict[str, str]:
    """Write one file a document; return the id of each by its file's name."""
    folder.mkdir()
    ids = {}
    for number, (id_, text) in enumerate(task.documents.items()):
        name = f"{number:06}.txt"
        (folder / name).write_text(text, encoding="utf-8")
        ids[name] = id_
    return ids


def ingest(api: Client, folder: Path) -> None:
    """Ingest the files and say what it took."""
    with api.ingest(str(folder), COLLECTION) as events:
        for event in events:
            if event["type"] == "file" and event["state"] == "failed":
                print(f"failed: {event['path']}: {event['error']}", file=sys.stderr)
            if event["type"] == "done":
                seconds, passages = event["seconds"], event["chunks"]
                print(
                    f"ingested {event['added']} documents, {passages} passages in "
                    f"{seconds:.0f} s ({passages / seconds:.0f} passages/s)"
                )


def search(api: Client, task: Task, ids: Mapping[str, str]) -> dict[str, Scores]:
    """Search every query in every mode, the modes interleaved."""
    scores = {mode: Scores() for mode in MODES}
    for query, text in task.queries.items():
        relevant = task.relevance[query]
        for mode in MODES:
            began = time.perf_counter()
            hits = api.search(text, COLLECTION, k=PASSAGES, mode=mode)
            seconds = time.perf_counter() - began
            # Hits come best first, so a document stands where its best passage does.
            ranked = list(dict.fromkeys(ids[hit.path.rpartition("/")[2]] for hit in hits))
            found = scores[mode]
            found.ndcg.append(ndcg(ranked[:10], relevant))
            found.recall_10.append(recall(ranked[:10], relevant))
            found.recall_100.append(recall(ranked[:100], relevant))
            found.milliseconds.append(1_000 * seconds)
    return scores


def ndcg(ranked: Sequence[str], relevant: Mapping[str, int]) -> float:
    """Return the normalised discounted cumulative gain of a ranking's first ten."""
    gain = sum(relevant.get(id_, 0) / math.log2(place + 2) for place, id_ in enumerate(ranked))
    best = sorted(relevant.values(), reverse=True)[:10]
    return gain / sum(score / math.log2(place + 2) for place, score in enumerate(best))


def recall(ranked: Sequence[str], relevant: Mapping[str, int]) -> float:
    """Return the share of the relevant documents that were found."""
    return len(set(ranked) & set(relevant)) / len(relevant)


def report(name: str, task: Task, scores: Mapping[str, Scores]) -> None:
    """Print the table."""
    print(f"{name}: {len(task.documents)} documents, {len(task.queries)} queries")
    columns = ("nDCG@10", "recall@10", "recall@100", "p50 ms", "p95 ms")
    print(f"{'mode':8}" + "".join(f"{column:>12}" for column in columns))
    for mode, found in scores.items():
        cuts = quantiles(found.milliseconds, n=20)
        print(
            f"{mode:8}{mean(found.ndcg):12.3f}{mean(found.recall_10):12.3f}"
            f"{mean(found.recall_100):12.3f}{cuts[9]:12.1f}{cuts[18]:12.1f}"
        )
    print(f"recall@100: among the documents of the {PASSAGES} best passages")


def _lines(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


if __name__ == "__main__":
    sys.exit(main())
