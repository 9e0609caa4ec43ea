"""The head of a message: its type byte and its length. The compiled proxy has another body for this: `heads.pxd`."""

from __future__ import annotations

import struct

header = struct.Struct("!BI").unpack_from
"""``header(data, position)``: type and length of the message that begins there; the length counts itself."""
