"""The house rules as tests: budgets, docstrings, names, import contracts, and no pickle."""

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("app", "indexer", "miner", "retriever")
PACKAGE_FILES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
BENCHMARK_FILES = sorted((ROOT / "benchmarks").rglob("*.py"))
FILES = [*PACKAGE_FILES, *BENCHMARK_FILES, *sorted((ROOT / "tests").rglob("*.py"))]
TREES = {path: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in FILES}
EMPTY_WORDS = {"util", "helper", "manager", "handler", "processor", "common", "core", "base", "misc"}
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_NAMES = {"torch.load", "torch.save", "eval", "exec", "allow_pickle"}
TEXTS = {".py", ".md", ".toml", ".txt", ".yaml", ".html", ".js"}
HOME = re.compile(r"/(?:home|root|Users)/\w|[A-Z]:\\Users")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def none(offenders: list[str], rule: str) -> None:
    assert not offenders, f"{rule}:\n  " + "\n  ".join(offenders)


def place(path: Path, node: ast.AST | None = None) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def functions(path: Path) -> Iterator[tuple[Function, bool]]:
    """Each function of a file, and whether its first argument is the self or cls of a method."""
    for parent in ast.walk(TREES[path]):
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, Function):
                static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
                yield node, isinstance(parent, ast.ClassDef) and not static


def parameters(function: Function) -> list[ast.arg]:
    a = function.args
    return [arg for arg in (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg) if arg is not None]


def words(name: str) -> set[str]:
    """The lower-case words of a snake_case or CamelCase name, plurals also as singulars."""
    parts = {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
    return parts | {part.removesuffix("s") for part in parts}


def unsafe(node: ast.AST) -> set[str]:
    """What a statement or call uses that could run the content of a file."""
    names: set[str] = set()
    if isinstance(node, ast.Import):
        names = {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
        names = {f"{node.module}.{alias.name}" for alias in node.names}
    elif isinstance(node, ast.Call):
        keywords = {k.arg for k in node.keywords if k.arg and ast.unparse(k.value) != "False"}
        names = {ast.unparse(node.func), *keywords & UNSAFE_NAMES}
    return {name for name in names if name in UNSAFE_NAMES or name.split(".")[0] in UNSAFE_MODULES}


FUNCTIONS = [(path, f, bound) for path in FILES for f, bound in functions(path)]


def test_files_are_short() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    none([f"{place(path)} has {n}" for path, n in lines.items() if n > 400], "a file has at most 400 lines")
    median = statistics.median(lines[path] for path in PACKAGE_FILES if path.name != "__init__.py")
    assert median <= 150, f"the median file of the packages has at most 150 lines, not {median}"


def test_functions_are_short() -> None:
    lines = {(path, f): (f.end_lineno or f.lineno) - f.lineno + 1 for path, f, _ in FUNCTIONS}
    none([f"{place(*key)} has {n}" for key, n in lines.items() if n > 60], "a function has at most 60 lines")
    of_packages = {key: n for key, n in lines.items() if key[0] in PACKAGE_FILES}
    longish = [f"{place(*key)} has {n}" for key, n in of_packages.items() if n > 30]
    if len(longish) > 0.1 * len(of_packages):
        none(longish, f"nine in ten of the packages' {len(of_packages)} functions have at most 30 lines")


def test_functions_take_few_parameters() -> None:
    # A command's parameters are its flags: typer has no other way to declare them.
    inner = [(path, f) for path, f, _ in FUNCTIONS if "commands" not in path.parts]
    found = [f"{place(path, f)} {f.name}" for path, f in inner if len(parameters(f)) > 7]
    none(found, "a function takes at most 7 parameters, self included")


def test_functions_are_annotated() -> None:
    given = [(path, arg) for path, f, bound in FUNCTIONS for arg in parameters(f)[bound:]]
    gaps = [f"{place(path, arg)} {arg.arg}" for path, arg in given if not arg.annotation]
    gaps += [f"{place(path, f)} {f.name}" for path, f, _ in FUNCTIONS if not f.returns]
    none(gaps, "every parameter and every return value is annotated")


def test_modules_say_what_they_are_for() -> None:
    modules = [path for path in [*PACKAGE_FILES, *BENCHMARK_FILES] if path.name != "__init__.py"]
    texts = {path: ast.get_docstring(TREES[path]) or "" for path in modules}
    short = [place(path) for path, text in texts.items() if len(re.findall(r"[.!?](?=\s|$)", text)) < 2]
    none(short, "a module docstring says in one sentence what it is for, in the next what it does not know")


def test_init_files_hold_one_docstring_and_no_code() -> None:
    inits = [path for path in FILES if path.name == "__init__.py"]
    more = [path for path in inits if not ast.get_docstring(TREES[path]) or len(TREES[path].body) > 1]
    none([place(path) for path in more], "an __init__.py holds one docstring and nothing else")
    none([place(path) for path in inits if ROOT / "tests" in path.parents], "no __init__.py under tests")


def test_names_say_something() -> None:
    names = [(place(path), part) for path in FILES for part in path.relative_to(ROOT).with_suffix("").parts]
    nodes = [(path, node) for path, tree in TREES.items() for node in ast.walk(tree)]
    names += [(place(path, d), d.name) for path, d in nodes if isinstance(d, Function | ast.ClassDef)]
    names += [(place(path, arg), arg.arg) for path, arg in nodes if isinstance(arg, ast.arg)]
    empty = sorted({f"{where} {name}" for where, name in names if words(name) & EMPTY_WORDS})
    none(empty, f"names do not use the words {', '.join(sorted(EMPTY_WORDS))}")


def test_packages_neither_pickle_nor_evaluate_text() -> None:
    nodes = [(path, node) for path in PACKAGE_FILES for node in ast.walk(TREES[path])]
    found = [f"{place(path, node)} {name}" for path, node in nodes for name in sorted(unsafe(node))]
    none(found, "files are read without running what they say")


def test_no_path_names_a_home_folder() -> None:
    folders = [ROOT / name for name in (*PACKAGES, "tests", "docs", "examples", "benchmarks")]
    paths = [*ROOT.iterdir(), *(path for folder in folders for path in folder.rglob("*.*"))]
    texts = [path for path in paths if path.suffix in TEXTS or path.name == "Makefile"]
    found = [place(path) for path in texts if HOME.search(path.read_text(encoding="utf-8"))]
    none(found, "a path is an argument, never one person's folder")


def test_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_torch_free_part_loads_without_torch() -> None:
    """What the contract cannot see: a third library that loads torch as it is imported."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (roots,) = [c["source_modules"] for c in contracts if "torch" in c.get("forbidden_modules", ())]
    files = [path.relative_to(ROOT).with_suffix("") for path in PACKAGE_FILES if path.name != "__init__.py"]
    modules = [".".join(path.parts) for path in files if {path.parts[0], ".".join(path.parts[:2])} & {*roots}]
    code = f"import sys, {', '.join(modules)}; print(*{{'torch', 'transformers'}} & {{*sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr or f"{run.stdout} loaded by {modules}"
