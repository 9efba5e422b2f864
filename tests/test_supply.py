"""What is installed: pinned, hashed, the same in every file; and what is said about it (audit, SBOM)."""

import hashlib
import importlib.metadata
import json
import re
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts import audit
from scripts.lock import HEADER, blocks

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements"
FILES = sorted(path.stem for path in REQUIREMENTS.glob("*.in"))


def wanted(name: str) -> list[Requirement]:
    """What an .in file and those that it takes in ask for."""
    lines = [line.split("#")[0].strip() for line in (REQUIREMENTS / f"{name}.in").read_text("utf-8").splitlines()]
    taken = [wanted(line[3:].removesuffix(".in")) for line in lines if line.startswith("-r ")]
    own = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return [requirement for more in taken for requirement in more] + own


def locked(name: str) -> dict[str, str]:
    """The text about each package in a .txt file and in those that it takes in."""
    text = (REQUIREMENTS / f"{name}.txt").read_text("utf-8")
    taken = [locked(line[3:].removesuffix(".txt")) for line in text.splitlines() if line.startswith("-r ")]
    return {package: block for part in [*taken, blocks(text)] for package, block in part.items()}


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_what_make_lock_writes_of_it(name: str) -> None:
    text = (REQUIREMENTS / f"{name}.txt").read_text("utf-8")
    assert text.startswith(HEADER.format(name=name))
    taken = re.findall(r"^-r (\w+)\.in$", (REQUIREMENTS / f"{name}.in").read_text("utf-8"), re.MULTILINE)
    assert re.findall(r"^-r (\w+)\.txt$", text, re.MULTILINE) == taken
    rest = re.sub(r"^-r \w+\.txt\n", "", text.removeprefix(HEADER.format(name=name)), flags=re.MULTILINE)
    assert "".join(blocks(rest).values()) == rest
    assert "://" not in text, "an address of an index"


@pytest.mark.parametrize("name", FILES)
def test_every_package_has_one_version_and_hashes(name: str) -> None:
    for package, block in locked(name).items():
        pin, *hashes = block.rstrip("\n").split(" \\\n")
        assert re.fullmatch(r"[a-z0-9-]+(\[[\w,]+\])?==[\w.!+]+( ; .+)?", pin), f"{package}: {pin}"
        assert hashes, f"{package} has no hash"
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", line) for line in hashes), block


def test_a_package_is_the_same_in_every_file() -> None:
    seen: dict[str, dict[str, str]] = {}
    for name in FILES:
        for package, block in locked(name).items():
            version = block.split(" ", maxsplit=1)[0]
            seen.setdefault(package, {})[name] = version + "".join(re.findall(r"--hash=\S+", block))
    assert {package: list(places) for package, places in seen.items() if len(set(places.values())) > 1} == {}


@pytest.mark.parametrize("name", FILES)
def test_an_edited_file_was_locked_again(name: str) -> None:
    pins = {package: Requirement(block.split(" ", maxsplit=1)[0]) for package, block in locked(name).items()}
    for requirement in wanted(name):
        assert str(requirement.specifier).startswith("=="), f"{name}.in: not pinned: {requirement}"
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{name}.txt has no {requirement}: run `make lock`"
        assert pin.specifier == requirement.specifier, f"{name}.txt has {pin}, not {requirement}: run `make lock`"


@pytest.mark.parametrize("name", FILES)
def test_nothing_that_an_installed_package_needs_is_missing(name: str) -> None:
    packages = locked(name)
    for package, block in packages.items():
        found = [dist for dist in importlib.metadata.distributions(name=package) if f"=={dist.version} " in block]
        for need in map(Requirement, found[0].requires or [] if found else []):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                assert canonicalize_name(need.name) in packages, f"{name}.txt lacks {need}, which {package} needs"


def pip(target: Path, requirements: Path) -> subprocess.CompletedProcess[str]:
    """Install as the Makefile does, from the folder of the requirements file alone."""
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--isolated"]
    command += ["--no-index", "--find-links", str(requirements.parent), "--no-deps", "--target", str(target)]
    command += ["--require-hashes", "--requirement", str(requirements)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def wheel(path: Path) -> str:
    """Write a package with one module; returns the SHA-256 of the file."""
    folder = "toy-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("toy.py", "")
        file.writestr(f"{folder}/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        file.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{folder}/RECORD", "toy.py,,\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_with_another_hash_is_not_installed(tmp_path: Path) -> None:
    digest = wheel(tmp_path / "toy-1.0-py3-none-any.whl")
    requirements = tmp_path / "toy.txt"
    block = f"{HEADER.format(name='toy')}toy==1.0 \\\n    --hash=sha256:"
    requirements.write_text(f"{block}{digest}\n")
    done = pip(tmp_path / "whole", requirements)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "whole/toy.py").exists()

    requirements.write_text(f"{block}{'0' * 64}\n")
    refused = pip(tmp_path / "other", requirements)
    assert refused.returncode != 0
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in refused.stderr
    assert not (tmp_path / "other/toy.py").exists()


# ------------------------------------------------------------------------------------------ known vulnerabilities

FINDING = {
    "id": "OSV-1",
    "aliases": ["CVE-1"],
    "summary": "bad",
    "affected": [
        {
            "package": {"name": "jinja2", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.1"}]}],
        }
    ],
}


@pytest.fixture
def service() -> Any:
    """An OSV service on the loopback that knows something of jinja2."""
    pytest.importorskip("pip_audit")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found = asked["package"]["name"] == "jinja2"
            answer = json.dumps({"vulns": [FINDING]} if found else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two requirements, for the audit."""
    (tmp_path / "requirements").mkdir()
    (tmp_path / ".venv/stamps").mkdir(parents=True)
    text = "".join(f"{name} \\\n    --hash=sha256:{'0' * 64}\n" for name in ("jinja2==3.0", "six==1.0"))
    (tmp_path / "requirements/base.txt").write_text(HEADER.format(name="base") + text)
    (tmp_path / "requirements/demo.txt").write_text(HEADER.format(name="demo") + "-r base.txt\n")
    monkeypatch.setattr(audit, "ROOT", tmp_path)
    monkeypatch.setattr(audit, "STAMP", tmp_path / ".venv/stamps/audit")
    return tmp_path


def test_a_known_vulnerability_fails_the_audit_unless_a_reason_is_given(
    small: Path, service: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert audit.main(["--osv-url", service]) == 1
    printed = capsys.readouterr().out
    assert "audit: jinja2 3.0: CVE-1 OSV-1; mended in 99.1" in printed
    assert not audit.STAMP.exists()

    monkeypatch.setitem(audit.ACCEPTED, "OSV-1", "templates are our own")
    assert audit.main(["--daily", "--osv-url", service]) == 0
    assert "audit: 2 packages, 1 findings accepted" in capsys.readouterr().out
    assert audit.STAMP.exists()


def test_a_service_that_cannot_be_asked_is_said_in_one_line_and_fails_nothing(
    small: Path, service: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.main(["--osv-url", service.rpartition(":")[0] + ":1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("audit: not done, for the service could not be asked: ")
    assert printed.count("\n") == 1
    assert not audit.STAMP.exists(), "what was not asked is asked again"


# -------------------------------------------------------------------------------------------------------- the SBOM


def component(name: str, version: str, **more: object) -> dict[str, Any]:
    """A package as cyclonedx-py describes it."""
    return {"type": "library", "bom-ref": f"{name}=={version}", "name": name, "version": version} | more


def test_an_sbom_joins_licences_and_hashes_of_the_packages_of_an_app() -> None:
    pytest.importorskip("cyclonedx")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    from scripts.sbom import joined

    licence = [{"license": {"id": "MIT"}}]
    references = [{"type": "distribution", "url": "x", "hashes": [{"alg": "SHA-256", "content": "0" * 64}]}]
    installed = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "metadata": {},
        "components": [component("My_Tool", "1", licenses=licence), component("dep", "2"), component("ruff", "3")],
        "dependencies": [{"ref": "My_Tool==1", "dependsOn": ["dep==2", "ruff==3"]}, {"ref": "dep==2"}],
    }
    named = (("my-tool", "1"), ("dep", "2"))
    downloads = [component(name, version, externalReferences=references) for name, version in named]
    listed = {"components": downloads}
    bom = joined("demo", installed, listed)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bom)) is None
    assert [(part["name"], part["externalReferences"]) for part in bom["components"]] == [
        ("My_Tool", references),
        ("dep", references),
    ]
    assert bom["components"][0]["licenses"] == licence
    assert [(entry["ref"], entry["dependsOn"]) for entry in bom["dependencies"]] == [
        ("My_Tool==1", ["dep==2"]),
        ("dep==2", []),
        ("quartet", ["My_Tool==1"]),
    ]

    listed["components"][1]["version"] = "3"
    with pytest.raises(SystemExit, match=r"dep==2, other versions than requirements/demo\.txt"):
        joined("demo", installed, listed)
