"""The table that `make fuzz` ends with: how often a parser read, seconds of the processor, and how the cases ended."""

import os
from typing import Any

_COLUMNS = ("cases", "seconds", "value", "refused", "failure")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line for each test that records counts, see `cases.explore`."""
    if "FUZZ_CASES" not in os.environ:
        return
    terminalreporter.section("fuzzing")
    terminalreporter.line(f"{'':<62}" + "".join(f"{name:>9}" for name in _COLUMNS))
    for report in [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]:
        for name, counts in report.user_properties:
            if name == "fuzz":
                what = report.nodeid.rpartition("/")[2].replace("test_a_damaged_file_is_a_value_or_one_error", "")
                terminalreporter.line(f"{what[:61]:<62}" + "".join(f"{counts.get(key, 0):>9.0f}" for key in _COLUMNS))
