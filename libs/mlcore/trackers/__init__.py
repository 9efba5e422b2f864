"""Where a run's figures go while it trains: metrics.jsonl and .csv, the console, TensorBoard, W&B.

May import base and config.
"""
