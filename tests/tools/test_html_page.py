"""The page of tables and pictures."""

import re

from matplotlib.figure import Figure

from interface.html_page import Section, page_html


def test_the_page_needs_nothing_from_elsewhere_and_escapes_its_text():
    figure = Figure()
    figure.subplots().plot([1, 2])
    table = ("a < b", [["net", "bytes"], ["<script>", "1 & 2"]])
    html = page_html("<title>", "a command", [Section("one", ["a line"], [table], [("a picture", figure)])])
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    assert "http" not in html
    assert html.count("<img ") == 1
