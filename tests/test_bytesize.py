import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepres.bytesize import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("8GiB", 8 * 2**30),
        ("8 GB", 8 * 10**9),
        ("8gib", 8 * 2**30),
        (8e9, 8 * 10**9),
        ("8e9", 8 * 10**9),
        ("1.5 MiB", 3 * 2**19),
        (4096, 4096),
        ("512 B", 512),
    ],
)
def test_sizes_are_read_as_people_write_them(text, num_bytes):
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize(
    "text", ["lots", -1, "-1", "0", 0, "8 Gigs", "GiB", "", "nan", float("inf"), True, "1.2.3 MB"]
)
def test_what_is_no_positive_size_is_refused_with_what_came(text):
    with pytest.raises(ValueError, match="expected a positive size") as caught:
        parse_bytes(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1024, "1.00 KiB"),
        (1536 * 1024, "1.50 MiB"),
        (146 * 2**20, "146 MiB"),
        (int(18.3 * 2**30), "18.3 GiB"),
        (2**40, "1024 GiB"),
    ],
)
def test_sizes_are_shown_with_three_digits(num_bytes, text):
    assert format_bytes(num_bytes) == text


@given(st.integers(1, 2**45))
def test_what_is_shown_reads_back_within_half_a_percent(num_bytes):
    assert parse_bytes(format_bytes(num_bytes)) == pytest.approx(num_bytes, rel=0.0051)
