"""Scanners of the source: own semgrep rules, bandit, and the floors of what we stand on.

What a scanner reports and a person has found harmless is in `REVIEWED`, with the reason. An entry
that matches nothing any more fails: exceptions do not outlive their cause.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from tests.conftest import REPOSITORY
from tests.security.tools import tool
from uait_server_ext.doctor.versions import FLOORS

RULES = Path(__file__).parent / "rules"
SOURCES = ("uait_server_ext", "uait_kernel", "labextension/src")
SUFFIXES = {"python": "py", "typescript": "tsx"}

REVIEWED: dict[tuple[str, str], tuple[int, str]] = {
    ("no-code-from-data", "uait_kernel/magics/interpolation.py"): (
        1,
        "`{expression}` in a magic is the user's own code in the user's own kernel",
    ),
    ("no-sql-from-text", "uait_server_ext/knowledge/store.py"): (
        2,
        "a sequence's name and a count that are constants of the module; a row of placeholders",
    ),
    ("no-sql-from-text", "uait_server_ext/storage/database.py"): (
        1,
        "pragmas take no parameters; these are constants",
    ),
    ("no-sql-from-text", "uait_server_ext/inference/vector_cache.py"): (
        1,
        "a row of placeholders",
    ),
    ("B608", "uait_server_ext/inference/vector_cache.py"): (1, "a row of placeholders"),
    ("no-sql-from-text", "uait_server_ext/routing/answers_file.py"): (
        1,
        "pragmas take no parameters; these are constants",
    ),
    ("no-plain-comparison-of-secrets", "uait_server_ext/routing/verify.py"): (
        1,
        "tokens of a model's answer, which are no secret",
    ),
    ("B104", "uait_kernel/endpoint.py"): (
        1,
        "the address is recognised, to connect to loopback instead; nothing listens",
    ),
    ("B104", "uait_server_ext/doctor/live.py"): (
        1,
        "the address is recognised, to ask the loopback instead; nothing listens",
    ),
    ("B307", "uait_kernel/magics/interpolation.py"): (
        1,
        "`{expression}` in a magic is the user's own code in the user's own kernel",
    ),
    ("B608", "uait_server_ext/knowledge/store.py"): (
        3,
        "row ids that were checked to be whole numbers, and constants",
    ),
}


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    return [
        rule
        for page in sorted(RULES.glob("*.yaml"))
        for rule in yaml.safe_load(page.read_text("utf-8"))["rules"]
    ]


def semgrep(*targets: str, cwd: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        [
            tool("semgrep"),
            "scan",
            "--metrics=off",
            "--disable-version-check",
            "--no-git-ignore",
            "--quiet",
            "--json",
            "--jobs=1",
            f"--config={RULES}",
            *targets,
        ],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert not [one for one in report["errors"] if one["level"] == "error"], report["errors"]
    found: list[dict[str, Any]] = report["results"]
    return found


@pytest.fixture(scope="module")
def findings(
    rules: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[str, str, int]]:
    """Scan the source and each rule's examples, in one run: half of its time is the start."""
    examples = tmp_path_factory.mktemp("examples")
    for rule in rules:
        for kind in ("bad", "good"):
            name = f"{rule['id']}.{kind}.{SUFFIXES[rule['languages'][0]]}"
            (examples / name).write_text(rule["metadata"][kind], encoding="utf-8")
    return [
        (finding["check_id"].rpartition(".")[2], finding["path"], finding["start"]["line"])
        for finding in semgrep(*SOURCES, str(examples), cwd=REPOSITORY)
    ]


def test_rules_find_what_they_are_for(
    rules: list[dict[str, Any]], findings: list[tuple[str, str, int]]
) -> None:
    """Each rule finds its bad example and leaves its good one."""
    found = {(rule, Path(path).stem) for rule, path, _ in findings}
    for rule in rules:
        assert (rule["id"], f"{rule['id']}.bad") in found, f"{rule['id']} misses its bad example"
        assert (rule["id"], f"{rule['id']}.good") not in found, f"{rule['id']} finds its good one"


def test_own_rules_find_nothing_in_the_source(
    rules: list[dict[str, Any]], findings: list[tuple[str, str, int]]
) -> None:
    ours = [finding for finding in findings if not Path(finding[1]).is_absolute()]
    unreviewed({rule["id"] for rule in rules}, ours)


def test_bandit_finds_nothing_in_the_source() -> None:
    """Medium and high; what is low is checked by ruff's rules of the same origin."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bandit", "--quiet", "--recursive", "--format=json"),
            *("--severity-level=medium", "--ignore-nosec", "uait_server_ext", "uait_kernel"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    report = json.loads(done.stdout)
    assert not report["errors"]
    assert report["metrics"]["_totals"]["loc"] > 5_000, "bandit read almost nothing"
    unreviewed(
        {rule for rule, _ in REVIEWED if rule.startswith("B")},
        [
            (f["test_id"], f["filename"].removeprefix("./"), f["line_number"])
            for f in report["results"]
        ],
    )


def unreviewed(rules: set[str], findings: list[tuple[str, str, int]]) -> None:
    """Compare what was found with what was reviewed."""
    counted = Counter((rule, path) for rule, path, _ in findings)
    new = [f for f in findings if counted[f[:2]] > REVIEWED.get(f[:2], (0, ""))[0]]
    assert not new, f"not reviewed: {new}"
    stale = [key for key, (n, _) in REVIEWED.items() if key[0] in rules and counted[key] < n]
    assert not stale, f"reviewed but no longer there: {stale}"


@pytest.mark.parametrize("package", sorted(FLOORS))
def test_installed_versions_have_the_known_fixes(package: str) -> None:
    try:
        installed = Version(metadata.version(package))
    except metadata.PackageNotFoundError:
        assert FLOORS[package].optional, f"{package} is not installed"
        return
    assert installed >= Version(FLOORS[package].version), FLOORS[package].reason


def test_declared_floors_have_the_known_fixes() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    listed = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        listed.extend(extra)
    declared: dict[str, Version] = {}
    for line in listed:
        requirement = Requirement(line)
        floors = [Version(s.version) for s in requirement.specifier if s.operator == ">="]
        if floors:
            declared[requirement.name.lower()] = max(floors)
    low = [
        f"{package}>={floor.version}: {floor.reason}"
        for package, floor in FLOORS.items()
        if package.lower() in declared and declared[package.lower()] < Version(floor.version)
    ]
    assert not low, low
    missing = [
        package
        for package, floor in FLOORS.items()
        if not floor.optional and package.lower() not in declared
    ]
    assert not missing, f"without a floor in pyproject.toml: {missing}"
