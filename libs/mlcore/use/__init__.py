"""What a run is for: its model at work on files and tables, as one command and as a job that goes on when killed.

May import base, data, cli, remote, report and run.
"""
