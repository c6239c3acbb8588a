"""The HTML report in a real browser: Debian's Chromium, headless."""

import shutil

import pytest
from eval_documents import results, write

from adapterops.gate.judge import judge_once
from adapterops.report.collect import collect
from adapterops.report.html import page
from adapterops.specs.adapter import Pins
from needs import program

pytestmark = pytest.mark.integration
ROWS = 1_000
HOSTILE = "<script>document.title = 'hacked'</script>"


def answer(text, rouge):
    fields = {
        "finish_reason": "stop",
        "tokens": 9,
        "latency_ms": 50.0,
        "ttft_ms": None,
        "error": None,
    }
    return fields | {
        "text": text,
        "rouge_l": rouge,
        "chrf": rouge,
        "format_ok": None,
        "refused": False,
    }


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of a run with 1,000 Korean rows, one of them hostile, and an adapter in
    production."""
    import json

    run = tmp_path_factory.mktemp("run")
    (run / "gates.yaml").write_text("gates: {rouge_l: {min: 0.65, margin: 0.02, description: d}}")
    document = results(
        {"rouge_l": [0.7, 0.8] * (ROWS // 2)},
        {"rouge_l": [0.72, 0.8] * (ROWS // 2)},
        {"rouge_l": [0.1] * ROWS},
    )
    document["slices"] = {"task:policy": list(range(ROWS))}
    write(run / "eval_results.json", document)
    samples = [
        {
            "id": f"row-{number}",
            "line": number + 1,
            "language": "ko",
            "tags": ["policy"],
            "prompt": [{"role": "user", "content": f"환불은 언제 되나요? {number}번"}],
            "expected": "환불은 사흘 안에 됩니다. " * 4,
            "should_refuse": False,
            "candidate": answer(
                (
                    "<script>document.title = 'hacked'</script>"
                    if number == 7
                    else "사흘 안에 됩니다. " * 6
                ),
                0.2 if number % 2 else 0.9,
            ),
            "production": answer("나흘 안에 됩니다. " * 6, 0.6),
            "base": answer("모릅니다.", 0.1),
        }
        for number in range(ROWS)
    ]
    (run / "eval_samples.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples)
    )
    judge_once(
        run / "eval_results.json",
        run / "gates.yaml",
        run / "gate_report.json",
        pins=Pins("support"),
    )
    (run / "report.html").write_text(page(collect(run)))
    return (run / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("google-chrome") or program("chromium", "chromium fonts-noto-cjk")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_its_window_in_both_schemes_and_asks_the_network_for_nothing(
    browser, report, scheme, width
):
    tab = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    requests, errors = [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on(
        "console", lambda message: errors.append(message.text) if message.type == "error" else None
    )
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(report)
    assert requests == [report]
    assert errors == []
    assert tab.title() == "support: PASS"  # the hostile row's script did not run
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.locator("table .badge").first.is_visible()
    assert (
        tab.locator("table .badge").first.bounding_box()["x"] < width
    )  # the verdict is seen without scrolling
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 3 * 60) == (scheme == "dark")
    tab.close()


def test_a_thousand_samples_are_filtered_by_text_and_outcome(browser, report):
    tab = browser.new_page()
    tab.goto(report)
    assert tab.locator("#rows tr:visible").count() == ROWS
    tab.fill("#text", "999번")
    assert tab.locator("#rows tr:visible").count() == 1
    tab.fill("#text", "")
    tab.select_option("#outcome", "good")
    assert tab.locator("#shown").inner_text() == str(ROWS // 2)
    # What a reader waits for: the slowest of ten keystrokes against the time to lay the page out at
    # first.
    typed = tab.evaluate("""() => { const field = document.getElementById('text'); let worst = 0;
        for (const letter of '환불은 언제 되나요?') {
          field.value += letter; const start = performance.now();
          field.dispatchEvent(new Event('input')); document.body.offsetHeight;
          worst = Math.max(worst, performance.now() - start); }
        return worst; }""")
    print(f"slowest keystroke over {ROWS} samples: {typed:.0f} ms")
    assert (
        typed < 1_000
    )  # tens of them on two busy cores; a table that is laid out as a whole takes seconds
    tab.close()
