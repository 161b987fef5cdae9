"""Read the signatures of a script's functions from its source, without slow imports.

A script that imports angr or torch takes seconds to start. But ``--help`` and usage errors need
only the names, type hints, defaults and docstrings of its functions. So the source is parsed, and
only those of its top-level statements run that the signatures refer to.
"""

import ast
import contextlib
import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CALL = "command_line"  # the function called by a script's last statement


class NotRead(Exception):
    """A value depends on a function of the source, which has no body here."""


class Names(dict[str, Any]):
    """The top-level names of a file, each evaluated when it is first looked up.

    The functions of the command line have a signature and a docstring, but no body. If the file
    imports another file of this project, that is read in the same way; it is imported only if a
    value depends on one of its functions.
    """

    def __init__(self, path: Path) -> None:
        self.tree = ast.parse(path.read_bytes())
        self.path = path
        self.statements: dict[str, ast.stmt] = {}
        for statement in self.tree.body:
            for name in _defined(statement):
                self.statements[name] = statement
        self.called: set[str] = set()  # functions of the command line
        self["__file__"] = str(path)

    def __missing__(self, name: str) -> Any:
        statement = self.statements[name]  # on a KeyError, Python looks in the builtins
        if isinstance(statement, ast.FunctionDef):
            if name not in self.called:
                raise NotRead(name)
            fields = {field: getattr(statement, field) for field in statement._fields}
            docstring = ast.Expr(ast.Constant(ast.get_docstring(statement, clean=False)))
            statement = ast.FunctionDef(**fields | {"body": [docstring]})
        if isinstance(statement, ast.Import | ast.ImportFrom):
            self[name] = self._imported(name, statement)
        else:
            ast.fix_missing_locations(statement)
            code = compile(ast.Module([statement], []), str(self.path), "exec")
            exec(code, {"__name__": self.path.stem}, self)
        return self[name]

    def _imported(self, name: str, statement: ast.Import | ast.ImportFrom) -> Any:
        """Return the value of an imported name, without running files of this project."""
        alias = next(a for a in statement.names if (a.asname or a.name.split(".")[0]) == name)
        if isinstance(statement, ast.ImportFrom):
            file = self._own_file(statement.module or "")
            if file:
                with contextlib.suppress(NotRead, NameError):
                    return Names(file)[alias.name]
            return getattr(importlib.import_module(statement.module or ""), alias.name)
        file = self._own_file(alias.name)
        return _Module(Names(file)) if file else importlib.import_module(alias.name)

    def _own_file(self, module: str) -> Path | None:
        """Return the file of a module of this project, or None for any other module."""
        files = (folder / (module.replace(".", "/") + ".py") for folder in (ROOT, self.path.parent))
        return next((file for file in files if file.is_file()), None)

    def functions(self) -> tuple[Callable[..., Any], dict[str, Callable[..., Any]]]:
        """Return the script's function and commands, as named in its last statement."""
        calls = (node for node in ast.walk(self.tree.body[-1]) if isinstance(node, ast.Call))
        call = next(call for call in calls if ast.unparse(call.func) == CALL)
        self.called = {node.id for node in ast.walk(call) if isinstance(node, ast.Name)}
        for node in ast.walk(call):  # a command may be a function of another file
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module = self[node.value.id]
                if isinstance(module, _Module):
                    module.names.called.add(node.attr)
        call.func = ast.Name("_taken", ast.Load())
        code = compile(ast.fix_missing_locations(ast.Expression(call)), str(self.path), "eval")
        return eval(code, {"_taken": lambda main, **commands: (main, commands)}, self)


class _Module(SimpleNamespace):
    """A file of this project whose names are read when they are looked up."""

    def __init__(self, names: Names) -> None:
        super().__init__(names=names)

    def __getattr__(self, name: str) -> Any:
        return self.names[name]


def _defined(statement: ast.stmt) -> list[str]:
    """Return the names that a top-level statement defines."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name.split(".")[0] for alias in statement.names]
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        return [n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and _is_target(n)]
    return []


def _is_target(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)
