"""An independent OpenID provider (npm `oidc-provider`) on a free port, and who logs in there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qsl, urljoin, urlsplit

import httpx

FOLDER = Path(__file__).parent / "oidc_provider"
CLIENT_ID, CLIENT_SECRET = "uait-test", "a client secret that both sides know"
MAX_STEPS = 12


@contextmanager
def real_provider(*redirect_uris: str) -> Iterator[str]:
    """Run the provider for one client and yield its issuer.

    A redirect URI of `http://127.0.0.1/…` stands for every port there (RFC 8252 section 7.3).
    """
    if not (FOLDER / "node_modules" / "oidc-provider").is_dir():
        raise AssertionError(f"run `npm ci` in {FOLDER}, or `make pytest`, which does")
    process = subprocess.Popen(
        ["node", "provider.mjs", CLIENT_ID, CLIENT_SECRET, *redirect_uris],
        cwd=FOLDER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("issuer "), "the provider did not start"
        yield line.split()[1]
    finally:
        process.kill()
        process.communicate()


def log_in_there(url: str, name: str, *, consent: bool = True) -> tuple[str, dict[str, str]]:
    """Do what a person does in the provider's pages; return where it sends the browser back to."""
    issuer = urlsplit(url).netloc
    with httpx.Client(trust_env=False, timeout=20) as browser:
        answer = browser.get(url)
        for _ in range(MAX_STEPS):
            if answer.is_redirect:
                target = urljoin(str(answer.url), answer.headers["Location"])
                parts = urlsplit(target)
                if parts.netloc != issuer:
                    address = f"{parts.scheme}://{parts.netloc}{parts.path}"
                    return address, dict(parse_qsl(parts.query))
                answer = browser.get(target)
                continue
            assert answer.status_code == 200, answer.text
            form = re.search(r'<form[^>]+action="([^"]+)"', answer.text)
            assert form, answer.text
            action = urljoin(str(answer.url), form[1])
            if 'name="login"' in answer.text:
                answer = browser.post(
                    action, data={"prompt": "login", "login": name, "password": "any"}
                )
            elif consent:
                answer = browser.post(action, data={"prompt": "consent"})
            else:
                answer = browser.get(f"{str(answer.url).rstrip('/')}/abort")
        raise AssertionError("the provider's pages did not end")
