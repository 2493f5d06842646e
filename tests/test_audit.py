"""CI fails on a known vulnerability, and says so where it can't know."""

import importlib.util
import json
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def verdict():
    spec = importlib.util.spec_from_file_location("audit", REPO / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.verdict


def report(vulns: list[dict]) -> str:
    return json.dumps({"dependencies": [{"name": "torch", "version": "2.11.0", "vulns": vulns}], "fixes": []})


@pytest.mark.parametrize(
    "status, printed, complaint, state, said",
    [
        (0, report([]), "", "clean", "no known vulnerability in 1 packages"),
        (1, report([{"id": "CVE-1", "fix_versions": ["3"]}]), "", "vulnerable", "torch 2.11.0: CVE-1, mended in 3"),
        (1, report([{"id": "CVE-1", "fix_versions": []}]), "", "vulnerable", "mended in no release"),
        (1, "", "WARNING: x\nERROR: absl-py could not be audited", "unknown", "NOT AUDITED: ERROR: absl-py"),
        (1, report([]), "ERROR: half of it", "unknown", "NOT AUDITED: ERROR: half of it"),
        (1, "<html>", "", "unknown", "NOT AUDITED: pip-audit ended with status 1"),
    ],
)
def test_what_an_audit_says(verdict, status, printed, complaint, state, said):
    found, text = verdict(status, printed, complaint)
    assert found == state and said in text


def test_ci_audits():
    assert "make audit" in (REPO / ".ci" / "run").read_text()
