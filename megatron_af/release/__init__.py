"""Which checkpoint is in production, and why: registered versions, promotion gates, aliases that move together.

    register -> candidate -> gates -> champion (and previous-champion) -> rollback

A version is a checkpoint by address and digest, with its lineage and its evaluation; nothing large passes through the
server. ``tools/promote.py`` is the command.
"""
