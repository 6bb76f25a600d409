import inspect
import pickle
import re

import pytest

from scfm import errors
from scfm.errors import ScfmError, listing

ALL = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, ScfmError)]


def test_the_tree_in_the_docstring_is_the_tree():
    drawn = set(re.findall(r"\w+Error\b", errors.__doc__.split("A message")[0])) - {
        "ValueError",
        "LookupError",
        "TypeError",
        "ImportError",
    }
    assert drawn == {error.__name__ for error in ALL}


@pytest.mark.parametrize("error", ALL)
def test_builtin_parents_are_those_in_the_docstring(error):
    line = re.search(rf"{error.__name__} .*", errors.__doc__)
    said = re.findall(r"also an? (\w+)", line[0]) if line else []
    builtin = [base.__name__ for base in error.__bases__ if base.__module__ == "builtins" and base is not Exception]
    assert said == builtin


def test_messages_say_what_was_found_and_what_to_type():
    error = errors.InputError("found this.", "Type that.")
    assert str(error) == "found this.\n  Type that."
    assert (error.found, error.fix) == ("found this.", "Type that.")
    assert str(errors.InputError("found this.")) == "found this."


@pytest.mark.parametrize("error", ALL)
def test_errors_reach_other_processes(error):
    before = error("found this.", "Type that.")
    after = pickle.loads(pickle.dumps(before))
    assert type(after) is error
    assert (str(after), after.found, after.fix) == (str(before), before.found, before.fix)


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([], ""),
        (["a"], "'a'"),
        (["a", "b"], "'a', 'b'"),
        ([1, "b"], "1, 'b'"),
        (range(10), "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"),
        ((c for c in "abcdefgh"), "'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'"),
    ],
)
def test_listing(items, text):
    assert listing(items) == text


def test_listing_limit():
    assert listing("abc", 1) == "'a' and 2 more"
