"""Which statements surely only read, so that a standby may answer them.

It is judged by the text alone, and by what is allowed rather than by what is forbidden: one SELECT, VALUES, TABLE or
WITH, no word in it that could be part of anything else, and every name before a parenthesis known as a function of
PostgreSQL that is immutable or stable (`READING`), as a type, or as a word of the grammar. What a text does not show is
not seen: a view, an operator, a cast or a row policy may call a function. A standby refuses all that writes, whoever
calls it; then the primary is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from holdfast.wire.sql import Kind, Token, split_statements

TEXT_BYTES_MAX: Final = 16 * 1024
"""Longer statements are not looked into: that costs time."""

_BEGINNINGS: Final = frozenset(("select", "with", "values", "table"))


def _words(text: str) -> frozenset[str]:
    """The words of a list; lines that begin with ``#`` say what follows."""
    lines = (line.strip() for line in text.splitlines())
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


_FORBIDDEN: Final = _words(
    """
    into insert update delete merge for lock share nextval setval currval lastval notify listen execute call copy
    create alter drop truncate grant do declare fetch move prepare operator xmltable json_table cursor uescape
    """
)
"""Words that begin another kind of statement, take locks, name sequences, or hide a function or a name behind them. A
column of such a name is read from the primary."""
_OF_A_SEQUENCE: Final = frozenset(("last_value", "log_cnt", "is_called"))
"""Columns of sequences, of which the log tells 32 values ahead: a standby shows others than the primary."""
GRAMMAR: Final = _words(
    """
    all and any array as between case coalesce distinct else except exists extract from greatest group grouping having
    in intersect lateral least limit not normalize nullif offset on or overlay position row select some substring
    symmetric then trim union using values when where window with
    """
)
"""What may stand before a parenthesis and is no function: words of the grammar, or functions that it knows by heart.
Nobody can call a function of his own so (PostgreSQL manual, appendix C: reserved, or "cannot be function or type")."""
TYPES: Final = _words(
    "bit char character dec decimal float int integer interval numeric precision time timestamp varchar"
)
"""Types that have something in parentheses, of which that is so as well."""
_AFTER: Final = {
    "by": _words("group order partition"),
    "cube": _words("by"),
    "rollup": _words("by"),
    "sets": _words("grouping"),
    "materialized": _words("as not"),
    "join": _words("left right full inner outer cross natural"),
    "filter": frozenset(")"),
    "over": frozenset(")"),
}
"""Other words of the grammar, which are that after these only: elsewhere they are functions of somebody's."""
READING: Final = _words(
    """
    # aggregates and windows
    array_agg avg bit_and bit_or bit_xor bool_and bool_or corr count covar_pop covar_samp cume_dist dense_rank every
    first_value json_agg json_object_agg jsonb_agg jsonb_object_agg lag last_value lead max min mode nth_value ntile
    percent_rank percentile_cont percentile_disc rank regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope
    regr_sxx regr_sxy regr_syy row_number stddev stddev_pop stddev_samp string_agg sum var_pop var_samp variance
    range_agg range_intersect_agg
    # numbers
    abs acos acosd acosh asin asind asinh atan atan2 atan2d atand atanh cbrt ceil ceiling cos cosd cosh cot cotd degrees
    div erf erfc exp factorial floor gcd lcm ln log log10 min_scale mod pi power radians round scale sign sin sind sinh
    sqrt tan tand tanh trim_scale trunc width_bucket generate_series
    # texts and bytes
    ascii bit_count bit_length btrim char_length character_length chr concat concat_ws convert convert_from convert_to
    decode encode format get_bit get_byte initcap left length lower lpad ltrim md5 octet_length quote_ident
    quote_literal quote_nullable regexp_count regexp_instr regexp_like regexp_match regexp_matches regexp_replace
    regexp_split_to_array regexp_split_to_table regexp_substr repeat replace reverse right rpad rtrim set_bit set_byte
    sha224 sha256 sha384 sha512 split_part starts_with string_to_array string_to_table strpos substr to_ascii to_hex
    translate unistr upper
    # times
    age date_bin date_part date_trunc isfinite justify_days justify_hours justify_interval make_date make_interval
    make_time make_timestamp make_timestamptz now statement_timestamp to_char to_date to_number to_timestamp
    transaction_timestamp timezone
    # arrays and ranges
    array_append array_cat array_dims array_fill array_length array_lower array_ndims array_position array_positions
    array_prepend array_remove array_replace array_to_string array_upper cardinality generate_subscripts isempty
    lower_inc lower_inf range_merge trim_array unnest upper_inc upper_inf int4range int8range numrange tsrange tstzrange
    daterange multirange
    # JSON
    array_to_json json_array_elements json_array_elements_text json_array_length json_build_array json_build_object
    json_each json_each_text json_extract_path json_extract_path_text json_object json_object_keys json_populate_record
    json_populate_recordset json_strip_nulls json_to_record json_to_recordset json_typeof jsonb_array_elements
    jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each jsonb_each_text
    jsonb_extract_path jsonb_extract_path_text jsonb_insert jsonb_object jsonb_object_keys jsonb_path_exists
    jsonb_path_match jsonb_path_query jsonb_path_query_array jsonb_path_query_first jsonb_populate_record
    jsonb_populate_recordset jsonb_pretty jsonb_set jsonb_set_lax jsonb_strip_nulls jsonb_to_record jsonb_to_recordset
    jsonb_typeof row_to_json to_json to_jsonb
    # searching texts, networks, shapes, and what is left
    numnode phraseto_tsquery plainto_tsquery querytree setweight strip to_tsquery to_tsvector ts_headline ts_rank
    ts_rank_cd tsvector_to_array websearch_to_tsquery abbrev broadcast family host hostmask masklen netmask network area
    center diameter point circle box path polygon num_nonnulls num_nulls enum_first enum_last enum_range
    """
)
"""Functions of ``pg_catalog`` of which every one by that name is immutable or stable; a test asks PostgreSQL."""
_CATALOG: Final = "pg_catalog"
_UNICODE_NAME: Final = b'u&"'
"""Begins a name whose letters may be written as numbers: it is not looked into."""
_NAMES: Final = tuple(Token(Kind.WORD, word) for word in ("as", "with", "recursive"))
"""After these a name before a parenthesis is no function."""


def is_read_only(sql: bytes) -> bool:
    """Whether the text is one statement that surely only reads, and that reads nothing of one server alone."""
    if not sql or len(sql) > TEXT_BYTES_MAX:
        return False
    return _is_read_only(sql)


@lru_cache(maxsize=2048)
def _is_read_only(sql: bytes) -> bool:
    if _UNICODE_NAME in sql.lower():
        return False
    statements = split_statements(sql)
    if len(statements) != 1 or statements[0].word(0) not in _BEGINNINGS:
        return False
    tokens = statements[0].tokens
    return all(_only_reads(tokens, index, token) for index, token in enumerate(tokens))


def _only_reads(tokens: Sequence[Token], index: int, token: Token) -> bool:
    if token.kind is Kind.SIGN:
        return True
    if token.kind is Kind.WORD or token.kind is Kind.QUOTED:
        text = token.text
        if text.startswith("pg_") and text != _CATALOG:
            return False  # statistics, locks, settings: each server has its own
        if token.kind is Kind.WORD and text in _FORBIDDEN:
            return False
        if text in _OF_A_SEQUENCE and not _is_before_parenthesis(tokens, index):
            return False
        return not _is_before_parenthesis(tokens, index) or _may_take_arguments(tokens, index, token)
    return True


def _is_before_parenthesis(tokens: Sequence[Token], index: int) -> bool:
    return index + 1 < len(tokens) and tokens[index + 1] == (Kind.SIGN, "(")


def _may_take_arguments(tokens: Sequence[Token], index: int, token: Token) -> bool:
    """Whether a name before a parenthesis is a function that only reads, a type, or a word of the grammar.

    Or one that has names of columns there: after AS, and at the beginning of a WITH.
    """
    if index > 0 and tokens[index - 1] in _NAMES:
        return True
    if index > 0 and tokens[index - 1] == (Kind.SIGN, "."):
        schema = tokens[index - 2] if index > 1 else None
        is_first = index < 3 or tokens[index - 3] != (Kind.SIGN, ".")
        is_catalog = schema is not None and schema.kind in (Kind.WORD, Kind.QUOTED) and schema.text == _CATALOG
        return is_catalog and is_first and (token.text in READING or token.text in TYPES)
    if token.kind is Kind.QUOTED:
        return token.text in READING
    if token.text in _AFTER:
        return index > 0 and tokens[index - 1].kind is not Kind.QUOTED and tokens[index - 1].text in _AFTER[token.text]
    return token.text in READING or token.text in GRAMMAR or token.text in TYPES
