"""For all tests."""

from __future__ import annotations

import signal

# A suite that a shell runs in the background is started with SIGINT ignored, and so would be all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
