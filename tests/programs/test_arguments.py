"""Types of arguments on the command lines."""

import argparse

import pytest

from vssl.commands.arguments import fraction, positive, whole


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (whole(1), "0", "0 must be at least 1"),
        (whole(1, 100), "101", "101 must be between 1 and 100"),
        (whole(1), "1.5", "invalid whole number value: '1.5'"),
        (positive, "0", "0 must be greater than 0"),
        (positive, "nan", "nan must be greater than 0"),
        (positive, "inf", "inf must be greater than 0"),
        (fraction, "0", "0 must be between 0 and 1, both excluded"),
        (fraction, "1", "1 must be between 0 and 1, both excluded"),
        (fraction, "nan", "nan must be between 0 and 1, both excluded"),
        (positive, "few", "invalid number value: 'few'"),
    ],
)
def test_a_number_out_of_its_range_is_refused(kind, text, message):
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--number", type=kind)
    with pytest.raises(argparse.ArgumentError, match=message):
        parser.parse_args([f"--number={text}"])


def test_both_ends_of_a_range_belong_to_it():
    assert (whole(1, 100)("1"), whole(1, 100)("100"), whole(0)("0")) == (1, 100, 0)
    assert positive("1e-3") == 0.001
