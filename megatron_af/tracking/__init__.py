"""Every run of a curriculum in MLflow: parameters, metrics by step, pictures, lineage; never in training's way.

    job (callback.py, runs.py)  ->  spool on disk (spool.py)  ->  sender process (sender.py, delivery.py)  ->  MLflow

A job only appends to its spool. The sender makes the run, below the curriculum's run, and delivers the records, each
once, whenever the server takes them.
"""
