"""The layout of the package: arrows of imports, lazy TensorFlow, sizes of files and functions, modules not names."""

import ast
import functools
import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest

PACKAGE = "dvsnas_jax"
ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))
_CELL = {"space", "nets", "core"}
_RUN = {"evaluate", "deploy", "train", "infer", "data"} | _CELL
_SEARCH = {"search", "controller"} | _RUN
ALLOWED = {
    "core": {"core"},
    "data": {"data", "core"},
    "data.datasets": {"data.datasets", "core"},
    "data.datasets.synthetic": {"data.street", "data.datasets", "core"},
    "data.loading.video_file": {"infer.video", "data", "core"},
    "data.street": {"data.street", "data.datasets", "core"},
    "nets": {"nets", "core"},
    "nets.kernels": {"nets.kernels", "core"},
    "space": _CELL,
    "controller": {"controller", "space", "core"},
    "infer": {"infer"} | _CELL,
    "infer.artifact": {"infer.dispatch", "core"},
    "infer.dispatch": {"core"},
    "infer.video": {"infer.video", "core"},
    "train": {"train", "data", "evaluate.metrics"} | _CELL,
    "deploy": {"deploy", "train", "infer", "data"} | _CELL,
    "evaluate": _RUN,
    "search": _SEARCH,
    "studies": {"studies"} | _SEARCH,
    "report": {"report", "studies"} | _SEARCH,
    "bench": {"bench"} | _SEARCH,
    "commands": {"commands", "bench", "report", "studies"} | _SEARCH,
    "cli": {"commands", "core"},
    "__main__": {"cli"},
    "__init__": {"deploy.load"},
}
"""What each room may import: rooms or modules. The row of the innermost room that has one holds for a file."""
FORBIDDEN = {"controller": {"space.operations"}}
ANY_ROOM = {"__version__"}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_ARGUMENTS, MAX_MODULES = 390, 60, 6, 20


@functools.cache
def _tree(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text())


def _offenders(check_fn: Callable[[pathlib.Path], list[str]]) -> dict[str, list[str]]:
    """File -> what is wrong in it, of the files in which something is."""
    found = {str(path.relative_to(ROOT)): check_fn(path) for path in FILES}
    return {name: problems for name, problems in found.items() if problems}


def _functions(path: pathlib.Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(_tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def _imports(tree: ast.Module, *, is_lazy_too: bool = True) -> list[str]:
    """Full names of the modules that a file imports."""
    found = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found.extend(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            if is_lazy_too or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                visit(child)

    visit(tree)
    return found


def _module(path: pathlib.Path) -> str:
    """`data.loading.store` of dvsnas_jax/data/loading/store.py; a room for its `__init__.py`."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _is_in(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def forbidden_imports(module: str, tree: ast.Module) -> list[str]:
    """Imports that point the wrong way."""
    room = max((room for room in ALLOWED if _is_in(module, room)), key=len)
    bad = []
    for name in _imports(tree):
        package, _, other = name.partition(".")
        if package != PACKAGE or not other or other in ANY_ROOM:
            continue
        is_forbidden = any(_is_in(other, each) for each in FORBIDDEN.get(room, ()))
        if is_forbidden or not any(_is_in(other, each) for each in ALLOWED[room]):
            bad.append(name)
    return bad


def test_rooms_are_not_overfull():
    folders = {path.parent for path in FILES}
    counts = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) - 1 for folder in folders}
    assert {name: count for name, count in counts.items() if count > MAX_MODULES} == {}


def test_imports_go_down_only():
    assert _offenders(lambda path: forbidden_imports(_module(path), _tree(path))) == {}


@pytest.mark.parametrize(
    "layer, line",
    [
        ("train.features", "from dvsnas_jax.search import loop"),
        ("train.features", "import dvsnas_jax.controller.ppo"),
        ("train.features", "from dvsnas_jax.evaluate import evaluation"),
        ("infer.programs", "from dvsnas_jax.data.loading import store"),
        ("infer.programs", "from dvsnas_jax.train import features"),
        ("infer.artifact", "from dvsnas_jax.infer import programs"),
        ("infer.video.hdr", "from dvsnas_jax.infer import programs"),
        ("nets.kernels.layers", "from dvsnas_jax.nets import blocks"),
        ("data.street.scene", "from dvsnas_jax.data.loading import store"),
        ("search.pipeline", "from dvsnas_jax.report import page"),
        ("studies.compare", "from dvsnas_jax.report import page"),
        ("controller", "from dvsnas_jax.nets.kernels import layers"),
        ("controller", "from dvsnas_jax.data.loading import pipeline"),
        ("controller", "from dvsnas_jax.space import operations"),
        ("nets", "from dvsnas_jax.space import genotype"),
        ("core", "def f():\n  from dvsnas_jax.nets.kernels import layers"),
        ("data", "from dvsnas_jax import nets"),
        ("space", "from dvsnas_jax.evaluate import metrics"),
    ],
)
def test_the_check_sees_a_wrong_arrow(layer, line):
    assert len(forbidden_imports(layer, ast.parse(line))) == 1


def test_tensorflow_is_imported_lazily_and_in_data_only():
    def check(path: pathlib.Path) -> list[str]:
        is_allowed = _is_in(_module(path), "data") or _module(path) == "deploy.savedmodel"
        found = _imports(_tree(path), is_lazy_too=not is_allowed)  # where it is allowed, inside of functions alone
        return [name for name in found if name.split(".")[0] in ("tensorflow", "tensorflow_datasets")]

    assert _offenders(check) == {}


def test_own_modules_are_imported_as_modules():
    def check(path: pathlib.Path) -> list[str]:
        found = []
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.ImportFrom):
                is_own = (node.module or "").split(".")[0] == PACKAGE
                folder = ROOT.joinpath(*(node.module or "").split("."))
                for name in [alias.name for alias in node.names]:
                    is_module = (folder / f"{name}.py").exists() or (folder / name / "__init__.py").exists()
                    if name == "*" or (is_own and not is_module):
                        found.append(f"line {node.lineno}: {name} is a name, import its module")
        return found

    assert _offenders(check) == {}


def test_files_and_functions_stay_small():
    def check(path: pathlib.Path) -> list[str]:
        num_lines, found = len(path.read_text().splitlines()), []
        if num_lines >= MAX_FILE_LINES:
            found.append(f"{num_lines} lines")
        for node in _functions(path):
            lines = node.end_lineno - node.lineno + 1
            positional = [*node.args.posonlyargs, *node.args.args]
            count = len(positional) - bool(positional and positional[0].arg in ("self", "cls"))
            count += len(node.args.kwonlyargs)
            if lines >= MAX_FUNCTION_LINES or count > MAX_ARGUMENTS:
                found.append(f"{node.name} has {lines} lines and takes {count} arguments")
        return found

    assert _offenders(check) == {}


def test_public_functions_are_annotated_and_documented():
    def check(path: pathlib.Path) -> list[str]:
        found = [] if ast.get_docstring(_tree(path)) else ["no docstring of the module"]
        for node in _tree(path).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                bare = [argument.arg for argument in arguments if argument.annotation is None]
                if not ast.get_docstring(node):
                    found.append(f"{node.name}: no docstring")
                if node.returns is None or bare:
                    found.append(f"{node.name}: no annotation of {bare or 'the result'}")
        return found

    assert _offenders(check) == {}


def test_importing_every_module_needs_no_tensorflow():
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in FILES
        if path.name not in ("__init__.py", "__main__.py")
    ]
    code = (
        "import importlib, sys\n"
        "sys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None\n"  # an import of these raises
        f"for name in {names!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
