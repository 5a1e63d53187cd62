"""What is published says what was done, and not where."""

import pytest

from drivesim.bundles.public import public, public_command


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/me/town", "town"),
        ("~/town/", "town"),
        ("../data/town", "town"),
        ("C:\\data\\town", "town"),
        ("town", "town"),
        ("runs/town", "runs/town"),
        ("night and cars > 5", "night and cars > 5"),
        ("https://me:word@host/store?key=1", "https://host/store"),
        ("s3://bucket/store", "s3://bucket/store"),
    ],
)
def test_folders_of_the_machine_are_names_alone(text, left):
    assert public({"a": [{"b": text}], "c": 3}) == {"a": [{"b": left}], "c": 3}


@pytest.mark.parametrize(
    ("command", "left"),
    [
        ("drivesim train data=/home/me/town config.data.where='night and cars > 5'",
         "drivesim train data=town 'config.data.where=night and cars > 5'"),
        ("/usr/bin/drivesim train data=https://a:b@host/x?k=v", "drivesim train data=https://host/x"),
        ("drivesim 'open", ""),
        (None, ""),
    ],
)  # fmt: skip
def test_a_command_keeps_its_words(command, left):
    assert public({"command": command})["command"] == public_command(command) == left
