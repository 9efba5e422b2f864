"""What any program needs: errors, files, locks, environment, logging, signals, seeds, processes, safe reading, version.

May import no other wing.
"""
