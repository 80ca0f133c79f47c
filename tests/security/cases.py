"""The numbered negative cases: what must be refused, and which tests prove it.

A test proves a case by its name: `test_010_...` proves case 10. The table of the documentation is
made from here (`docs/developers/security-tests.md`). Number 79 was never given.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).parent.parent

CHAPTERS: dict[str, dict[int, str]] = {
    "Passwords and second factors (ASVS V6)": {
        1: "wrong password: 401, told apart from an unknown user by neither body nor time",
        2: "unknown user: 401, after hashing all the same",
        3: "too many failures for one account: 429, the right password too",
        4: "one address, many accounts: 429 before any hashing",
        5: "short, common or obvious password: 400",
        6: "long and Unicode passphrases are whole; a megabyte is not hashed",
        7: "new password without the current one: refused",
        8: "a reset link keeps the second factor, works once, expires",
        9: "no default account; the setup link works once",
        10: "one-time code used twice: 401",
        11: "one-time code out of its window: 401; too many: locked",
        12: "a login that lacks its second factor reaches nothing else",
        13: "factors change only after a fresh proof",
        14: "recovery code used twice: 401; kept as a hash only",
        15: "passkey of another origin, stale, another's, cloned, unverified: 401",
        16: "passkey challenge used twice: 400",
        17: "ten logins at once leave other requests fast",
    },
    "OAuth and OpenID Connect (ASVS V10)": {
        18: "unknown state: 400",
        19: "callback replayed: 400",
        20: "flow of one browser finished by another: 400",
        21: "another provider's `iss`: 400",
        22: "ID token unsigned, wrongly signed, of unknown key, out of its time: 400",
        23: "ID token for another client: 400",
        24: "nonce missing or wrong: 400",
        25: "discovery document of another issuer: 400",
        26: "an e-mail address never links accounts silently",
        27: "GitHub accounts are known by number, not by name",
        28: "Entra token of another tenant: 403",
        29: "code without its verifier: refused",
        30: "`next` that leads elsewhere: the local default",
        31: "provider down, slow, huge: an error in time, other logins go on",
    },
    "Tokens (ASVS V9)": {
        32: "no algorithm: 401",
        33: "public key taken for a secret: 401",
        34: "key or its address in the header: 401, nothing is fetched",
        35: "hostile `kid`: 401",
        36: "expired, not yet valid, strange times: 401",
        37: "other audience, issuer, kind of token: 401",
        38: "unknown `crit`, unencoded payload: 401",
        39: "a claim twice: 401",
        40: "owner deleted, disabled, or without the role: at once",
        41: "a weak or missing signing key: no start",
        42: "two tokens that begin alike are two",
        43: "a rotated key verifies in its grace only",
    },
    "Sessions and refresh (ASVS V7)": {
        44: "a new session id at login, factor, role change; a chosen one is refused",
        45: "logout ends cookie, tokens and open WebSockets in 5 s",
        46: "refresh token used twice: its family ends",
        47: "twenty refreshes at once: one winner",
        48: "absolute and idle limits: 401",
        49: "password or factor change ends other sessions; disabling ends all",
        50: "another's session id: 404",
        51: "cookie flags; no token in storage or URL",
        52: "a WebSocket ends with its login",
        53: "Redis gone: nobody gets in, and it says so",
    },
    "Authorisation (ASVS V8)": {
        54: "every route of the live server, as everyone: as written, else denied",
        55: "a viewer changes nothing of JupyterLab",
        56: "a viewer opens no kernel, terminal, event socket",
        57: "another's id in path, body, nested: 404",
        58: "role and owner in one's own profile: refused",
        59: "nobody grants more than they have",
        60: "the last administrator stays",
        61: "a limited API key is limited by every way of sending it",
        62: "two subclasses of one handler: each by its own resource",
        63: "UAIT removed, broken or replaced: closed, or no start",
    },
    "Web and API (ASVS V3, V4)": {
        64: "cross-site, unsafe modes, other media types: refused",
        65: "login and logout by another site: refused",
        66: "foreign and look-alike origins read nothing",
        67: "another host name: 403",
        68: "security headers on every answer, errors too",
        69: "WebSocket of a foreign page: 403",
        70: "forwarded addresses of strangers: not believed",
        71: "huge, deep, bombed, malformed requests: 4xx, bounded memory",
        72: "limits per user, address and key; 429 says when",
        73: "unknown methods: 405; schemathesis, all checks: nothing",
    },
    "Injection (ASVS V1, V2)": {
        74: "SQL in every field and credential; sqlmap and wapiti: nothing",
        75: "templates stay text",
        76: "shell characters in settings run nothing",
        77: "line ends and a megabyte in names: escaped and cut in the log",
        78: "unknown fields: 422",
    },
    "Files and outgoing requests (ASVS V5)": {
        80: "archives that escape, link or burst",
        81: "uploaded HTML and SVG run in a sandbox",
        82: "addresses inside, in every spelling, by redirect or name: blocked",
        83: "other schemes: blocked",
    },
    "Vault (ASVS V11, V13, V14)": {
        84: "the database without its key shows no secret",
        85: "swapped, restored, changed, wrong key: an error and an event",
        86: "rotation interrupted: every secret readable",
        87: "no permission, or no audit log: no secret",
        88: "audit log edited or cut: found",
        89: "no secret in logs, lists, errors, kernels",
        90: "secrets move from the environment, once and cleanly",
        91: "sensitive call of a key: signed, whole, fresh, once",
    },
    "Models, agents, kernels (ASVS V16)": {
        92: "an injected instruction gets no tool without the user",
        93: "a model's tool call reaches nothing of another user",
        94: "markup in a model's text is inert everywhere",
        95: "an image in a model's text sends no request",
        96: "a secret's name in a model's text stays a name",
        97: "fifty streams stop at the budget",
        98: "a kernel's token reaches models and knowledge only, and dies with the kernel",
        99: "forged or replayed kernel proof: 403",
        100: "a kernel sees no secret of the server, nor its memory",
        101: "another user of the machine hears no kernel",
        102: "under JupyterHub the hub is the identity",
        103: "the audit report lists what fails, and exits non-zero",
    },
}

REASONS: dict[int, str] = {}
"""Cases that cannot be tested on a plain Linux machine with this version, and why."""


def cases() -> dict[int, str]:
    """Return every case by its number."""
    return {number: text for chapter in CHAPTERS.values() for number, text in chapter.items()}


def proofs() -> dict[int, list[str]]:
    """Return the tests that prove each case: `file: what the name says`."""
    found: dict[int, set[str]] = defaultdict(set)
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                start, number, words = (node.name + "__").split("_", 2)
                if start == "test" and len(number) == 3 and number.isdecimal():
                    said = words.strip("_").replace("_", " ")
                    found[int(number)].add(f"{path.relative_to(TESTS).as_posix()}: {said}")
    return {number: sorted(names) for number, names in sorted(found.items())}


def table() -> str:
    """Return the cases with their tests, as Markdown."""
    proved = proofs()
    lines: list[str] = []
    for chapter, members in CHAPTERS.items():
        lines += ["", f"## {chapter}", "", "| | case | proved by |", "|---|---|---|"]
        for number, text in members.items():
            by: dict[str, list[str]] = defaultdict(list)
            for one in proved.get(number, []):
                file, _, words = one.partition(": ")
                by[file].append(words)
            tests = "<br>".join(f"`{file}`: {'; '.join(words)}" for file, words in by.items())
            without = f"*{REASONS.get(number, 'no test')}*"
            lines.append(f"| {number} | {text} | {tests or without} |")
    return "\n".join([*lines, ""])
