"""From files to batches: a resumable order, the loader, pictures, records of tables, duplicates and fingerprints.

May import base and config.
"""
