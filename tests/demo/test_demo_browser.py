"""The demo in a real browser: every control of every tab is moved, and what is shown is read."""

import re
import shutil
import time

import pytest
import skimage.data
import torch
from PIL import Image

from modeling_kamim import KamimForMaskedImageModeling
from modeling_kamim.models.processor import image_processor

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    pytest.importorskip("gradio")
    import os

    uploads = tmp_path_factory.mktemp("uploads")
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    from tiny_models import tiny_vit

    from modeling_kamim.demo.checkpoints import load_models
    from modeling_kamim.demo.serving import serve

    folder = tmp_path_factory.mktemp("models")
    for name in ("first", "second"):
        KamimForMaskedImageModeling.from_config(tiny_vit()).save_pretrained(folder / name)
        image_processor(32).save_pretrained(folder / name)
    models = load_models([str(folder / name) for name in ("first", "second")], torch.device("cpu"))
    return serve(models, port=None, wait=False)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no chromium; `make test-browser` installs it")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """The page, loaded; at the end nothing has left this machine, and nothing was complained of."""
    requests, complaints = [], []
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#focus figure", timeout=60_000)
    yield page
    page.close()
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []
    assert complaints == []


def shown(page, output):
    return "".join(page.locator(f"#{output} :is(h3, figure, p)").evaluate_all("found => found.map(x => x.outerHTML)"))


def changes(page, output, act, until=""):
    """Act, and return what an output shows once it has changed and has these words."""
    before = shown(page, output)
    act()
    for _ in range(100):
        now = shown(page, output)
        if now not in (before, "") and until in now:
            return now
        time.sleep(0.1)
    raise AssertionError(f"{output} did not change{f' to {until!r}' if until else ''}")


def slide(page, name, value):
    number = page.locator(f"#{name} input[type=number]")
    number.fill(str(value))
    number.press("Enter")


def choose(page, name, value):
    page.locator(f"#{name}").get_by_label(value, exact=True).check()


def number_before(text, what):
    return float(re.search(rf"([\d.,]+)%? {what}", text).group(1).replace(",", ""))


def test_where_the_loss_looks(page):
    share = number_before(shown(page, "focus"), "of the loss")
    flat = changes(page, "focus", lambda: slide(page, "temperature", 1))
    assert number_before(flat, "of the loss") < share  # a high temperature flattens the weights
    many = number_before(flat, "found by FAST")
    few = number_before(changes(page, "focus", lambda: slide(page, "threshold", 60)), "found by FAST")
    assert few < many
    changes(page, "focus", lambda: choose(page, "cell_size", "4"), "48 x 48 cells of 4 px")
    changes(page, "focus", lambda: choose(page, "image_size", "64"), "16 x 16 cells of 4 px")
    changes(page, "focus", lambda: choose(page, "norm", "mean"), "mean 1, ")
    changes(page, "focus", lambda: choose(page, "footprint", "point"))
    for detector in ("sift", "orb"):
        changes(page, "focus", lambda name=detector: choose(page, "detector", name), f"found by {detector.upper()}")
        assert page.locator("#threshold").inner_text().startswith(detector.upper())
    for source, words in (("sobel", "gradient magnitude"), ("entropy", "local entropy")):
        changes(page, "focus", lambda name=source: choose(page, "detector", name), words)
    changes(page, "focus", lambda: choose(page, "detector", "gftt"), "found by GFTT")


def test_reconstructions(page):
    page.get_by_role("tab", name="Reconstruct").click()
    page.wait_for_selector("#masked figure")
    assert shown(page, "masked").count("<figure>") == 8
    changes(page, "masked", lambda: slide(page, "mask_ratio", 0.75), "75% masked")
    changes(page, "masked", lambda: choose(page, "block", "2"))
    changes(page, "masked", lambda: slide(page, "seed", 7))


def test_what_a_patch_knows(page):
    page.get_by_role("tab", name="What a patch knows").click()
    page.wait_for_selector("#patch figure")
    assert "row 3, column 3 of 4 x 4" in shown(page, "patch")
    changes(page, "patch", lambda: slide(page, "down", 0), "row 1, column 3")
    changes(page, "patch", lambda: slide(page, "right", 100), "row 1, column 4")
    changes(page, "patch", lambda: slide(page, "attention_block", 1), "block 1")
    photograph = page.locator("#photograph img").first
    box = photograph.bounding_box()
    position = {"x": box["width"] / 2, "y": 0.95 * box["height"]}
    changes(page, "patch", lambda: photograph.click(position=position), "row 4, column 3")


def test_neighbors_and_examples(page):
    page.get_by_role("tab", name="Neighbors").click()
    page.wait_for_selector("#neighbors figure")
    assert shown(page, "neighbors").count("<figure>") == 1 + 2 * 6
    assert changes(page, "neighbors", lambda: slide(page, "number", 3)).count("<figure>") == 1 + 2 * 3
    changes(page, "neighbors", lambda: slide(page, "share", 100))
    changes(page, "neighbors", lambda: choose(page, "example", "cat"))


def test_uploads(page, tmp_path):
    upload = page.locator("#photograph input[type=file]").first
    good = tmp_path / "cmyk.jpg"
    Image.fromarray(skimage.data.rocket()).convert("CMYK").save(good)
    changes(page, "focus", lambda: upload.set_input_files(good))
    moving = tmp_path / "moving.gif"
    frames = [Image.fromarray(skimage.data.coffee()).rotate(turn) for turn in (0, 90)]
    frames[0].save(moving, save_all=True, append_images=frames[1:])
    page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
    changes(page, "focus", lambda: page.locator("#photograph input[type=file]").first.set_input_files(moving))
    text, bomb = tmp_path / "text.png", tmp_path / "bomb.png"
    text.write_text("no image")
    Image.new("1", (20_000, 20_000)).save(bomb)
    for file, words in ((text, "no image that can be read"), (bomb, "too many pixels")):
        page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
        page.locator("#photograph input[type=file]").first.set_input_files(file)
        page.get_by_text(re.compile(words)).first.wait_for(timeout=10_000)
        assert str(tmp_path) not in page.content() and "Traceback" not in page.content()


@pytest.mark.parametrize("width", [390, 820])
def test_nothing_sticks_out_of_a_narrow_page(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    time.sleep(0.5)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#focus figure").first.bounding_box()["width"] < width


def test_the_keyboard_is_enough(page):
    page.locator("#temperature input[type=range]").focus()
    changes(page, "focus", lambda: page.keyboard.press("ArrowRight"))
    page.get_by_label("sift", exact=True).focus()
    changes(page, "focus", lambda: page.keyboard.press("Space"), "found by SIFT")
    page.get_by_role("tab", name="Reconstruct").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#masked figure")
