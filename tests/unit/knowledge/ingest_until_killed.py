"""Run as a process of its own: ingest a folder, print each file when it is reported durable."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.unit.knowledge.fakes import HashEmbedder, SayingChat
from uait_server_ext.knowledge import ingest
from uait_server_ext.knowledge.models import FileReport
from uait_server_ext.knowledge.service import KnowledgeBase


async def main(folder: Path) -> None:
    # The indexes follow and are saved all the time, so that kills hit those moments too.
    ingest.FOLLOW_SECONDS = ingest.SAVE_SECONDS = 0.0
    ingest.EMBED_AT_ONCE = 4
    base = KnowledgeBase(
        folder / "knowledge",
        embedder=HashEmbedder(seconds_each=0.002),
        chat=SayingChat(),
        root_dir=folder,
        allowed_roots=[folder],
    )
    await base.start()
    print("begun", flush=True)
    async for event in base.ingest("default", "documents"):
        if isinstance(event, FileReport):
            print(event.state, event.path, flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
