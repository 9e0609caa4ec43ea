"""What the proxy takes for granted of PostgreSQL's grammar, asked of PostgreSQL."""

from __future__ import annotations

import pytest

from holdfast.wire.readonly import GRAMMAR, TYPES
from tests.proxy.conftest import with_oldest_and_newest
from tests.proxy.servers import Server

pytestmark = pytest.mark.live


@with_oldest_and_newest
def test_nobody_can_call_a_function_by_a_word_of_the_grammar(lasting: Server) -> None:
    """Unquoted, that is: such words are reserved, or cannot be the name of a function (pg_get_keywords)."""
    kept = {word for (word,) in lasting.query("select word from pg_get_keywords() where catcode in ('R', 'C')")}
    assert set() == (GRAMMAR | TYPES) - kept


@with_oldest_and_newest
def test_a_comment_ends_at_a_carriage_return(lasting: Server) -> None:
    assert lasting.query("select 1 -- a\r + 1") == [(2,)]
