"""Arrows between modules point one way, and no two modules or classes of the packages share a name.

Read from the source: imports inside functions and under TYPE_CHECKING count as those at the top do.
"""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
PLUGIN, CORE, COC, TOOLS = PACKAGES = ("lerobot_policy_world_modality", "world_modality_core", "coc_tools", "wm_tools")
ALLOWED = {PLUGIN: {PLUGIN, CORE, COC}, CORE: {CORE}, COC: {COC, CORE}, TOOLS: {TOOLS, PLUGIN, CORE, COC}}
STUDIES = f"{CORE}.studies"

# What is not so yet. An entry that is mended must go: these lists only get shorter.
CIRCLES = []
MODULE_NAMES: set[str] = set()
CLASS_NAMES: set[str] = set()


@dataclass(frozen=True)
class Import:
    """One imported module; `is_late` if it is not imported with the module that names it."""

    target: str
    is_late: bool


class Tree:
    """The modules below a folder, what they import, and the classes that they define."""

    def __init__(self, root: Path, packages: tuple[str, ...]) -> None:
        files = [path for package in packages for path in sorted((root / package).rglob("*.py"))]
        self.parsed = {_module(path.relative_to(root)): ast.parse(path.read_text()) for path in files}
        self._packages = {_module(path.relative_to(root)) for path in files if path.stem == "__init__"}
        self.imports = {name: set(self._imports(name, node, False)) for name, node in self.parsed.items()}

    def _imports(self, module: str, node: ast.AST, is_late: bool):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, is_late) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + (module in self._packages)]
                base = ".".join([*parts, *filter(None, [node.module])])
            names = (f"{base}.{alias.name}" for alias in node.names)
            yield from (Import(name if name in self.parsed else base, is_late) for name in names)
        is_late |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        is_late |= isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            yield from self._imports(module, child, is_late)

    def circles(self) -> list[set[str]]:
        """One circle after the other; each is cut before the next is looked for."""
        graph = {name: {i.target for i in found} & set(self.parsed) for name, found in self.imports.items()}
        circles = []
        while True:
            try:
                TopologicalSorter(graph).prepare()
                return circles
            except CycleError as error:
                first, second, *_ = circle = error.args[1]  # each is imported by the next
                graph[second].discard(first)
                if set(circle) not in circles:
                    circles.append(set(circle))

    def foreign_imports(self, module: str) -> set[str]:
        """Top-level names of other packages that come with the import of a module."""
        seen, todo, foreign = set(), {module}, set()
        while todo:
            name = todo.pop()
            parents = {name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)}
            found = parents | {i.target for i in self.imports[name] if not i.is_late}
            foreign |= {target.split(".")[0] for target in found if target not in self.parsed}
            seen.add(name)
            todo |= (found & set(self.parsed)) - seen
        return foreign

    def shared_module_names(self) -> set[str]:
        """Last parts of modules' names that several have, but for those that every package may have."""
        names = Counter(name.split(".")[-1] for name in self.parsed)
        return {name for name, n in names.items() if n > 1} - {"cli"}

    def shared_class_names(self) -> set[str]:
        names = Counter(n.name for node in self.parsed.values() for n in ast.walk(node) if isinstance(n, ast.ClassDef))
        return {name for name, n in names.items() if n > 1}


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.fixture(scope="module")
def tree() -> Tree:
    return Tree(REPO, PACKAGES)


def test_no_circles(tree):
    assert sorted(map(sorted, tree.circles())) == sorted(map(sorted, CIRCLES))


def test_arrows_between_packages_point_one_way(tree):
    ours = {(name, i.target) for name, found in tree.imports.items() for i in found}
    wrong = {(a, b) for a, b in ours if b.split(".")[0] in PACKAGES and b.split(".")[0] not in ALLOWED[a.split(".")[0]]}
    assert wrong == set()
    used = {(a.split(".")[0], b.split(".")[0]) for a, b in ours}
    assert {(PLUGIN, CORE), (COC, CORE)} <= used  # the control: imports are seen


def test_studies_import_no_torch(tree):
    studies = [name for name in tree.parsed if name.startswith(STUDIES)]
    heavy = {"torch", "transformers", "lerobot"}
    assert {name for name in studies if tree.foreign_imports(name) & heavy} == set()
    assert not [name for name in studies if "torch" in {i.target.split(".")[0] for i in tree.imports[name]}]
    assert "torch" in tree.foreign_imports(f"{CORE}.prophet.network")  # the control


def test_statistics_know_no_files_and_no_tables(tree):
    """What decides, and what words it, can be read and checked by itself: numbers in, numbers out."""
    names = ("families", "paired", "sequential", "plan", "verdicts", "wilson", "wording")
    pure = [f"{STUDIES}.evidence.{name}" for name in names]
    assert {name for name in pure if tree.foreign_imports(name) & {"pandas", "pyarrow", "pathlib", "json"}} == set()
    assert "pandas" in tree.foreign_imports(f"{STUDIES}.evidence.compare")  # the control


def test_no_two_modules_and_no_two_classes_share_a_name(tree):
    assert tree.shared_module_names() == MODULE_NAMES
    assert tree.shared_class_names() == CLASS_NAMES


def test_what_is_wrong_is_found(tmp_path):
    """Circles through a late import, a relative one and a package; names that are there twice."""
    files = {
        "p/__init__.py": "", "p/a.py": "def f():\n    from p import b", "p/b.py": "from . import a\nimport torch",
        "p/q/__init__.py": "from .c import C", "p/q/c.py": "class C: pass", "p/d.py": "from p.q import C",
        "p/r/__init__.py": "", "p/r/c.py": "class C: pass\nif TYPE_CHECKING:\n    from p.r.e import E",
        "p/r/e.py": "import p.r.c",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    tree = Tree(tmp_path, ("p",))
    assert sorted(map(sorted, tree.circles())) == [["p.a", "p.b"], ["p.r.c", "p.r.e"]]
    assert tree.foreign_imports("p.a") == set() and tree.foreign_imports("p.b") == {"torch"}
    assert tree.shared_module_names() == {"c"} and tree.shared_class_names() == {"C"}
