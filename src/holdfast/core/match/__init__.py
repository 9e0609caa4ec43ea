"""Lost rows held against a ledger of the world outside: which to bring back, which to refund, which to leave. Pure.

`values` says which texts mean the same value; `rules` judges one key; `matcher` goes through a ledger; `selection` says
which transactions to bring back, and what they need.
"""
