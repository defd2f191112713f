"""Settings of the documentation site, for Sphinx: `make docs` builds it into build/docs, without a network."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import pkgutil
import re
import textwrap
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

import ssole
from ssole.cli import COMMANDS, main

project = "ssole"
author = "The ssole authors"
copyright = author
version = release = ssole.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"ssole {release}"
html_show_copyright = False

# Every reference must be found: to a page, to a heading (of the three upper levels) or to a name of ssole.
nitpicky = True
# Names of other packages are not looked up, because that would need a network; private names and type
# variables have no page.
nitpick_ignore_regex = [("py:.*", r"(?!ssole\b).*"), ("py:.*", r".*\._\w+"), ("py:class", r".*\.T")]
myst_heading_anchors = 3

# A word in single backticks is code, as in Markdown.
default_role = "code"
viewcode_follow_imported_members = False  # else source pages link back to names that no page has
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "exclude-members": "extra_repr"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

DOCS = Path(__file__).parent
# Pages of the site that are files of the repository's root.
ROOT_FILES = {"index": "README.md", "contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}
# Modules with a place in the reference: all but those of the command line.
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(ssole.__path__, "ssole.")
    if module.name != "ssole.__main__" and not module.name.startswith("ssole.cli")
)
ROOT_PAGES = {DOCS.parent / file: DOCS / f"{page}.md" for page, file in ROOT_FILES.items()}


def help_page(command: str) -> str:
    """Section of `api/commands`: what `ssole COMMAND --help` prints."""
    os.environ["COLUMNS"] = "90"  # as wide as the page
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main([command, "--help"])
    text = "\n".join(textwrap.fill(line, 90, subsequent_indent="    ") for line in printed.getvalue().splitlines())
    return f"\n## `ssole {command}`\n\n```text\n{text}\n```\n"


def reference(docname: str) -> str:
    """Sections of `api/PACKAGE`: the package and its modules. `api/other` has those that have no page of their own.

    Three packages are called as functions of `ssole` are, which are on the page of the public names.
    """
    folder, _, page = docname.rpartition("/")
    if docname == "api/commands":
        return "".join(map(help_page, COMMANDS))
    if folder != "api" or page == "index":
        return ""
    own = {path.stem for path in (DOCS / "api").glob("*.md")}
    modules = [name for name in MODULES if page == (part if (part := name.split(".")[1]) in own else "other")]
    text = ""
    for name in modules:
        options = "   :no-members:\n" if importlib.util.find_spec(name).submodule_search_locations else ""
        options += "   :no-index:\n" if name.removeprefix("ssole.") in ssole.__all__ else ""
        heading = "" if name == f"ssole.{page}" else f"## `{name.removeprefix('ssole.')}`\n\n"
        text += f"\n{heading}```{{eval-rst}}\n.. automodule:: {name}\n{options}```\n"
    return text


def read_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Text of a page, whose links lead to the same places in the site as in the repository.

    The text of a file of the root comes before that of its page in docs/. A link to a folder is text in the site.
    """
    file = DOCS.parent / ROOT_FILES[docname] if docname in ROOT_FILES else Path(app.env.doc2path(docname))

    def site_link(link: re.Match[str]) -> str:
        path, hash_, anchor = link[2].partition("#")
        target = (file.parent / path).resolve()
        if target.is_dir():
            return link[1]
        place = os.path.relpath(ROOT_PAGES.get(target, target), (DOCS / docname).parent)
        return f"[{link[1]}]({place}{hash_}{anchor})"

    text = file.read_text(encoding="utf-8") + (source[0] if docname in ROOT_FILES else reference(docname))
    source[0] = re.sub(r"\[([^]]*)\]\((?!https?:|#)([^)\s]+)\)", site_link, text)
    app.env.note_dependency(str(file))


def read_docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstring in Google's style, in which an indented paragraph is code, as in Markdown."""
    marked: list[str] = []
    block = "text"  # or "code", or "section": the lines below `Args:` and its like
    for line in lines:
        if line and not line.startswith(" "):
            block = "section" if re.fullmatch(r"[A-Z]\w+:", line) else "text"
        elif line.startswith("    ") and block == "text" and marked and not marked[-1]:
            marked += ["::", ""]
            block = "code"
        marked.append(line)
    if what in {"attribute", "property"}:
        what = "method"  # of an attribute, napoleon would take the words before a colon for its type
    lines[:] = GoogleDocstring(marked, Config(), app, what, name, obj).lines()


def is_public_name(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Whether a member of a module is left out of its page, because it is on the page of the public names."""
    return True if what == "module" and getattr(ssole, name, None) is obj else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.connect("source-read", read_page)
    app.connect("autodoc-skip-member", is_public_name)
    app.connect("autodoc-process-docstring", read_docstring)
    return {"parallel_read_safe": True}
