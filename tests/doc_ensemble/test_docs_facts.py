"""What the app's page in docs/ says of settings, models, files and links is true; its commands are another file."""

import re
from typing import get_args

import pytest
import torch
import yaml

from mlcore.config.compose import Request, compose, group_choices
from quartet.apps.doc_ensemble.app import APP
from quartet.apps.doc_ensemble.config import DocConfig, LossConfig, ViewConfig
from quartet.apps.doc_ensemble.example_env_usage import PURPOSES
from quartet.apps.doc_ensemble.model.classifier import create_model
from scripts.flag_tables import BEGIN, flag_tables, insert_flag_tables
from tests.docs_page import REPOSITORY, Page

PAGE = Page("doc_ensemble")
GROUPS = group_choices(APP.config_dir)


def configured(group: str, choice: str) -> DocConfig:
    return compose(DocConfig, APP.config_dir, Request(overrides=[(group, choice)]), environ={}).config


def rows_of_tables() -> dict[str, list[str]]:
    """First cell of a row to the others; a later table adds to an earlier one."""
    rows: dict[str, list[str]] = {}
    for line in PAGE.text().partition("<!-- flags: begin -->")[0].splitlines():
        if line.startswith("| `"):
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            for each in re.findall(r"`([^`]+)`", name):
                rows.setdefault(each, []).extend(cells)
    return rows


def test_the_table_of_flags_is_up_to_date() -> None:
    expected = insert_flag_tables(PAGE.path, APP)
    assert PAGE.text() == expected, "run scripts/flag_tables.py"
    assert BEGIN in expected
    assert "| `--image_size` | `[224, 224]` |" in flag_tables(APP)


@pytest.mark.parametrize("name", GROUPS["model"])
def test_the_table_of_models_is_true(name: str) -> None:
    model = configured("model", name).model
    network, millions = rows_of_tables()[name][:2]
    assert network.startswith(f"`{model.model_name}`")
    assert ("attention" in network, "focal" in network) == (model.use_attention, model.use_focal_loss)
    with torch.device("meta"):
        made = create_model(model.model_name, class_names=[str(index) for index in range(1000)], pretrained=False)
    assert round(sum(weight.numel() for weight in made.parameters()) / 1e6) == int(millions)


@pytest.mark.parametrize("group", ["loss", "augmentation", "scheduler"])
def test_every_choice_is_in_a_table(group: str) -> None:
    synonyms = {"constant", "cosine_warmup", "reduce_on_plateau"}  # shared with other apps; in the table of settings
    assert set(GROUPS[group]) - synonyms <= set(rows_of_tables())


def test_the_tables_of_views_and_variables_are_complete() -> None:
    rows = rows_of_tables()
    assert set(get_args(ViewConfig.model_fields["type"].annotation)) <= set(rows)
    assert set(get_args(LossConfig.model_fields["name"].annotation)) <= set(rows)
    assert set(PURPOSES) <= set(rows)


def test_the_variables_of_the_page_are_those_of_the_example() -> None:
    (block,) = (block for block in PAGE.blocks("text") if block.heading == "Environment and buckets")
    example = (REPOSITORY / "env_example.txt").read_text(encoding="utf-8")
    lines = [line.removeprefix("# ") for line in example.splitlines()]
    assert set(block.text.splitlines()) <= set(lines)
    assert {line.partition("=")[0] for line in lines if re.match(r"[A-Z_0-9]+=", line)} == set(PURPOSES)


def test_the_services_of_the_page_are_in_the_compose_file() -> None:
    services = yaml.safe_load((REPOSITORY / "docker" / "compose.yaml").read_text(encoding="utf-8"))["services"]
    named = set(re.findall(r"docker compose [^\n]*?(doc_ensemble\S*)", PAGE.text()))
    assert named == {"doc_ensemble", "doc_ensemble-gpu"}
    assert named <= set(services)


def test_links_inside_the_page_lead_somewhere() -> None:
    assert PAGE.broken_links() == set()
