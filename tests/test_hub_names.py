"""What is no name of a repository on the hub, and what to write instead."""

import pytest

from steermoe.hub_names import problem_of_name


@pytest.mark.parametrize(
    "name", ["allenai/OLMoE-1B-7B-0924", "a/b", "a_/_b", "o-n/x.y_z", "a/" + "x" * 96]
)
def test_what_the_hub_takes_has_no_problem(name):
    validators = pytest.importorskip("huggingface_hub.utils._validators")
    validators.validate_repo_id(name)
    assert problem_of_name(name) == ""


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("", "OWNER/NAME"),
        ("olmoe", "OWNER/NAME"),
        ("a/b/c", "OWNER/NAME"),
        ("a/", "OWNER/NAME"),
        ("a b/c", "' ' is in no name"),
        ("a/ü", "'ü' is in no name"),
        ("a/-b", "'-b' begins or ends"),
        ("a./b", "'a.' begins or ends"),
        ("a/b--c", "'--' is in no name"),
        ("a/b.git", "give 'a/b'"),
        ("a/" + "x" * 97, "longer than 96"),
        (" a/b", "give 'a/b'"),
        ("a/b@main", "--set model.revision=main"),
        ("https://huggingface.co/a/b/tree/main", "give 'a/b'"),
        ("hf://a/b", "give 'a/b'"),
    ],
)
def test_each_fault_is_named_with_what_to_write(name, word):
    assert word in problem_of_name(name)
