"""Importing, loading and removing models over HTTP, in a model cache of the test's own."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import HTTPResponse

from tests.http.test_models import events_of
from tests.http.test_system import problem_of
from tests.unit.inference.model_folders import chat_folder

Fetch = Callable[..., Awaitable[HTTPResponse]]


@pytest.fixture
def jp_server_config(jp_server_config: dict[str, Any], jp_root_dir: Path) -> dict[str, Any]:
    jp_server_config["UaitApp"]["model_cache"] = str(jp_root_dir / "models")
    return jp_server_config


def post(fetch: Fetch, *path: str, body: dict[str, Any] | None = None) -> Awaitable[HTTPResponse]:
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    content = json.dumps(body) if body is not None else ""
    return fetch("uait", "v1", "models", *path, method="POST", body=content, headers=headers)


def delete(fetch: Fetch, model: str) -> Awaitable[HTTPResponse]:
    return fetch("uait", "v1", "models", model, method="DELETE")


async def state_of(fetch: Fetch, model: str) -> dict[str, Any] | None:
    models = json.loads((await fetch("uait", "v1", "models")).body)["models"]
    found = [one for one in models if one["id"] == model]
    return found[0] if found else None


async def test_a_model_is_imported_listed_and_removed(jp_fetch: Fetch, jp_root_dir: Path) -> None:
    folder = chat_folder(jp_root_dir / "my-model")
    heard = events_of(await post(jp_fetch, "import", body={"path": "my-model", "id": "mine"}))
    assert {event["type"] for event in heard} == {"progress"}
    assert (heard[-1]["stage"], heard[-1]["model"]) == ("done", "mine")

    info = await state_of(jp_fetch, "mine")
    assert info is not None
    assert (info["state"], info["licence"]) == ("pulled", "apache-2.0")
    assert info["source"] == f"folder:{folder.resolve()}"
    assert info["capabilities"] == ["chat", "tools"]
    assert len(info["digest"]) == 64

    again = await problem_of(post(jp_fetch, "import", body={"path": str(folder), "id": "mine"}))
    assert again["code"] == "conflict"
    freed = json.loads((await delete(jp_fetch, "mine")).body)["freed_bytes"]
    assert freed >= info["size_bytes"]
    assert await state_of(jp_fetch, "mine") is None
    assert (await problem_of(delete(jp_fetch, "mine")))["code"] == "model-not-found"


async def test_only_files_of_the_server_s_folders_are_imported(
    jp_fetch: Fetch, jp_root_dir: Path, tmp_path: Path
) -> None:
    outside = chat_folder(tmp_path / "outside")
    link = jp_root_dir / "link"
    link.symlink_to(outside)
    for path in (str(outside), "link", "../outside", "~/outside"):
        problem = await problem_of(post(jp_fetch, "import", body={"path": path}))
        assert problem["code"] == "permission-denied"
    for path in ("nothing-here", "0" * 300, "a/" * 3000, "nul\0", "~nobody-of-that-name/x"):
        odd = await problem_of(post(jp_fetch, "import", body={"path": path}))
        assert odd["code"] == "invalid-input"


async def test_a_loaded_model_is_not_removed(jp_fetch: Fetch) -> None:
    await post(jp_fetch, "echo", "load")
    info = await state_of(jp_fetch, "echo")
    assert info is not None
    assert info["state"] == "loaded"
    problem = await problem_of(delete(jp_fetch, "echo"))
    assert problem["code"] == "conflict"
    assert "unload echo" in problem["detail"]
    await post(jp_fetch, "echo", "unload")
    info = await state_of(jp_fetch, "echo")
    assert info is not None
    assert info["state"] == "pulled"
    await delete(jp_fetch, "echo")


async def test_a_pull_is_followed_to_its_end(jp_fetch: Fetch) -> None:
    heard = events_of(await post(jp_fetch, "echo", "pull"))
    assert heard[-1] == {
        "type": "progress",
        "model": "echo",
        "stage": "done",
        "done_bytes": 0,
        "total_bytes": 0,
    }
    problem = await problem_of(post(jp_fetch, "nothing", "pull"))
    assert problem["code"] == "model-not-found"
