"""The page in a real browser: it draws what it should, every control works, nothing is loaded."""

import shutil
import time

import numpy as np
import pytest

from wsss_jax.report import Picture, Report, Rule, StageScore, write_page

webdriver = pytest.importorskip(
    "selenium.webdriver", reason="selenium is not installed (extra dev)"
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
HOSTILE = """</script><script>document.title="taken"</script><img src=x onerror=alert(1)>'"&"""
CLASSES = ("background", "cat", HOSTILE)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,3600",
)
MISSED, EXTRA = [86, 180, 233], [230, 159, 0]
LEFT, RIGHT = [68, 119, 170], [238, 102, 119]
VOC_CAT, SAFE_CAT = [128, 0, 0], [230, 159, 0]

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="no chromium with chromedriver on this machine"
)


def picture(id, found, *, labels=("cat",)):
    """A 40×60 photograph whose object fills columns 20-39; the mask finds `found` of them."""
    truth = np.zeros((40, 60), np.uint8)
    truth[:, 20:40] = 1
    mask = np.zeros_like(truth)
    mask[:, 20 : 20 + found] = 1
    ramp = np.tile(np.linspace(0, 1, 60, dtype=np.float32), (40, 1))
    maps = {"cam": np.repeat(ramp[..., None], len(labels), -1), "saliency": ramp[..., None]}
    rules = {"cam": maps["cam"], HOSTILE: maps["cam"][:, ::-1]}
    left = np.arange(60) < 30  # the first system is trusted on the left, the second on the right
    shares = np.stack([left, ~left], axis=-1).astype(np.float32)
    trust = {"trust": np.tile(shares, (40, 1, 1))}
    photo = np.full((40, 60, 3), 120, np.uint8)
    masks = {"all": truth, "fused": mask}
    return Picture(id, photo, labels, maps, masks, truth, rules, trust, {"doubt": ramp[..., None]})


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    per_class = np.array([0.9, 0.5, np.nan])
    stages = [
        StageScore(name, split, miou, miou - 0.02, miou + 0.02, per_class)
        for split in ("val", "train")
        for name, miou in (("cam", 0.5), (HOSTILE, 0.6))
    ]
    curves = {HOSTILE: (np.linspace(0, 1, 9), np.linspace(0.2, 0.5, 9))}
    report = Report(
        HOSTILE,
        CLASSES,
        stages,
        curves,
        {HOSTILE: HOSTILE},
        [HOSTILE],
        rules={"cam": Rule("systems", 0.3), HOSTILE: Rule(HOSTILE, 0.5)},
        systems=("left", HOSTILE),
    )
    pictures = [
        picture("b", 10),
        picture("a", 30),
        picture("c", 5, labels=("cat", HOSTILE)),
        picture(HOSTILE, 20),
    ]
    return write_page(folder / "report.html", report, pictures)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def shown(browser, page):
    """The freshly loaded page, all four pictures painted; afterwards its console must be empty."""
    browser.get(page.as_uri())
    painted(browser, 4)
    yield browser
    # The tests read pixels back, which the page itself never does; that one hint is theirs.
    told = [entry["message"] for entry in browser.get_log("browser")]
    assert [message for message in told if "willReadFrequently" not in message] == []


def painted(browser, count):
    for _ in range(200):
        if len(browser.find_elements("css selector", ".card[data-painted]")) >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"fewer than {count} cards were painted in ten seconds")


def choose(browser, control, value):
    """Set a control as a hand would, and wait until the page has been painted again."""
    browser.execute_async_script(
        """const [id, value, done] = arguments, control = document.getElementById(id);
        control.value = value;
        control.dispatchEvent(new Event("input", { bubbles: true }));
        requestAnimationFrame(() => setTimeout(done, 60));""",
        control,
        str(value),
    )


def order(browser):
    names = {HOSTILE: "hostile"}
    cards = browser.find_elements("css selector", ".card h3")
    return [names.get(card.text, card.text) for card in cards]


def pixel(browser, id, panel, x, y=20):
    """RGB of one pixel of a visible panel, found by its caption."""
    return browser.execute_script(
        """const [id, name, x, y] = arguments;
        const called = (tag, text) => (e) => !e.hidden && e.querySelector(tag).textContent === text;
        const card = [...document.querySelectorAll(".card")].find(called("h3", id));
        const panel = [...card.querySelectorAll("figure")].find(called("figcaption span", name));
        const context = panel.querySelector("canvas").getContext("2d");
        return [...context.getImageData(x, y, 1, 1).data].slice(0, 3);""",
        id,
        panel,
        x,
        y,
    )


def text(browser, id, panel):
    for figure in browser.find_elements("css selector", ".card figure"):
        label, read = figure.find_elements("css selector", "figcaption span")
        canvas = figure.find_element("css selector", "canvas")
        if canvas.get_attribute("aria-label") == f"{panel} of {id}" and label.is_displayed():
            return read.text
    raise AssertionError(f"no panel {panel} of {id}")


def test_hostile_names_stay_text(shown):
    assert shown.title == HOSTILE and shown.find_element("tag name", "h1").text == HOSTILE
    assert "hostile" in order(shown)
    assert not shown.find_elements("css selector", "img")
    assert len(shown.find_elements("css selector", ".legend li")) >= 1


def test_nothing_is_loaded_from_anywhere(shown):
    loaded = shown.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert [name for name in loaded if not name.startswith("data:")] == []


def test_the_policy_refuses_connections_and_foreign_scripts(browser, page):
    browser.get(page.as_uri())
    refused = browser.execute_async_script(
        """const done = arguments[0];
        const script = document.createElement("script");
        script.textContent = "window.taken = true";
        document.body.append(script);
        const tell = (refused) => () => done([refused, window.taken]);
        fetch("data:text/plain,x").then(tell(false), tell(true));"""
    )
    assert refused == [True, None]
    told = [entry["message"] for entry in browser.get_log("browser")]
    assert told and all("Content Security Policy" in message for message in told)


def test_sorting_and_filtering(shown):
    # IoU of the object: c 5/20, b 10/20, a 20/30, hostile 1.
    assert order(shown) == ["c", "b", "a", "hostile"]
    choose(shown, "sort", "best")
    assert order(shown) == ["hostile", "a", "b", "c"]
    choose(shown, "sort", "id")
    assert order(shown) == ["hostile", "a", "b", "c"]
    choose(shown, "class", 2)
    assert order(shown) == ["c"] and shown.find_element("id", "count").text == "1 of 4 pictures"


def test_scores_follow_the_chosen_mask_and_class(shown):
    assert text(shown, "b", "Mask") == "65.0 %"  # (40/50 + 10/20) / 2, over both classes
    choose(shown, "class", 1)
    assert text(shown, "b", "Mask") == "50.0 %"
    choose(shown, "mask", "all")
    assert text(shown, "b", "Mask") == "100.0 %"


def test_opacity_blends_the_mask_over_the_photograph(shown):
    choose(shown, "opacity", 1)
    assert pixel(shown, "b", "fused", 25) == VOC_CAT
    assert np.allclose(pixel(shown, "b", "fused", 35), 120, atol=4)
    choose(shown, "opacity", 0)
    assert np.allclose(pixel(shown, "b", "fused", 25), 120, atol=4)


def test_the_other_palette_recolours_masks(shown):
    choose(shown, "opacity", 1)
    choose(shown, "palette", "colour-blind")
    assert pixel(shown, "b", "fused", 25) == pixel(shown, "b", "Truth", 25) == SAFE_CAT


def test_error_map_shows_missed_and_extra(shown):
    choose(shown, "opacity", 1)
    assert pixel(shown, "b", "Errors", 35) == MISSED
    assert pixel(shown, "a", "Errors", 45) == EXTRA
    assert len(set(pixel(shown, "a", "Errors", 5))) == 1  # right background: the grey photograph


def test_heat_runs_from_dark_to_light(shown):
    choose(shown, "opacity", 1)
    assert sum(pixel(shown, "b", "cam", 2)) < 60 and sum(pixel(shown, "b", "cam", 59)) > 550


def test_threshold_cuts_the_map(shown):
    choose(shown, "opacity", 1)
    choose(shown, "view", "mask")
    choose(shown, "threshold", 0.5)
    assert pixel(shown, "b", "cam", 31) == VOC_CAT and pixel(shown, "b", "cam", 28) != VOC_CAT
    low = text(shown, "b", "cam")
    choose(shown, "threshold", 0.35)
    assert float(text(shown, "b", "cam").split()[0]) != float(low.split()[0])
    # With two labels a single map belongs to neither: white, and no IoU.
    assert pixel(shown, "c", "saliency", 50) == [255, 255, 255] and not text(shown, "c", "saliency")
    choose(shown, "view", "errors")
    assert pixel(shown, "b", "cam", 55) == EXTRA


def card(browser, id):
    cards = browser.find_elements("css selector", ".card")
    return next(one for one in cards if one.find_element("tag name", "h3").text == id)


def press(browser, element):
    browser.execute_async_script("arguments[0].click(); setTimeout(arguments[1], 150);", element)


def what_if(browser, id, rule):
    menu = card(browser, id).find_element("css selector", ".whatif select")
    browser.execute_async_script(
        """const [menu, rule, done] = arguments;
        menu.value = rule;
        menu.dispatchEvent(new Event("change", { bubbles: true }));
        setTimeout(done, 150);""",
        menu,
        rule,
    )


def test_what_if_switches_the_rule_of_one_picture(shown):
    choose(shown, "opacity", 1)
    # The last rule is shown first: the map from right to left, cut at a half.
    assert pixel(shown, "b", "What if", 20) == VOC_CAT != pixel(shown, "b", "What if", 50)
    what_if(shown, "b", "cam")
    assert pixel(shown, "b", "What if", 20) == VOC_CAT == pixel(shown, "b", "What if", 50)
    assert pixel(shown, "b", "Errors of it", 50) == EXTRA
    assert pixel(shown, "a", "What if", 50) != VOC_CAT  # the other pictures stay as they are
    # Columns 18-59 exceed 0.3, the object is 20-39: 20/42 and 18/40.
    verdict = card(shown, "b").find_element("css selector", ".verdict")
    assert verdict.text == "mean IoU 46.3 %"
    buttons = card(shown, "b").find_elements("css selector", ".whatif button")
    press(shown, buttons[2])
    assert pixel(shown, "a", "What if", 50) == VOC_CAT
    press(shown, buttons[1])
    options = card(shown, "b").find_elements("css selector", ".whatif option")
    # The other rule finds columns 0-29: 10/40 and 20/50 of them rightly.
    assert [option.text[:4] for option in options] == ["46.3", "32.5"]


def test_trust_has_a_colour_for_each_system_and_doubt_is_heat(shown):
    choose(shown, "opacity", 1)
    assert pixel(shown, "b", "trust", 5) == LEFT and pixel(shown, "b", "trust", 55) == RIGHT
    assert sum(pixel(shown, "b", "doubt", 2)) < 60 and sum(pixel(shown, "b", "doubt", 59)) > 550
    chips = shown.find_elements("css selector", "#systems button")
    press(shown, chips[0])
    assert sum(pixel(shown, "b", "trust", 5)) > 550 and sum(pixel(shown, "b", "trust", 55)) < 60
    press(shown, shown.find_elements("css selector", "#systems button")[0])
    assert pixel(shown, "b", "trust", 5) == LEFT


def test_panels_can_be_hidden(shown):
    shown.execute_script("document.querySelector('#shown').open = true")
    tick = next(
        label
        for label in shown.find_elements("css selector", "#shown label")
        if label.text == "cam"
    )
    tick.click()
    time.sleep(0.1)
    with pytest.raises(AssertionError, match="no panel cam"):
        text(shown, "b", "cam")


def test_a_panel_opens_large_by_keyboard_and_closes(shown):
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    canvas = shown.find_element("css selector", ".card figure canvas")
    canvas.send_keys(keys.ENTER)
    dialog = shown.find_element("id", "large")
    assert dialog.is_displayed() and dialog.find_element("tag name", "h3").text == "c · Photo"
    shown.switch_to.active_element.send_keys(keys.ARROW_RIGHT)
    assert dialog.find_element("tag name", "h3").text == "c · fused"
    shown.switch_to.active_element.send_keys(keys.ESCAPE)
    assert not dialog.is_displayed()


def test_results_show_one_split_at_a_time_and_tables_sort(shown):
    panels = shown.find_elements("css selector", ".panel")
    assert [panel.get_attribute("hidden") for panel in panels] == [None, "true"]
    shown.execute_script("document.querySelector('#details details').open = true")
    head = shown.find_elements("css selector", "#details th button")[2]
    head.click()
    first = shown.find_elements("css selector", "#details tbody tr")[0]
    assert first.find_elements("tag name", "td")[2].text == "60.0"
