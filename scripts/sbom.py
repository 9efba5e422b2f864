"""Write what an app's environment consists of, as CycloneDX JSON: packages with licences, hashes and who needs whom.

make sbom APP=perceiver     # writes dist/quartet-perceiver.cdx.json, half a minute

Versions, licences and the graph are those of .venv, limited to what requirements/<app>.txt names; the hashes are those
against which pip checked the downloads. cyclonedx-py reads both; what it knows of each package is joined here.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from mlcore.base.files import write_text
from mlcore.base.version import VERSION

ROOT = Path(__file__).resolve().parents[1]
Bom = dict[str, Any]


def read(*arguments: str) -> Bom:
    """What cyclonedx-py makes of its arguments."""
    command = [sys.executable, "-m", "cyclonedx_py", *arguments, "--output-format", "JSON", "--spec-version", "1.6"]
    command += ["--output-reproducible"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)  # noqa: S603
    bom: Bom = json.loads(done.stdout)
    return bom


def identity(component: Bom) -> tuple[str, str]:
    """Name, spelled as PEP 503 says, and version."""
    return re.sub(r"[-_.]+", "-", component["name"]).lower(), component["version"]


def joined(app: str, installed: Bom, listed: Bom) -> Bom:
    """The packages of `installed` that `listed` names in the same version, with the hashes that are there.

    Raises:
        SystemExit: .venv has another version of one.
    """
    downloads = {identity(component): component["externalReferences"] for component in listed["components"]}
    found = dict(map(identity, installed["components"]))
    other = sorted(f"{name}=={found[name]}" for name, version in downloads if found.get(name, version) != version)
    if other:
        raise SystemExit(
            f"sbom: .venv has {', '.join(other)}, other versions than requirements/{app}.txt: remove "
            f".venv/stamps/{app} and run `make sbom APP={app}`"
        )
    components = [component for component in installed["components"] if identity(component) in downloads]
    for component in components:
        component.setdefault("externalReferences", []).extend(downloads[identity(component)])
    kept = {component["bom-ref"] for component in components}
    # What is there beside, for development, may serve as an extra of one of them.
    graph = [
        entry | {"dependsOn": [name for name in entry.get("dependsOn", []) if name in kept]}
        for entry in installed["dependencies"]
        if entry["ref"] in kept
    ]
    needed = {name for entry in graph for name in entry["dependsOn"]}
    root = {"type": "application", "bom-ref": "quartet", "name": f"quartet-{app}", "version": VERSION}
    graph.append({"ref": "quartet", "dependsOn": sorted(kept - needed)})
    metadata = installed["metadata"] | {"component": root | {"licenses": [{"license": {"id": "MIT"}}]}}
    return installed | {"metadata": metadata, "components": components, "dependencies": graph}


def main(app: str) -> int:
    """Write and check the file of an app."""
    bom = joined(app, read("environment", sys.executable), read("requirements", f"requirements/{app}.txt"))
    for component in bom["components"]:
        stated = importlib.metadata.metadata(component["name"])["License"]
        if stated and not component.get("licenses"):  # words that are no known expression
            component["licenses"] = [{"license": {"name": stated.splitlines()[0]}}]
    text = json.dumps(bom, indent=1, ensure_ascii=False) + "\n"
    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if wrong is not None:
        raise SystemExit(f"sbom: not valid CycloneDX 1.6: {wrong.data}")
    path = ROOT / "dist" / f"quartet-{app}.cdx.json"
    path.parent.mkdir(exist_ok=True)
    write_text(path, text)
    silent = [component["name"] for component in bom["components"] if not component.get("licenses")]
    count = len(bom["components"])
    print(f"{path.relative_to(ROOT)}: {count} packages; no licence stated: {', '.join(silent) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
