"""The page of a reader in headless Chromium, from the disk: keyboard, mouse, touch, a pause, the file of answers."""

import json

import pytest

from pfiles.study.answers import read_study
from tests.study.conftest import write_study

WIDTHS = [1280, 800, 390]


@pytest.fixture
def folder(tmp_path):
    write_study(tmp_path / "study", readers=2)
    return tmp_path / "study"


def opened(context, folder, reader=1):
    page = context.new_page()
    page.urls, page.errors = [], []
    page.on("request", lambda request: page.urls.append(request.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.goto((folder / f"reader_{reader}.html").as_uri())
    return page


def answer_all(page, number):
    for i in range(number):
        page.keyboard.press("rm"[i % 2])
        page.keyboard.press("123"[i % 3])
        page.keyboard.press("Enter")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_and_needs_nothing_else(browser, folder, width):
    page = opened(browser.new_context(viewport={"width": width, "height": 844}), folder)
    page.get_by_role("button", name="Begin").click()
    tile, bar = page.locator("#tile"), page.locator(".bar")
    assert tile.evaluate("image => [image.complete, image.naturalWidth]") == [True, 48]
    assert tile.bounding_box()["width"] == pytest.approx(192)
    assert bar.bounding_box()["width"] == pytest.approx(192 * 20 / 24, abs=0.1)  # 20 of 24 microns
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    last = page.locator("#next").bounding_box()
    assert last["y"] + last["height"] <= 844  # all is in sight
    for label in page.locator("#task label > span").all():
        assert label.bounding_box()["height"] >= 44  # of a finger
    assert [url for url in page.urls if not url.startswith("data:")] == [page.url]
    assert page.errors == []


def test_a_study_from_the_keyboard_gives_answers_that_count(browser, folder, tmp_path):
    page = opened(browser.new_context(), folder)
    page.get_by_role("button", name="Begin").press("Enter")
    page.keyboard.press("Enter")
    assert page.locator("#missing").inner_text() == "Choose an answer, and say how sure you are."
    page.keyboard.press("r")
    assert page.locator("#missing").inner_text() == ""
    page.get_by_text("Comment").click()
    page.locator("#comment").fill('µ "quoted"\n<b>R</b> \U0001f52c')
    page.locator("#place").focus()
    answer_all(page, 24)
    assert page.get_by_text("That was the last tile").is_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save answers").click()
    assert download.value.suggested_filename == "answers_reader_1.json"
    assert "answers_reader_1.json" in page.locator("#saved").inner_text()
    download.value.save_as(folder / "answers_reader_1.json")
    _, table = read_study([folder / "answers_reader_1.json"])
    assert table.answer.tolist() == ["real", "generated"] * 12
    assert table.sure.tolist() == [1, 2, 3] * 8
    assert table.comment[0] == 'µ "quoted"\n<b>R</b> \U0001f52c'
    assert set(table.comment[1:]) == {""}
    assert page.errors == []


def test_a_paused_study_goes_on_in_this_browser_and_from_a_file_in_another(browser, folder):
    context = browser.new_context()
    page = opened(context, folder)
    page.get_by_role("button", name="Begin").click()
    answer_all(page, 5)
    page.keyboard.press("r")  # not kept before Next
    with page.expect_download() as download:
        page.get_by_role("button", name="Save so far").click()
    file = folder / "half.json"
    download.value.save_as(file)
    page.close()

    page = opened(context, folder)
    page.get_by_role("button", name="Go on with tile 6").click()
    assert page.locator("#place").inner_text() == "Tile 6 of 24"
    assert page.locator("input:checked").count() == 0

    other = opened(browser.new_context(), folder)
    other.set_input_files("#file", file)
    other.get_by_text("Tile 6 of 24").wait_for()
    answer_all(other, 19)
    assert other.get_by_text("That was the last tile").is_visible()

    second = opened(context, folder, reader=2)
    assert second.get_by_role("button", name="Begin").is_visible()  # the first reader's answers are not this one's
    second.set_input_files("#file", file)
    second.get_by_text("This file is of another reader or of another study.").wait_for()
    content = json.loads(file.read_text())
    content["answers"][0]["sure"] = 2
    file.write_text(json.dumps(content))
    fresh = opened(browser.new_context(), folder)
    fresh.set_input_files("#file", file)
    fresh.get_by_text("This file was changed after it was saved.").wait_for()
    file.write_text("no JSON")
    fresh.set_input_files("#file", file)
    fresh.get_by_text("This is not a file of answers.").wait_for()


def test_a_finger_answers(browser, folder):
    page = opened(browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True), folder)
    assert not page.get_by_text("Keys:").is_visible()  # where there are none
    page.get_by_role("button", name="Begin").tap()
    page.get_by_role("radio", name="Made").tap()
    page.get_by_role("radio", name="rather sure").tap()
    page.get_by_role("button", name="Next").tap()
    assert page.locator("#place").inner_text() == "Tile 2 of 24"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_tile_stays_in_sight_beside_many_groups(browser, tmp_path, width):
    write_study(tmp_path / "study", "cluster", readers=1)
    page = opened(browser.new_context(viewport={"width": width, "height": 500}), tmp_path / "study")
    page.get_by_role("button", name="Begin").click()
    page.locator("#next").scroll_into_view_if_needed()
    assert page.locator("#tile").bounding_box()["y"] > -1
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.keyboard.press("b")
    assert page.locator("input[name=answer]:checked").get_attribute("value") == "2"
    assert page.errors == []
