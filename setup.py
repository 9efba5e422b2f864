"""What pyproject.toml cannot say: packages that lie in apps/ and configs/, extras from requirements/*.in."""

from pathlib import Path

from setuptools import find_packages, setup

REQUIREMENTS = Path(__file__).parent / "requirements"


def pins(path: Path) -> list[str]:
    """The requirements of a file and of the files that it takes in with `-r`."""
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    own = [line for line in lines if line and not line.startswith("-")]
    return sorted({*own, *(pin for line in lines if line.startswith("-r ") for pin in pins(path.parent / line[3:]))})


apps = find_packages("apps")
extras = {name: pins(REQUIREMENTS / f"{name}.in") for name in apps if "." not in name}

setup(
    packages=[
        *find_packages("libs", include=["mlcore*", "quartet"]),
        "quartet.apps",
        *(f"quartet.apps.{name}" for name in apps),
        "quartet.configs",
    ],
    package_dir={"": "libs", "quartet.apps": "apps", "quartet.configs": "configs"},
    package_data={
        "": ["py.typed", "*.pyi", "templates/*", "template/**", "page/*"],
        "quartet.configs": ["**/*.yaml"],
    },
    extras_require={**extras, "all": sorted({pin for wanted in extras.values() for pin in wanted})},
)
