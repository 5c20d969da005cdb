"""Stored sections: one array of tokens and a table of lengths, roles and ratios."""

import numpy as np

from lclm_jax.data.records import Role, Section
from lclm_jax.data.records.sections import flatten_sections, split_sections

EXAMPLE = [
    Section(range(10, 13), Role.FIXED),
    Section(np.array([7, 8], np.int64), Role.CONTEXT, 4),
    Section(range(0), Role.PROMPT),
    Section(range(5, 6), Role.ANSWER),
]


def test_an_example_as_arrays():
    tokens, table = flatten_sections(EXAMPLE)
    assert tokens.tolist() == [10, 11, 12, 7, 8, 5]
    assert table.tolist() == [[3, 1, 0], [2, 3, 4], [0, 2, 0], [1, 4, 0]]
    assert tokens.dtype == table.dtype == np.int32
    tokens, table = flatten_sections([])
    assert (tokens.shape, tokens.dtype, table.shape) == ((0,), np.int32, (0, 3))


def test_arrays_as_an_example():
    tokens, table = flatten_sections(EXAMPLE)
    sections = split_sections(tokens, table)
    assert [(section.tokens.tolist(), section.role, section.ratio) for section in sections] == [
        ([10, 11, 12], Role.FIXED, None),
        ([7, 8], Role.CONTEXT, 4),
        ([], Role.PROMPT, None),
        ([5], Role.ANSWER, None),
    ]
    assert all(type(section.role) is Role for section in sections)
    lengths = split_sections(range(100, 106), table)
    assert [section.tokens for section in lengths] == [
        range(100, 103),
        range(103, 105),
        range(105, 105),
        range(105, 106),
    ]


def test_the_numbers_of_roles_are_those_of_the_files():
    names = ["DOCUMENT", "FIXED", "PROMPT", "CONTEXT", "ANSWER", "ANALYSIS"]
    assert [role.name for role in Role] == names and list(map(int, Role)) == list(range(6))
