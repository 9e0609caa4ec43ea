"""Lost rows held against a ledger: `files` and `query` read it, `run` is the whole of it, `seen` counts its keys."""
