"""Examples in docstrings give what they show."""

import doctest
import pkgutil
from importlib import import_module

import pytest

import scfm

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(scfm.__path__, "scfm.")
    if not module.name.startswith(("scfm.adapters", "scfm.tasks", "scfm.recipes"))
)


@pytest.mark.parametrize("name", ["scfm", *MODULES])
def test_docstring_examples_hold(name: str) -> None:
    result = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
