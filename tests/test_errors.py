"""Text from outside: no secrets of URLs in messages, and nothing that steers a terminal."""

from __future__ import annotations

import time

import pytest

from ssole.errors import ConfigError, DataError, printable, quoted, without_secrets


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("https://host/a.tar?X-Amz-Signature=abc&b=1", "https://host/a.tar?REMOVED"),
        ("https://me:secret@host:80/a.tar", "https://REMOVED@host:80/a.tar"),
        ("s3://key:secret@bucket/a.tar", "s3://REMOVED@bucket/a.tar"),
        ("simplecache::https://me@host/a?b", "simplecache::https://REMOVED@host/a?REMOVED"),
        ("ftp://a:p%40ss@host/x y?z", "ftp://REMOVED@host/x y?z"),  # a blank ends a URL
        ("got 'http://h/a?b', and \"http://h/c?d\".", "got 'http://h/a?REMOVED', and \"http://h/c?REMOVED\"."),
        ("(http://h/a?b=1) and http://h/c", "(http://h/a?REMOVED) and http://h/c"),
        ("https://host/a.tar", "https://host/a.tar"),
        ("/data/me@work/what?.png and C:/x?y", "/data/me@work/what?.png and C:/x?y"),
    ],
)
def test_urls_lose_passwords_and_queries(text: str, plain: str) -> None:
    assert without_secrets(text) == plain
    assert str(DataError(text)) == str(ConfigError(text)) == plain


def test_long_texts_take_no_time() -> None:
    begin = time.process_time()  # a busy machine does not add to it
    for text in ("a" * 10**6, "a://" * 10**5, "a://b@" * 10**5, ":" * 10**6):
        without_secrets(text)
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07\x1b[31mred", r"\x1b]0;title\x07\x1b[31mred"),
        ("a\x9b31mb\x7f\x00", r"a\x9b31mb\x7f\x00"),
        ("gpj.\u202egnp", r"gpj.\u202egnp"),
        ("\r\x08over", r"\r\x08over"),
        ("\udcff", r"\udcff"),
        ("Zürich 東京 😀\n\tnext line", "Zürich 東京 😀\n\tnext line"),
    ],
)
def test_what_steers_a_terminal_is_shown_as_its_code(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_command_is_one_that_the_shell_of_the_system_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssole.errors._WINDOWS", False)
    assert (quoted("runs/mine"), quoted("my runs/1")) == ("runs/mine", "'my runs/1'")
    monkeypatch.setattr("ssole.errors._WINDOWS", True)
    assert (quoted(r"runs\mine"), quoted(r"my runs\1")) == (r"runs\mine", r'"my runs\1"')
