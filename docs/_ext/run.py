"""Code in the guides that is run when a page is read: the page shows what it really printed.

``{run}`` holds Python. All blocks of a page share one namespace and one temporary working folder. ``:raises: SpeciesError`` expects this
error and shows its message; ``:hide:`` runs without showing anything. Warnings are shown like output. ``{scfm}`` holds arguments of the
command ``scfm``, one call a line; a code other than 0 is shown.
An error that was not announced, or one announced that does not come, fails the page.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WIDTH = 86


class PageError(Exception):
    """A block does not do what its page says."""


@dataclass
class Page:
    """What the blocks of one page share."""

    name: str
    namespace: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    _folder: tempfile.TemporaryDirectory = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="scfm-docs-")
    )

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the working folder."""
        self.namespace.clear()
        self._folder.cleanup()

    def python(self, code: str, raises: str | None = None) -> str:
        """Run Python; what it prints, then the value of a last expression, then the message of the expected error."""
        tree = ast.parse(code)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        with self._captured() as text:
            try:
                exec(compile(tree, f"<{self.name}>", "exec"), self.namespace)
                if last is not None:
                    value = eval(compile(ast.Expression(last.value), f"<{self.name}>", "eval"), self.namespace)
                    if value is not None:
                        print(repr(value))
            except Exception as error:
                if type(error).__name__ != raises:
                    raise PageError(f"{self.name}: {type(error).__name__}: {error}\nin\n{code}") from error
                print(f"{type(error).__name__}: {error}")
                raises = None
        if raises is not None:
            raise PageError(f"{self.name}: no {raises} was raised by\n{code}")
        return self._plain(text.getvalue())

    def command(self, line: str) -> str:
        """Run ``scfm <line>``; what it prints, and its exit code if that is not 0."""
        from scfm.cli import main

        argv, sys.argv = sys.argv, ["scfm", *shlex.split(line)]
        code: Any = 0
        with self._captured() as text:
            try:
                main()
            except SystemExit as exit_:
                code = exit_.code or 0
            finally:
                sys.argv = argv
            if code:
                print(f"(exit code {code})")
        return self._plain(text.getvalue())

    @contextlib.contextmanager
    def _captured(self) -> Iterator[io.StringIO]:
        text = io.StringIO()
        settings = {"COLUMNS": str(WIDTH), "TERMINAL_WIDTH": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        try:
            with (
                contextlib.chdir(self._folder.name),
                contextlib.redirect_stdout(text),
                contextlib.redirect_stderr(text),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("default")
                warnings.showwarning = lambda message, category, *_: print(f"{category.__name__}: {message}")
                yield text
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)

    def _plain(self, text: str) -> str:
        """Without colours, trailing spaces and the name of the temporary folder."""
        text = re.sub(r"\x1b\[[0-9;]*m", "", text).replace(f"{Path(self._folder.name).resolve()}/", "")
        return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


BLOCK = re.compile(r"^```\{(run|scfm)\}\n((?::\w+:[^\n]*\n)*)(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_page(path: Path) -> int:
    """Run all blocks of a page without Sphinx; their number."""
    count = 0
    with Page(path.name) as page:
        for kind, options, code in BLOCK.findall(path.read_text(encoding="utf-8")):
            count += 1
            if kind == "scfm":
                for line in code.strip().splitlines():
                    page.command(line)
            else:
                raises = re.search(r"^:raises: *(\w+)", options, re.MULTILINE)
                page.python(code, raises[1] if raises else None)
    return count


def setup(app: Any) -> dict[str, Any]:
    """Add the directives to Sphinx."""
    from docutils import nodes
    from docutils.parsers.rst import directives
    from sphinx.util import logging
    from sphinx.util.docutils import SphinxDirective

    pages: dict[str, Page] = {}
    stack = contextlib.ExitStack()
    app.connect("build-finished", lambda *_: stack.close())

    class _Directive(SphinxDirective):
        has_content = True

        def page(self) -> Page:
            name = self.env.docname
            if self.env.temp_data.get("scfm_page") is None:  # first block of this reading of the page
                self.env.temp_data["scfm_page"] = pages[name] = stack.enter_context(Page(name))
            return pages[name]

        def shown(self, text: str, language: str, kind: str) -> nodes.Node:
            node = nodes.literal_block(text, text, language=language)
            node["classes"].append(kind)
            return node

        def failed(self, error: PageError) -> list[nodes.Node]:
            logging.getLogger("scfm.docs").warning(str(error), location=self.get_location())
            return []

    class Run(_Directive):
        option_spec = {"raises": directives.unchanged, "hide": directives.flag}

        def run(self) -> list[nodes.Node]:
            code = "\n".join(self.content)
            try:
                output = self.page().python(code, self.options.get("raises"))
            except PageError as error:
                return self.failed(error)
            if "hide" in self.options:
                return []
            blocks = [self.shown(code, "python", "scfm-code")]
            if output:
                blocks.append(self.shown(output, "text", "scfm-error" if "raises" in self.options else "scfm-output"))
            return blocks

    class Scfm(_Directive):
        def run(self) -> list[nodes.Node]:
            blocks: list[nodes.Node] = []
            for line in self.content:
                output = self.page().command(line)
                if "unexpected" in output or "Traceback" in output:
                    return self.failed(PageError(f"scfm {line}: {output}"))
                blocks.append(self.shown(f"scfm {line}", "bash", "scfm-code"))
                if output:
                    blocks.append(self.shown(output, "text", "scfm-output"))
            return blocks

    app.add_directive("run", Run)
    app.add_directive("scfm", Scfm)
    return {"parallel_read_safe": False, "version": "1"}
