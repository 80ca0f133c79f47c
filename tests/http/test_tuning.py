"""Tuning over HTTP: what is asked for is checked before anything starts."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tornado.httpclient import HTTPResponse

from tests.http.test_system import problem_of
from tests.unit.inference.tiny_models import write_lines

Fetch = Callable[..., Awaitable[HTTPResponse]]
UNKNOWN = "tune_aaaaaaaaaaaaaaaa"


def post(fetch: Fetch, path: str, body: dict[str, Any]) -> Awaitable[HTTPResponse]:
    parts = ("uait", "v1", "tuning", *path.split("/"))
    headers = {"Content-Type": "application/json"}
    return fetch(*parts, method="POST", body=json.dumps(body), headers=headers)


async def test_examples_are_reported_on(jp_fetch: Fetch, jp_root_dir: Path) -> None:
    lines = [{"prompt": f"question {n % 9}", "completion": "yes"} for n in range(10)]
    write_lines(jp_root_dir / "examples.jsonl", lines)
    response = await post(jp_fetch, "check", {"name": "a", "data": "examples.jsonl"})
    report = json.loads(response.body)
    assert report["train"] + report["valid"] == 10
    assert report["split"]
    assert report["duplicates"] == 1
    jobs = await jp_fetch("uait", "v1", "tuning", "jobs")
    assert json.loads(jobs.body) == {"jobs": []}


async def test_a_wrong_line_is_422_with_its_number(jp_fetch: Fetch, jp_root_dir: Path) -> None:
    write_lines(jp_root_dir / "wrong.jsonl", [{"prompt": "a", "completion": "b"}, {"text": "c"}])
    problem = await problem_of(post(jp_fetch, "jobs", {"name": "a", "data": "wrong.jsonl"}))
    assert problem["status"] == 422
    assert problem["errors"][0]["location"] == "wrong.jsonl:2"


async def test_files_outside_the_servers_folders_are_refused(jp_fetch: Fetch) -> None:
    problem = await problem_of(post(jp_fetch, "check", {"name": "a", "data": "/etc/passwd"}))
    assert problem["status"] == 403
    for path in ("0" * 300, "a/" * 3000, "nul\0", "~nobody-of-that-name/x"):
        problem = await problem_of(post(jp_fetch, "check", {"name": "a", "data": path}))
        assert problem["status"] == 422


async def test_settings_and_jobs_that_do_not_exist_are_refused(jp_fetch: Fetch) -> None:
    body = {"name": "a", "data": "x", "settings": {"epochs": 3}}
    problem = await problem_of(post(jp_fetch, "jobs", body))
    assert problem["status"] == 422
    for path in (f"jobs/{UNKNOWN}/cancel", f"jobs/{UNKNOWN}/resume"):
        problem = await problem_of(post(jp_fetch, path, {}))
        assert problem["status"] in (404, 422)
    problem = await problem_of(jp_fetch("uait", "v1", "tuning", "jobs", UNKNOWN, "events"))
    assert problem["status"] == 404
