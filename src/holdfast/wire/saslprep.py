"""SASLprep (RFC 4013), as PostgreSQL applies it to passwords: what cannot be prepared is used as it is."""

from __future__ import annotations

import stringprep
import unicodedata

_PROHIBITED = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
    stringprep.in_table_a1,
)


def prepare_password(password: str) -> bytes:
    """The bytes that are hashed. Prohibited or wrongly mixed characters leave the password as it is (pg_saslprep)."""
    if password.isascii():
        return password.encode()
    mapped = "".join(" " if stringprep.in_table_c12(c) else c for c in password if not stringprep.in_table_b1(c))
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    if not prepared or any(check(c) for c in prepared for check in _PROHIBITED) or not _is_bidirectional(prepared):
        return password.encode()
    return prepared.encode()


def _is_bidirectional(text: str) -> bool:
    """RFC 3454, section 6: right-to-left text neither mixes with left-to-right nor ends in anything else."""
    if not any(stringprep.in_table_d1(c) for c in text):
        return True
    if any(stringprep.in_table_d2(c) for c in text):
        return False
    return stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])
