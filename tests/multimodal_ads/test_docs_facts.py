"""What the app's page in docs/ says of settings, models, services and links is true; its commands are another file."""

import re

import pytest
import yaml

from mlcore.config.compose import Request, compose, group_choices
from quartet.apps.multimodal_ads.app import APP
from quartet.apps.multimodal_ads.config import AdsConfig
from quartet.apps.multimodal_ads.vision.encoder import meta_vision
from scripts.flag_tables import BEGIN, flag_tables, insert_flag_tables
from tests.docs_page import REPOSITORY, Page
from tests.multimodal_ads.published_texts import PUBLISHED as PUBLISHED_TEXT

PAGE = Page("multimodal_ads")


def test_the_table_of_flags_is_up_to_date() -> None:
    expected = insert_flag_tables(PAGE.path, APP)
    assert PAGE.text() == expected, "run scripts/flag_tables.py"
    assert BEGIN in expected
    assert "| `--lr` | `0.001` |" in flag_tables(APP)


def rows_of_tables() -> dict[str, list[str]]:
    """First cell of a row to the others; a later table adds to an earlier one."""
    rows: dict[str, list[str]] = {}
    for line in PAGE.text().partition("<!-- flags: begin -->")[0].splitlines():
        if line.startswith("| `"):
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            rows.setdefault(name.removesuffix(" (default)"), []).extend(cells)
    return rows


@pytest.mark.parametrize("name", group_choices(APP.config_dir)["vision_encoder"])
def test_the_table_of_backbones_is_true(name: str) -> None:
    request = Request(overrides=[("vision_encoder", name)])
    settings = compose(AdsConfig, APP.config_dir, request, environ={}).config.vision_encoder
    width, library = rows_of_tables()[f"`{name}`"][1:3]
    assert width == str(meta_vision(settings.model).width)
    assert library == ("timm" if settings.kind == "timm" else "transformers")


@pytest.mark.parametrize("name", group_choices(APP.config_dir)["text_encoder"])
def test_the_table_of_text_encoders_is_true(name: str) -> None:
    request = Request(overrides=[("text_encoder", name)])
    model = compose(AdsConfig, APP.config_dir, request, environ={}).config.text_encoder.model
    widths = {None: "-", "ngrams": "32", **{name: str(width) for name, (width, _) in PUBLISHED_TEXT.items()}}
    assert rows_of_tables()[f"`{name}`"][1] == widths[model]


def test_the_services_of_the_page_are_in_the_compose_file() -> None:
    services = yaml.safe_load((REPOSITORY / "docker" / "compose.yaml").read_text(encoding="utf-8"))["services"]
    lines = re.findall(r"docker compose [^\n`]+", PAGE.text())
    named = [word for line in lines for word in line.split() if re.match(r"torch-dev|multimodal_ads", word)]
    assert {"torch-dev", "multimodal_ads"} <= set(named) <= set(services)
    assert [name for name, service in services.items() if not service["profiles"]] == ["torch-dev"]  # for a plain `up`
    for name in named:
        assert services[name]["environment"]["DATA_DIR"] == "/data"
        assert any(place.startswith("${DATA_DIR") and ":/data" in place for place in services[name]["volumes"])


def test_every_variable_of_the_compose_file_is_in_the_example() -> None:
    used = set(re.findall(r"\$\{(\w+)", (REPOSITORY / "docker" / "compose.yaml").read_text(encoding="utf-8")))
    example = (REPOSITORY / "docker" / ".env.example").read_text(encoding="utf-8")
    assert used - {"QUARTET_UID", "QUARTET_GID"} <= set(re.findall(r"^(\w+)=", example, re.MULTILINE))


def test_links_inside_the_page_lead_somewhere() -> None:
    assert PAGE.broken_links() == set()
