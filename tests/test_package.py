"""The project keeps its own promises: docstrings, sizes, one version, and pages that agree with the code."""

import ast
import configparser
import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import attention_zoo
from experiments.__main__ import COMMANDS
from experiments.commands.catalogue import function, names

ROOT = Path(__file__).parents[1]
FOLDERS = ("attention_zoo", "experiments", "benchmarks", "tests", "docs", ".ci")
LIBRARY = sorted((ROOT / "attention_zoo").rglob("*.py"))
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TEXTS = [*SOURCES, *PAGES, *(ROOT / name for name in ("setup.cfg", "pyproject.toml", "Makefile", ".ci/run"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DESIGN = (ROOT / "docs" / "DESIGN.md").read_text(encoding="utf-8")

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def setup() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def public(tree: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Public functions, classes and methods; `setup` is Flax's hook, described by its class."""
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_") and node.name != "setup":
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{prefix}{node.name}.")


def inherited(tree: ast.Module) -> set[str]:
    """Methods that a Protocol or a base class of the file describes for all who have them."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    bases = {base.id for node in classes for base in node.bases if isinstance(base, ast.Name)}
    return {
        method.name
        for node in classes
        if is_protocol(node) or node.name in bases
        for method in node.body
        if isinstance(method, Definition) and ast.get_docstring(method)
    }


def is_protocol(node: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases)


def blocks(page: str, language: str = "") -> list[str]:
    """The fenced blocks of a page in a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def commands(start: str) -> list[list[str]]:
    """The command lines of README that begin with `start`, as words; those joined by && apart."""
    lines = [part.strip() for block in blocks(README) for line in block.splitlines() for part in line.split("&&")]
    return [shlex.split(line) for line in lines if line.startswith(start)]


@pytest.mark.parametrize("path", LIBRARY, ids=relative)
def test_public_names_have_docstrings(path: Path) -> None:
    tree = parsed(path)
    assert ast.get_docstring(tree), "the module has no docstring"
    assert not [name for name, node in public(tree) if not ast.get_docstring(node) and node.name not in inherited(tree)]


def test_experiments_and_benchmarks_say_what_they_are_for() -> None:
    files = [*(ROOT / "experiments").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert not [relative(path) for path in files if path.stat().st_size and not ast.get_docstring(parsed(path))]


def test_no_file_is_longer_than_300_lines() -> None:
    assert not [relative(path) for path in SOURCES if len(path.read_text(encoding="utf-8").splitlines()) > 300]


def test_no_function_is_longer_than_60_lines() -> None:
    """Without its docstring and its signature."""
    long = []
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                if node.body[-1].end_lineno - first.lineno >= 60:
                    long.append(f"{relative(path)}: {node.name}")
    assert not long


def test_no_page_or_source_names_a_place_on_some_machine() -> None:
    place = re.compile(
        r"(?<![\w.])/(?:work|root|home|Users|opt|mnt)/\w|\.\./shared|py[p]i\.org|python[h]osted|[A-Z]:\\Users"
    )
    found = [f"{relative(path)}: {hit[0]}" for path in TEXTS if (hit := place.search(path.read_text(encoding="utf-8")))]
    assert not found


def test_there_are_no_notebooks() -> None:
    assert not [relative(path) for folder in FOLDERS for path in (ROOT / folder).rglob("*.ipynb")]


def test_the_version_stands_in_one_place() -> None:
    assert setup()["metadata"]["version"] == "attr: attention_zoo.__version__"
    version = attention_zoo.__version__
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_type_information_is_shipped() -> None:
    assert (ROOT / "attention_zoo" / "py.typed").is_file()
    assert setup()["options.package_data"]["attention_zoo"] == "py.typed"


def test_every_library_that_is_imported_is_required() -> None:
    required = {re.split(r"[<>=\[]", line)[0].lower() for line in setup()["options"]["install_requires"].split("\n")}
    distribution = {"orbax": "orbax-checkpoint", "tensorflow_datasets": "tensorflow-datasets", "absl": "absl-py"}
    distribution |= {"home_assistant_intents": "home-assistant-intents", "sklearn": "scikit-learn"}
    own = {"attention_zoo", "experiments", *sys.stdlib_module_names}
    missing = set()
    for path in [*LIBRARY, *(ROOT / "experiments").rglob("*.py")]:
        for node in ast.walk(parsed(path)):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            packages = {name.split(".")[0] for name in imported} - own
            missing |= {package for package in packages if distribution.get(package, package).lower() not in required}
    assert not missing


def test_the_import_contract_is_the_designs() -> None:
    config = setup()
    contract = "importlinter:contract:"
    assert config[contract + "floors"]["layers"].split() == [
        *("experiments", "|", "benchmarks"),
        *(f"attention_zoo.{floor}" for floor in ("training", "models", "modules", "functional", "notation")),
    ]
    assert config[contract + "beside"]["source_modules"].split() == ["attention_zoo.data", "attention_zoo.figures"]
    above = ["attention_zoo.training", "attention_zoo.models", "attention_zoo.modules"]
    assert config[contract + "beside"]["forbidden_modules"].split() == above
    assert "flax" in config[contract + "pure"]["forbidden_modules"].split()
    assert config[contract + "roof"]["forbidden_modules"].split() == ["experiments"]


def test_readme_opens_with_two_commands_that_are_whole_set_ups() -> None:
    first, second = blocks(README)[:2]
    assert first.strip() == "pip install -e . && python -m experiments train dates_bahdanau"
    assert second.strip() == 'pip install -e ".[test]" && pytest'
    assert f"`{first.strip()}`" in DESIGN and f"`{second.strip()}`" in DESIGN


def test_readmes_experiments_and_flags_exist() -> None:
    either = "|".join(names())
    in_table = re.findall(rf"`((?:{either})(?: --[^`]+)?)`", README)
    lines = [words[4:] for words in commands("python -m experiments train")] + [text.split() for text in in_table]
    assert len(lines) > len(names())
    for name, *words in lines:
        flags = {word[2:] for word in words if word.startswith("--")} - {"help", "workdir"}
        assert name in names()
        assert flags <= set(inspect.signature(function(name)).parameters)


def test_every_experiment_is_in_readme() -> None:
    assert not [name for name in names() if f"`{name}" not in README]


def test_readmes_other_commands_and_their_flags_exist() -> None:
    found = [words for words in commands("python -m experiments") if words[3] != "train"]
    assert {words[3] for words in found} == set(COMMANDS)
    for words in found:
        flags = {word[2:] for word in words if word.startswith("--")}
        assert flags <= set(inspect.signature(COMMANDS[words[3]]).parameters)


def test_readmes_benchmarks_exist() -> None:
    named = [words[3] for words in commands("python -m benchmarks") if len(words) > 3 and not words[3].startswith("--")]
    named = [name for name in named if name != "list"]
    assert named
    assert not [name for name in named if not (ROOT / "benchmarks" / f"{name}.py").is_file()]


def test_readmes_extras_exist() -> None:
    extras = set(re.findall(r"\.\[(\w+)\]", README))
    assert extras <= set(setup()["options.extras_require"])


@pytest.mark.parametrize("block", blocks(README, "python"), ids=lambda block: block.splitlines()[-1])
def test_readmes_python_runs(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {})


def test_readmes_names_exist() -> None:
    found = re.findall(r"`((?:functional|modules|models)(?:\.\w+)+)", README)
    assert found
    for name in found:
        path, _, last = f"attention_zoo.{name}".rpartition(".")
        assert hasattr(import_module(path), last), name


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{relative(page)}: {link}"


def test_make_targets_that_pages_name_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"`make (\w+)`", page.read_text(encoding="utf-8"))}
    assert named and named <= targets


def design_tree() -> dict[str, set[str]]:
    """The tree that DESIGN draws: folder of attention_zoo -> its files that are not planned."""
    folders: dict[str, set[str]] = {"": set()}
    folder = ""
    for line in blocks(DESIGN)[0].splitlines():
        if entry := re.match(r"  (\w+)/", line):
            folder = entry[1]
            folders[folder] = set()
        if not re.search(r"\.py +planned", line):
            folders[folder] |= set(re.findall(r"\b(\w+\.py)\b", line))
        if not line.startswith(" ") and not line.startswith("attention_zoo/"):
            break
    return folders


@pytest.mark.parametrize("folder", ["functional", "modules", "models", "training", "data", "figures"])
def test_the_tree_in_design_is_the_tree_there_is(folder: str) -> None:
    there = {path.name for path in (ROOT / "attention_zoo" / folder).glob("*.py")} - {"__init__.py"}
    assert design_tree()[folder] == there
