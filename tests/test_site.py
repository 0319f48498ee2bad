"""The documentation: what is made from the code is what the code gives now, links lead somewhere, no page is lost."""

import ast
import re
from functools import cache

import pytest
import torch
import yaml
from common import ROOT

from analysis import house
from analysis.site import architecture_picture, configuration, links, mask_pictures
from analysis.site.generate import generated

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
LINK = re.compile(r"\]\((?!https?:|mailto:)(?P<file>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")


@cache
def made():
    return generated()


def without_code(text):
    """A page without its code, in which brackets are no links."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def slugs(page):
    """The anchors of a page's headings, as MkDocs makes them."""
    found = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL), re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in found}


@pytest.mark.trains
def test_the_committed_pages_and_pictures_are_what_the_command_gives_now():
    for path, text in made().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: python -m analysis.site"


@pytest.mark.trains
def test_every_drawing_of_the_folder_is_generated():
    assert set((DOCS / "pictures").glob("*.svg")) == {path for path in made() if path.suffix == ".svg"}


@pytest.mark.parametrize("page", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading_that_are_there(page):
    for match in LINK.finditer(without_code(page.read_text(encoding="utf-8"))):
        target = (page.parent / match["file"]) if match["file"] else page
        assert target.exists(), match[0]
        assert not match["anchor"] or match["anchor"] in slugs(target), match[0]


@pytest.mark.parametrize("page", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_of_the_repository_that_a_page_names_is_there(page):
    named = re.findall(
        r"`((?:dlm|analysis|conf|sweeps|tests|docs)/[\w./]*\w(?:/|\.\w+))`", page.read_text(encoding="utf-8")
    )
    # What somebody is told to make is not there yet.
    missing = [name for name in named if not (ROOT / name).exists() and page.name != "new_variant.md"]
    assert not missing


def test_every_page_is_in_the_navigation_once():
    def files(node):
        if isinstance(node, str):
            return [node]
        return [file for child in (node.values() if isinstance(node, dict) else node) for file in files(child)]

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(files(nav)) == [page.relative_to(DOCS).as_posix() for page in PAGES]


@pytest.mark.parametrize("name", sorted(mask_pictures.patterns()))
def test_a_picture_has_a_square_where_the_predicate_says_so(name):
    pattern = mask_pictures.patterns()[name]
    rows = mask_pictures.streams(pattern)
    drawn = torch.zeros(len(rows.clean), len(rows.clean), dtype=torch.bool)
    cell, left, top = mask_pictures.CELL, mask_pictures.LEFT, mask_pictures.TOP
    for x, y, width in re.findall(r"M(\d+) (\d+)h(\d+)v\d+h-\d+z", mask_pictures.picture(name, pattern)):
        row, column = (int(y) - top) // cell, (int(x) - left) // cell
        drawn[row, column : column + int(width) // cell] = True
    assert torch.equal(drawn, mask_pictures.visible(pattern, rows))


@pytest.mark.parametrize("package", ["dlm", "analysis"])
def test_imports_run_downward_and_nobody_imports_a_command(package):
    order = architecture_picture.layers(architecture_picture.PAGE.read_text(encoding="utf-8"), package)
    found = architecture_picture.imports(order, package)  # refuses what goes up, sideways or to no layer
    assert order[-1] == ["commands"] and not any("commands" in others for others in found.values())


@pytest.mark.trains
def test_the_product_imports_neither_its_benchmark_nor_the_study():
    names = {file: set(mentioned(file)) for file in (ROOT / "dlm").rglob("*.py")}
    assert not {file for file, found in names.items() if any(n.split(".")[0] == "analysis" for n in found)}
    with_bench = {file for file, found in names.items() if any(n.startswith("dlm.bench.") for n in found)}
    assert {file for file in with_bench if "bench" not in file.parts} == {ROOT / "dlm" / "benchmark.py"}


def test_a_config_is_known_to_its_own_room_to_commands_and_to_whom_the_page_names():
    """So that what trains and what measures takes values."""
    room, types = ROOT / "dlm" / "config", {"omegaconf", "omegaconf.DictConfig", "omegaconf.OmegaConf"}
    page = architecture_picture.PAGE.read_text(encoding="utf-8")
    (rule,) = re.findall(r"^- Objects receive values.*?(?=^- )", page, flags=re.M | re.S)
    texts = {
        file: file.read_text(encoding="utf-8") for file in (ROOT / "dlm").rglob("*.py") if room not in file.parents
    }
    outside = [file for file, text in texts.items() if "omegaconf" in text and "hydra_command(" not in text]
    know = {file for file in outside if types & set(mentioned(file))}
    assert {file.relative_to(ROOT).as_posix() for file in know} == set(re.findall(r"`(dlm/(?!config)\S+\.py)`", rule))


def mentioned(file):
    """Every module that a file imports, of whatever package."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_an_import_that_goes_up_or_to_a_room_without_a_layer_is_refused(tmp_path):
    for room in ("low", "high", "lost"):
        (tmp_path / "dlm" / room).mkdir(parents=True)
        (tmp_path / "dlm" / room / "__init__.py").touch()
    order = [["low"], ["high"], ["commands"]]
    (tmp_path / "dlm" / "high" / "b.py").write_text("from dlm.low import a\n")
    (tmp_path / "dlm" / "low" / "a.py").write_text("")
    (tmp_path / "dlm" / "train.py").write_text("import dlm.high.b\nfrom dlm.low.a import x\n")
    order_of_all = [[*order[0], "lost"], *order[1:]]
    found = architecture_picture.imports(order_of_all, root=tmp_path)
    assert found == {"low": set(), "lost": set(), "high": {"low"}, "commands": {"high", "low"}}
    assert architecture_picture.reduced(found)["commands"] == {"high"}
    with pytest.raises(ValueError, match="dlm/lost is in no layer of docs/architecture.md"):
        architecture_picture.imports(order, root=tmp_path)
    (tmp_path / "dlm" / "low" / "a.py").write_text("from dlm.high import b\n")
    with pytest.raises(ValueError, match=r"dlm.low.a imports dlm.high.b: high does not lie below low"):
        architecture_picture.imports(order_of_all, root=tmp_path)


def test_the_options_of_a_file_by_hand(tmp_path):
    path = tmp_path / "option.yaml"
    path.write_text(
        "# What it is (A, arXiv 2501.00001).\n_target_: dlm.a.B\nsize: 4  # of it\n"
        "# More of it.\n# Evidence: none.\nnested:\n  odd: null\n  many: [1, 2]  # a list\n"
    )
    found = [(o.path, o.default, o.comment) for o in configuration.options_of(path, "group.")]
    assert found == [
        ("group.size", "4", "of it"),
        ("group.nested.odd", "null", ""),
        ("group.nested.many", "[1, 2]", "a list"),
    ]
    assert configuration.description(path) == "What it is (A, arXiv 2501.00001)."


@pytest.mark.trains
def test_every_value_of_every_group_is_in_the_reference():
    page = configuration.page()
    for group in configuration.groups():
        for file in configuration.files(group):
            is_global = file.read_text(encoding="utf-8").startswith(configuration.GLOBAL)
            for option in configuration.options_of(file, "" if is_global else f"{group}."):
                assert f"| `{option.path}` | " in page


@pytest.mark.parametrize(
    ("source", "text", "repository", "expected"),
    [
        ("a.md", "[x](../conf/train.yaml)", "", "x"),
        ("a.md", "[x](../conf/train.yaml)", "https://host/dlm", "[x](https://host/dlm/blob/main/conf/train.yaml)"),
        ("how_to/a.md", "[`x`](../../LICENSE) [y](../b.md#c)", "", "`x` [y](../b.md#c)"),
        ("a.md", "![x](../conf/x.svg)", "", "![x](../conf/x.svg)"),
    ],
)
def test_a_link_out_of_the_pages_goes_to_the_repository_or_is_its_text(source, text, repository, expected):
    assert links.resolved(text, source, repository) == expected


@pytest.mark.trains
def test_no_module_imports_itself_by_way_of_others():
    assert house.circles(house.module_imports(ROOT)) == []


def test_the_plan_of_a_small_tree_by_hand(tmp_path):
    for file, text in {
        "dlm/low/a.py": "x = 1\n",
        "dlm/high/b.py": "def f():\n    from dlm.high import c\n",
        "dlm/high/c.py": "from dlm.high import b\nfrom dlm.low.a import x\n",
        "dlm/words.py": "",
        "dlm/train.py": "import dlm.high.b\nfrom dlm import words\n",
        "analysis/report.py": "# no line of code\n" + "".join(f"y = {n}\n" for n in range(8)),
        "analysis/other.py": "".join(f"y = {n}\n" for n in range(1, 8)),
    }.items():
        for folder in ("dlm", "dlm/low", "dlm/high", "analysis"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / "__init__.py").touch()
        (tmp_path / file).write_text(text)
    modules = house.module_imports(tmp_path)
    assert house.circles(modules) == [{"dlm.high.b", "dlm.high.c"}]
    rooms = house.room_imports(modules, tmp_path)
    commands = {"dlm.commands": {"dlm.high", "dlm.words"}, "analysis.commands": set()}
    assert rooms == {"dlm.low": set(), "dlm.high": {"dlm.low"}, "dlm.words": set()} | commands
    assert house.floors(rooms) == 3 and house.floors({"a": {"b"}, "b": {"a"}, "c": {"a"}}) == 2
    plan = house.plan(tmp_path)
    assert plan["longest function"] == "2 (`f` in b.py)" and plan["lines"] == "23"
    assert plan["pairs of places with 6 equal lines"] == "1"  # of seven


def private_names(file):
    """The names with an underscore that a file reads of something else than itself."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


@pytest.mark.trains
def test_what_is_borrowed_from_the_private_parts_of_libraries_is_on_the_page_of_internals():
    page = (DOCS / "internals.md").read_text(encoding="utf-8")
    names = {n for p in ("dlm", "analysis") for file in (ROOT / p).rglob("*.py") for n in private_names(file)}
    names = {name for name in names if name.startswith("_") and not name.startswith("__")}
    public = {"_exit", "_fields", "_replace", "_asdict"}  # of os, and of named tuples
    assert {name for name in names - public if not re.search(rf"(?<![a-z]){name}\b", page)} == set()


def test_only_one_file_has_an_interval_of_a_fraction_and_the_number_of_standard_errors():
    files = [file for folder in ("dlm", "analysis") for file in (ROOT / folder).rglob("*.py")]
    own = {file.name for file in files if re.search(r"\b1\.9(59|6)|proportion_ci", file.read_text(encoding="utf-8"))}
    assert own == {"interval.py"}
