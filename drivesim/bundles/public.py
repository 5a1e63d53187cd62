"""Records without what is of nobody's interest but the machine's they were made on: where its folders are."""

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

# Of this machine: /a, ~/a, ./a, ../a, C:\a; a value by itself or after key=.
_LOCAL = re.compile(r"(?:~|\.{0,2})/|[A-Za-z]:[\\/]")


def public(value: Any) -> Any:
    """A copy of JSON in which folders of this machine are names alone, and URLs have neither password nor query."""
    if isinstance(value, dict):
        return {key: public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [public(item) for item in value]
    return _text(value) if isinstance(value, str) else value


def public_words(command: list[str]) -> list[str]:
    """Of a command line, word by word."""
    return [key + equals + _text(value) for key, equals, value in (_split(word) for word in command)]


def _split(word: str) -> tuple[str, str, str]:
    key, equals, value = word.partition("=")
    return (key, equals, value) if equals else ("", "", word)


def _text(text: str) -> str:
    if re.match(r"[a-z][a-z0-9+]*://", text):
        parts = urlsplit(text)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if _LOCAL.match(text):
        return (PureWindowsPath(text) if "\\" in text else PurePosixPath(text)).name
    return text
