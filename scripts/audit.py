"""Ask the OSV service about known vulnerabilities of everything that requirements/*.txt pin: part of `make lint`.

make audit            # asks now
make lint             # asks at most once a day, as long as the files stay the same

A finding that is not in `ACCEPTED` ends with exit code 1. Where the service cannot be reached, one line says so, and
nothing fails: a build without network is not a vulnerable one. Some 200 small requests, half a minute.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STAMP = ROOT / ".venv" / "stamps" / "audit"
DAY = 24 * 3600.0  # seconds

# Findings that do not concern us: the id that pip-audit prints, and why. Remove a line when its package is upgraded.
ACCEPTED: dict[str, str] = {}


def report(requirements: list[Path], *options: str) -> list[dict[str, Any]] | str:
    """What pip-audit finds for each package, or, if it could not ask, the last line of what it says."""
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv", "--disable-pip", "--require-hashes"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "10", *options]
    command += [word for name in ACCEPTED for word in ("--ignore-vuln", name)]
    command += [word for path in requirements for word in ("--requirement", str(path))]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603  # our own interpreter and files
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return packages


def verdict(packages: list[dict[str, Any]]) -> tuple[list[str], int]:
    """What to print about pip-audit's findings, and the exit code: 1 if anything was found."""
    found = [
        f"{package['name']} {package['version']}: {vulnerability['id']} {' '.join(vulnerability['aliases'])}; "
        f"mended in {', '.join(vulnerability['fix_versions']) or 'no version yet'}"
        for package in packages
        for vulnerability in package.get("vulns", [])
    ]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    lines = [f"audit: {line}" for line in found]
    if unknown:
        lines.append(f"audit: the service could not say anything of {len(unknown)} packages: {', '.join(unknown)}")
    if found:
        lines.append("audit: pin another version in the .in file and run `make lock`, or say why not in `ACCEPTED`")
    return lines, int(bool(found))


def main(arguments: list[str] | None = None) -> int:
    """Ask and print; 0 if nothing is known, or nobody could be asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--daily", action="store_true", help="not again if nothing was found today, in the same files")
    parser.add_argument("--osv-url", default=None, help="another address of the service, such as a mirror's")
    given = parser.parse_args(arguments)
    requirements = sorted((ROOT / "requirements").glob("*.txt"))
    newest = max(path.stat().st_mtime for path in [*requirements, Path(__file__)])
    if given.daily and STAMP.exists() and STAMP.stat().st_mtime > max(newest, time.time() - DAY):
        return 0
    packages = report(requirements, *(["--osv-url", given.osv_url] if given.osv_url else []))
    if isinstance(packages, str):
        print(f"audit: not done, for the service could not be asked: {packages[:200]}")
        return 0
    lines, code = verdict(packages)
    print("\n".join([*lines, f"audit: {len(packages)} packages, {len(ACCEPTED)} findings accepted"]))
    if code == 0 and STAMP.parent.is_dir():
        STAMP.touch()
    return code


if __name__ == "__main__":
    sys.exit(main())
