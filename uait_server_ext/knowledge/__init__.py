"""The knowledge base: collections of documents, ingested from files, searched and asked.

::

    service     KnowledgeBase: the one class that other packages use
    ingest      files → reading (worker process) → chunks → vectors → one transaction → report
    collection  one folder: rows.duckdb is the truth, vectors.usearch and text/ follow its journal
    retrieve    BM25 and dense candidates, fused;   evidence, answer: what they are worth, and say
"""
