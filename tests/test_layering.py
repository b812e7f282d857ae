"""The layout of the package: arrows of imports, lazy TensorFlow, sizes of files and functions, modules not names."""

import ast
import pathlib
import subprocess
import sys

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

# One test case a file, so that a failure names it.
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


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


@each_file
def test_imports_go_down_only(path):
    assert forbidden_imports(_module(path), ast.parse(path.read_text())) == []


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


@each_file
def test_tensorflow_is_imported_lazily_and_in_data_only(path):
    tree = ast.parse(path.read_text())
    names = ("tensorflow", "tensorflow_datasets")
    assert not [name for name in _imports(tree, is_lazy_too=False) if name.split(".")[0] in names], "not lazy"
    if not _is_in(_module(path), "data") and _module(path) != "deploy.savedmodel":
        assert not [name for name in _imports(tree) if name.split(".")[0] in names], "outside data"


@each_file
def test_own_modules_are_imported_as_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names)
            if (node.module or "").split(".")[0] == PACKAGE:
                folder = ROOT.joinpath(*node.module.split("."))
                for alias in node.names:
                    is_module = (folder / f"{alias.name}.py").exists() or (folder / alias.name / "__init__.py").exists()
                    assert is_module, f"line {node.lineno}: {alias.name} is a name, import its module"


@each_file
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) < MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines < MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"
            positional = [*node.args.posonlyargs, *node.args.args]
            count = len(positional) - bool(positional and positional[0].arg in ("self", "cls"))
            count += len(node.args.kwonlyargs)
            assert count <= MAX_ARGUMENTS, f"{node.name} takes {count} arguments"


@each_file
def test_public_functions_are_annotated_and_documented(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "no docstring of the module"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name}: no docstring"
            assert node.returns is not None, f"{node.name}: no annotation of the result"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [argument.arg for argument in arguments if argument.annotation is None]
            assert not bare, f"{node.name}: no annotation of {bare}"


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
