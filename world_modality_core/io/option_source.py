"""A command's options as the source of their dataclasses has them, where importing it takes ten seconds (LeRobot)."""

from __future__ import annotations

import ast
from dataclasses import field, fields, is_dataclass, make_dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, get_origin

_KNOWN = {each.__name__: each for each in (int, float, str, bool, list, dict, Path)}
_KNOWN |= {"Any": Any, "Literal": Literal, "ClassVar": ClassVar}


class OpenOptionsError(Exception):
    """A type that the source alone doesn't say, such as LeRobot's registry of policies."""


def options_in_source(module: str, name: str) -> tuple[type, set[str]]:
    """Names and types of a dataclass's options, without importing what defines it.

    Args:
        module: Dotted name of the module.
        name: The dataclass's name there.

    Returns:
        A dataclass with the same options, nested ones too, whose values are all None; and the options about which the
        source says nothing further (--policy, say, whose options depend on its type): of type Any here.

    Raises:
        OpenOptionsError: if the source doesn't say what options there are.
    """
    made = _of_class(module, name)
    return made, {each.name for each in fields(made) if each.type is Any}


@cache
def _of_class(module: str, name: str) -> type:
    tree, _ = _parsed(module)
    nodes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    if not any("dataclass" in ast.unparse(decorator) for node in nodes for decorator in node.decorator_list):
        raise OpenOptionsError(f"{module}.{name}")
    (node,) = nodes
    options: dict[str, Any] = {}
    for base in node.bases:
        options |= {each.name: each.type for each in fields(_evaluated(base, module))}
    for line in node.body:
        if isinstance(line, ast.AnnAssign):
            try:
                options[line.target.id] = _evaluated(line.annotation, module)
            except OpenOptionsError:
                options[line.target.id] = Any
    made = [
        (option, kind, field(default_factory=kind if is_dataclass(kind) else lambda: None))
        for option, kind in options.items()
        if get_origin(kind) is not ClassVar
    ]
    return make_dataclass(name, made)


def _evaluated(node: ast.expr, module: str) -> Any:
    """The type that an annotation or a base names.

    Raises:
        OpenOptionsError: if the source doesn't say it.
    """
    if isinstance(node, ast.Name):
        return _named(node.id, module)
    if isinstance(node, ast.Constant) and node.value is None:
        return None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _evaluated(node.left, module) | _evaluated(node.right, module)
    if isinstance(node, ast.Subscript):
        kind = _evaluated(node.value, module)
        if kind is Literal:
            return Literal[ast.literal_eval(node.slice)]
        if isinstance(node.slice, ast.Tuple):
            return kind[tuple(_evaluated(each, module) for each in node.slice.elts)]
        return kind[_evaluated(node.slice, module)]
    raise OpenOptionsError(ast.unparse(node))


def _named(name: str, module: str) -> Any:
    if name in _KNOWN:
        return _KNOWN[name]
    tree, package = _parsed(module)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _of_class(module, name)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return _evaluated(node.value, module)
        if isinstance(node, ast.ImportFrom) and name in {alias.asname or alias.name for alias in node.names}:
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            return _named(name, ".".join([*parts, *filter(None, [node.module])]))
    raise OpenOptionsError(name)


@cache
def _parsed(module: str) -> tuple[ast.Module, str]:
    """A module's source, and the package that its relative imports start from."""
    package, *parts = module.split(".")
    spec = find_spec(package)  # of a top-level package: imports nothing
    for folder in spec.submodule_search_locations if spec else ():
        path = Path(folder, *parts)
        if (path / "__init__.py").is_file():
            return ast.parse((path / "__init__.py").read_text()), module
        if path.with_suffix(".py").is_file():
            return ast.parse(path.with_suffix(".py").read_text()), module.rpartition(".")[0]
    raise OpenOptionsError(module)
