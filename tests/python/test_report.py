"""The page about a run, kept and live, in a real browser."""

import http.client
import json
import pathlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from places import BUILD
from playwright.sync_api import Browser, Page, sync_playwright

UPGRAYEDD = [str(BUILD / "upgrayedd")]
HOSTILE = "<img src=x onerror=alert(1)>"


def upgrayedd(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*UPGRAYEDD, *map(str, words)], check=check, capture_output=True, text=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two short cycles of heads and channels, on the built-in model."""
    folder = tmp_path_factory.mktemp("runs")
    base, text, out = folder / "base", folder / "text.txt", folder / "first"
    upgrayedd("export", "--model", "builtin", "--format", "hf", "--out", base)
    names = ("Mia", "Tom", "Lily", "Ben", "Sam")
    stories = [f"{one} was a kind child. One day {one} met {two} and they played in the park." for one in names for two in names]
    text.write_text("\n\n".join(stories * 8))
    few = ["--sequence-length", "64", "--max-steps-per-cycle", "3", "--max-eval-windows", "4", "--max-loss-increase", "9"]
    units = ["--units", "all", "--num-cycles", "2", "--pruning-ratio", "0.2"]
    upgrayedd("optimize", "--model", base, "--data", text, *units, *few, "--out", out)
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "chromium is not there: scripts/test installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser: Browser, url: str, **view: Any) -> tuple[Page, list[str]]:
    """A page, and what the browser complains of."""
    page = browser.new_page(**view)
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))

    def dialog(shown: Any) -> None:
        trouble.append(f"dialog {shown.message}")
        shown.dismiss()

    page.on("dialog", dialog)
    page.goto(url)
    return page, trouble


def events_of(run: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def base_of(record: str) -> str:
    found = re.search(r'^model = "(.*)"', record, re.M)
    assert found
    return found[1]


def write_events(run: pathlib.Path, events: list[dict[str, Any]]) -> None:
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_draws(run: pathlib.Path, browser: Browser, width: int, scheme: Any) -> None:
    view = {"width": width, "height": 800}
    page, trouble = opened(browser, (run / "report.html").as_uri(), viewport=view, color_scheme=scheme)
    assert trouble == []
    titles = ["What came out", "What is left", "Loss", "Importance before the first unit went", "What refit repaired"]
    titles += ["Where the result loads", "To know", "To do it again"]
    assert [h.inner_text() for h in page.query_selector_all("h2")] == titles
    # Nothing makes the page itself wider than the window.
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert all(svg.get_attribute("role") == "img" for svg in page.query_selector_all("svg.map, svg.chart"))
    page.close()


def test_every_number_is_the_runs_own(run: pathlib.Path, browser: Browser) -> None:
    page, _ = opened(browser, (run / "report.html").as_uri())
    summary = json.loads((run / "summary.json").read_text())
    table = {
        row.query_selector("th").inner_text(): [cell.inner_text() for cell in row.query_selector_all("td")]  # type: ignore[union-attr]
        for row in page.query_selector_all("section:first-of-type tbody tr")
    }
    before, after = summary["before"], summary["after"]
    assert table["held-out loss (nats)"][:2] == [f"{side['evaluation']['loss']:.4f}" for side in (before, after)]
    parameters = [int(cell.replace(" ", "")) for cell in table["parameters"][:2]]
    assert parameters == [before["cost"]["parameters"], after["cost"]["parameters"]]
    assert table["channels"][1] == f"{sum(after['channels']):,}".replace(",", " ")
    # The first map is that of the result.
    units = page.query_selector("svg.map")
    assert units is not None
    there = [t.inner_html() for t in units.query_selector_all("g.kept title, g.back title")]
    heads = sorted(tuple(map(int, found.groups())) for t in there if (found := re.match(r"layer (\d+), head (\d+)", t)))
    assert heads == [(layer, head) for layer, heads in enumerate(after["heads"]) for head in heads]
    kept = [re.match(r"layer (\d+): ([\d ]+) of", t) for t in there if "channels" in t]
    channels = [0] * len(after["channels"])
    for found in filter(None, kept):
        channels[int(found[1])] += int(found[2].replace(" ", ""))
    assert channels == after["channels"]
    losses = [e["loss"] for e in events_of(run) if e["event"] == "evaluated"]
    dots = [t.inner_html() for t in page.query_selector_all("circle.dot title")]
    assert [float(t.rsplit(" ", 1)[1]) for t in dots] == [pytest.approx(loss, abs=6e-5) for loss in losses]
    page.close()


def test_names_do_nothing_and_folders_are_not_told(run: pathlib.Path, browser: Browser, tmp_path: pathlib.Path) -> None:
    copy = tmp_path / HOSTILE
    shutil.copytree(run, copy)
    record = (copy / "run.toml").read_text()
    (copy / "run.toml").write_text(record.replace(f'model = "{base_of(record)}"', f'model = "/home/somebody/{HOSTILE}"'))
    events = events_of(copy)
    events[2:2] = [{"event": "notice", "cycle": 0, "message": f"/home/somebody/{HOSTILE}: </p><script>alert(2)</script>"}]
    for event in events:
        if event["event"] == "scored":
            event["strategy"] = HOSTILE
    write_events(copy, events)
    upgrayedd("report", copy)
    page, trouble = opened(browser, (copy / "report.html").as_uri())
    assert trouble == []
    assert page.query_selector_all("img, script, iframe, link") == []
    assert page.inner_text("h1") == HOSTILE
    text = (copy / "report.html").read_text()
    assert "&lt;img src=x" in text and "somebody" not in text and str(tmp_path) not in text
    page.close()


def test_a_hundred_thousand_steps(run: pathlib.Path, browser: Browser, tmp_path: pathlib.Path) -> None:
    copy = tmp_path / "long"
    shutil.copytree(run, copy)
    events = events_of(copy)
    first = next(at for at, event in enumerate(events) if event["event"] == "step")
    step = events[first]
    more = [{**step, "step": 1 + n, "loss": 2 - n * 1e-5 + 0.1 * (n % 7)} for n in range(100_000)]
    events = [event for event in events if event["event"] != "step" or event["cycle"] != step["cycle"]]
    write_events(copy, events[:first] + more + events[first:])
    upgrayedd("report", copy)
    assert (copy / "report.html").stat().st_size < 5e6
    page, trouble = opened(browser, (copy / "report.html").as_uri())
    assert trouble == [] and page.evaluate("performance.timing.loadEventEnd - performance.timing.navigationStart") < 15_000
    assert "100 000" in page.inner_text("main")
    page.close()


def test_several_runs_and_one_under_way(run: pathlib.Path, browser: Browser, tmp_path: pathlib.Path) -> None:
    other, out = tmp_path / "second", tmp_path / "both.html"
    shutil.copytree(run, other)
    (other / "summary.json").unlink()
    events = events_of(other)
    cut = max(at for at, event in enumerate(events) if event["event"] == "step")
    write_events(other, events[:cut])
    assert "--out FILE is missing" in upgrayedd("report", run, other, check=False).stderr
    assert upgrayedd("report", run, other, "--out", out).stdout == f"{out}\n"
    page, trouble = opened(browser, out.as_uri())
    assert trouble == []
    assert [cell.inner_text() for cell in page.query_selector_all("thead:first-of-type th a")] == ["first", "second"]
    assert "not complete: cycle 2 of 2, step 2 of 3" in page.inner_text("#run1 .state")
    # One of ours is made anew, others stay.
    upgrayedd("report", run, "--out", out)
    out.write_text("<p>mine</p>")
    refused = upgrayedd("report", run, "--out", out, check=False)
    assert refused.returncode == 2 or refused.returncode == 1
    assert "is no page of this program" in refused.stderr and out.read_text() == "<p>mine</p>"
    page.close()


class Watch:
    """The server on runs, and its address."""

    def __init__(self, *runs: pathlib.Path, port: int = 0) -> None:
        words = [*UPGRAYEDD, "watch", *map(str, runs), "--port", str(port)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        self.port = int(self.address.rstrip("/").rsplit(":", 1)[1])

    def stop(self) -> int:
        self.process.send_signal(2)
        return self.process.wait(timeout=10)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def asked(port: int, method: str, path: str, host: str) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders())


def test_a_live_page_follows_its_run(run: pathlib.Path, browser: Browser, tmp_path: pathlib.Path) -> None:
    copy = tmp_path / HOSTILE
    shutil.copytree(run, copy)
    summary = (copy / "summary.json").read_bytes()
    (copy / "summary.json").unlink()
    events = events_of(copy)
    second = next(at for at, event in enumerate(events) if event.get("cycle") == 2)
    write_events(copy, events[:second])
    with Watch(copy, run) as watch:
        page, trouble = opened(browser, watch.address)
        page.wait_for_selector("#connection:text-is('live')")
        assert "cycle 1 of 2, done" in page.inner_text("#run0 .state") and page.query_selector("#run1 .state.complete")
        page.click("#run1 summary")
        begun = time.monotonic()
        with open(copy / "events.jsonl", "a") as file:
            file.write(json.dumps(events[second]) + "\n" + json.dumps(events[second + 1])[:20])
        page.wait_for_selector("#run0 .state:has-text('cycle 2 of 2')")
        # Under two seconds where nothing else runs; machines that test others may be slow.
        assert time.monotonic() - begun < 15
        # What the reader opened stays open.
        assert page.query_selector("#run1 details[open]")
        # A run that is continued goes back to an earlier point, and then to its end.
        write_events(copy, events[: second - 3])
        page.wait_for_selector("#run0 .state:has-text('cycle 1 of 2, step')")
        (copy / "summary.json").write_bytes(summary)
        write_events(copy, events)
        page.wait_for_selector("#run0 .state.complete")
        page.reload()
        assert page.inner_text("h1") == "2 runs" and page.inner_text("#run0-name") == HOSTILE
        assert trouble == [] and page.query_selector_all("#runs img, #runs script") == []
        # A folder that goes away is said, and one that comes back is shown.
        copy.rename(tmp_path / "moved")
        page.wait_for_selector("#connection:has-text('cannot be read')")
        assert str(tmp_path) not in page.inner_text("#connection")
        (tmp_path / "moved").rename(copy)
        page.wait_for_selector("#connection:text-is('live')")
        assert watch.stop() == 0
        page.wait_for_selector("#connection:has-text('trying again')")
        # The same page goes on with another server.
        with Watch(copy, run, port=watch.port):
            page.wait_for_selector("#connection:text-is('live')")
        page.close()


def test_a_live_page_is_for_this_machine_alone(run: pathlib.Path) -> None:
    with Watch(run) as watch:
        own = f"127.0.0.1:{watch.port}"
        status, headers = asked(watch.port, "GET", "/", own)
        assert status == 200 and "default-src 'none'" in headers["Content-Security-Policy"]
        assert asked(watch.port, "GET", "/", f"localhost:{watch.port}")[0] == 200
        assert asked(watch.port, "HEAD", "/live.js", own)[0] == 200
        for host in ("evil.example", f"evil.example:{watch.port}", "127.0.0.1", ""):
            assert asked(watch.port, "GET", "/", host)[0] == 403, host
            assert asked(watch.port, "GET", "/events", host)[0] == 403, host
        assert asked(watch.port, "GET", "/../run.toml", own)[0] == 404
        for method in ("POST", "PUT", "DELETE"):
            assert asked(watch.port, method, "/", own)[0] == 405
        again = upgrayedd("watch", run, "--port", watch.port, check=False)
        assert again.returncode == 1 and f"port {watch.port}" in again.stderr
    missing = upgrayedd("watch", run / "model", check=False)
    assert missing.returncode != 0 and "is not a run folder" in missing.stderr
