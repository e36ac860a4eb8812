"""Ledger remembers: what was answered, to whom, under which epoch."""
