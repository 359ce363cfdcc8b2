"""The card of a generator: what must be filled in, and where it is read from."""

import json

import pytest
import yaml

from pfiles.errors import InputError
from pfiles.reporting.card import BLANKS, metadata, read_card
from tests.conftest import CARD


def test_blanks_are_listed(tmp_path):
    with pytest.raises(InputError) as refused:
        read_card(None, {"organ": "lung", "stain": " "})
    for name in BLANKS:
        assert (f"{name} (" in str(refused.value)) == (name != "organ")
    (tmp_path / "card.toml").write_text("".join(f"{name} = {json.dumps(text)}\n" for name, text in CARD.items()))
    (tmp_path / "card.json").write_text(json.dumps(CARD))
    for file in ("card.toml", "card.json"):
        assert read_card(tmp_path / file, {"organ": None}) == CARD
    assert read_card(tmp_path / "card.json", {"organ": "skin"})["organ"] == "skin"
    (tmp_path / "card.toml").write_text('liver = "yes"')
    with pytest.raises(InputError, match=r"says liver: a card has licence, organ"):
        read_card(tmp_path / "card.toml", CARD)
    (tmp_path / "card.toml").write_text("organ = lung")
    with pytest.raises(InputError, match="cannot be read as TOML or JSON"):
        read_card(tmp_path / "card.toml", CARD)


@pytest.mark.parametrize(
    ("licence", "head"),
    [
        ("CC-BY-NC-4.0", {"license": "cc-by-nc-4.0"}),
        ("cc by nc 4.0", {"license": "cc-by-nc-4.0"}),
        ("Our licence: research only!", {"license": "other", "license_name": "our-licence-research-only"}),
    ],
)
def test_the_head_is_what_the_hub_reads(licence, head):
    """Words that YAML would take for something else stay words."""
    read = yaml.safe_load(metadata({**CARD, "licence": licence, "organ": "no", "stain": "H&E: #1"}))
    assert read == {
        **head, "library_name": "pfiles", "pipeline_tag": "unconditional-image-generation",
        "tags": ["histopathology", "latent-diffusion", "no", "H&E: #1"],
    }  # fmt: skip
