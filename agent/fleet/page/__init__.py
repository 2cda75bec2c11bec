"""The page of a whole fleet: how each line is, the worst first.

    brokers of sites ── state, health ──▶ Lines ──┐
    bucket ── Parquet, read by DuckDB ──▶ Sums ───┴▶ one screen ──▶ browsers

It only reads. Guard, users, server and style are those of the operator's page.
"""
