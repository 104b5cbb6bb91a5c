"""Tables for a terminal."""

from deepres.text_table import aligned


def test_cells_are_aligned():
    assert aligned([["a", "b"], ["ccc", "dd"]]) == ["a     b", "ccc  dd"]
    assert aligned([["a", "b"], ["ccc", ""]], left=()) == ["  a  b", "ccc"]
