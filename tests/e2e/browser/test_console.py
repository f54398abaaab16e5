"""What an analyst does with the console, in a real browser: sign in, watch, toggle, look into a decision, sign out."""

import hashlib
import json
import re
from typing import Any

import pytest

from service.auth import KEY_FILE, Role, _read, _write

pytestmark = pytest.mark.asyncio(loop_scope="module")

PER_S = 120.0


def _ms(text: str) -> float:
    """A latency as the page writes it."""
    number, unit = re.fullmatch(r"([\d.,]+) (µs|ms|s)", text).groups()  # type: ignore[union-attr]  # a wrong text fails the test
    return float(number.replace(",", "")) * {"µs": 0.001, "ms": 1.0, "s": 1000.0}[unit]


async def test_ingest_key_is_refused(weir: Any, visit: Any, keys: Any) -> None:
    """The reason is shown, and the page stays where it is; so for a wrong key."""
    page = await visit(weir.url).page()
    for key, words in ((keys(weir, Role.INGEST), "Forbidden"), ("weir_admin_wrong", "Unauthorized")):
        await page.get_by_label("API key").fill(key)
        await page.get_by_role("button", name="Sign in").click()
        await page.get_by_role("alert").filter(has_text=words).wait_for()
    assert await page.get_by_role("button", name="Sign out").count() == 0
    assert await page.context.cookies() == []


async def test_toggle_under_load_changes_flow_and_latency(make_weir: Any, visit: Any, keys: Any, load: Any, until: Any) -> None:
    """L1 off: its hits fall to nothing, L2 answers, calls take longer; on again: L1 answers. The audit has both reasons."""
    weir = make_weir()
    await weir.start()
    load(weir, PER_S)
    page = await visit(weir.url).signed_in(keys(weir, Role.ANALYST))

    async def answered(tier: str) -> int:
        node = page.locator(f'[data-tier="{tier}"]')
        return int(await node.get_attribute("data-answered") or 0) if await node.count() else 0

    async def median() -> float:
        text = await page.locator("#figure-p50 strong").inner_text()
        return 0.0 if text == "–" else _ms(text)

    await until(lambda: answered("l1"), lambda n: n > 100)
    p99_on = await page.locator("#figure-p99 strong").inner_text()
    median_on = await median()
    await _toggle(page, "l1", "Turn off", "what does L1 save?")
    await page.locator("#tier-l1").get_by_text("off", exact=True).wait_for()
    await page.get_by_role("link", name="Overview").click()
    await until(lambda: answered("l2"), lambda n: n > 100)
    await until(lambda: answered("l1"), lambda n: n < 40)
    await until(median, lambda ms: ms > median_on)
    await until(lambda: page.locator("#figure-p99 strong").inner_text(), lambda text: text not in (p99_on, "–"))
    await _toggle(page, "l1", "Turn on", "seen it")
    await page.get_by_role("link", name="Overview").click()
    await until(lambda: answered("l1"), lambda n: n > 100)
    await page.get_by_role("link", name="Audit").click()
    rows = page.get_by_role("row").filter(has_text="analyst-")
    await rows.nth(1).wait_for()
    assert "seen it" in await rows.nth(0).inner_text()
    assert "what does L1 save?" in await rows.nth(1).inner_text()
    weir.stop()


async def _toggle(page: Any, tier: str, verb: str, reason: str) -> None:
    await page.get_by_role("link", name="Tiers").click()
    await page.locator(f"#switch-{tier}").click()
    await page.get_by_label("Reason").fill(reason)
    await page.get_by_role("button", name=verb, exact=True).click()
    await page.get_by_role("dialog").wait_for(state="detached")


async def test_toggle_needs_a_reason_and_can_be_cancelled_by_keyboard(weir: Any, visit: Any, keys: Any) -> None:
    """Without a reason nothing is sent; Escape closes; afterwards the focus is where it was and the tier as it was."""
    page = await visit(weir.url).signed_in(keys(weir, Role.ADMIN))
    await page.goto(f"{weir.url}/console#/tiers")
    switch = page.locator("#switch-bloom")
    await switch.focus()
    await page.keyboard.press("Space")
    dialog = page.get_by_role("dialog")
    await dialog.wait_for()
    await page.get_by_label("Reason").fill("   ")
    await page.keyboard.press("Enter")
    await dialog.get_by_text("Say why").wait_for()
    await page.keyboard.press("Escape")
    await dialog.wait_for(state="detached")
    assert await switch.evaluate("element => element === document.activeElement")
    assert await switch.get_attribute("aria-checked") == "true"
    assert all(entry.get("tier") != "bloom" for entry in weir.call("GET", "/v1/audit").json["entries"])


async def test_decision_is_opened_and_explained(weir: Any, visit: Any, keys: Any, load: Any, until: Any) -> None:
    """A live decision, its features, where its profiles came from; scored again without a trace; its card."""
    running = load(weir, PER_S)
    page = await visit(weir.url).signed_in(keys(weir, Role.ANALYST))
    await page.get_by_role("link", name="Decisions").click()
    await page.locator("tr[data-event]").nth(5).wait_for()
    await page.get_by_role("button", name="Hold the list").click()
    first = page.locator("tr[data-event]").first
    event_id = await first.get_attribute("data-event")
    await first.click()
    await page.get_by_role("heading", name=event_id, exact=True).wait_for()
    stored = weir.call("GET", f"/v1/decisions/{event_id}").json
    assert await page.locator("#score").inner_text() == f"{stored['score']:.4f}"
    profiles = page.get_by_role("region", name="Profiles").get_by_role("row")
    assert await profiles.count() == 5  # the head, and a row for each kind
    assert await page.locator(".feature").count() == 40
    await running.stop()
    before = _n_scored(weir)
    await page.locator("#again").click()
    await page.get_by_text(f"it was {stored['score']:.4f}").wait_for()
    assert await page.locator(".feature").count() == 80
    assert _n_scored(weir) == before
    await page.get_by_role("link", name=stored["transaction"]["card_id"], exact=True).click()
    await page.get_by_role("heading", name=f"card {stored['transaction']['card_id']}").wait_for()
    assert await page.get_by_role("region", name="Windows").get_by_role("row").count() > 3
    assert await page.get_by_role("region", name="Tiers").get_by_text("newest").count() >= 1


def _n_scored(weir: Any) -> float:
    """Transactions that count, so far."""
    text = weir.call("GET", "/metrics").body.decode()
    return sum(float(n) for n in re.findall(r"^weir_tx_total\{[^}]*\} (\S+)$", text, re.MULTILINE))


async def test_filter_and_look_up_of_decisions(weir: Any, visit: Any, keys: Any, load: Any) -> None:
    """A filter that nothing passes says so; an event that nobody knows says so; odd ids are no trouble."""
    running = load(weir, PER_S)
    page = await visit(weir.url).signed_in(keys(weir, Role.ANALYST))
    await page.goto(f"{weir.url}/console#/decisions")
    await page.locator("tr[data-event]").first.wait_for()
    await page.get_by_label("Filter by text").fill("nobody-has-this")
    await page.get_by_text("None of them matches").wait_for()
    await running.stop()
    odd = {"event_id": "a/b <b>?&#%25 ü", "ts": 1790000000000, "amount": 5, "currency": "EUR"}
    odd |= {"card_id": "c/1", "merchant_id": "<i>m</i>"}
    assert weir.call("POST", "/v1/score", json.dumps(odd).encode()).status == 200
    for event_id, words in ((odd["event_id"], "<i>m</i>"), ("nobody", "No decision is stored")):
        await page.goto(f"{weir.url}/console#/decisions")
        await page.get_by_label("Look up").fill(str(event_id))
        await page.keyboard.press("Enter")
        await page.get_by_text(words).first.wait_for()


async def test_scorer_is_switched_where_there_are_two(weir: Any, visit: Any, keys: Any) -> None:
    """The other engine scores afterwards; one that cannot be used has no button."""
    page = await visit(weir.url).signed_in(keys(weir, Role.ANALYST))
    await page.goto(f"{weir.url}/console#/models")
    await page.get_by_role("heading", name="Scorer", exact=True).wait_for()
    engine = weir.call("GET", "/v1/scorer").json
    others = [name for name, missing in engine["missing"].items() if name != engine["scorer"]]
    usable = [name for name in others if engine["missing"][name] is None]
    assert await page.locator('[id^="use-"]').count() == len(usable)
    for name in usable:
        await page.locator(f"#use-{name}").click()
        await page.get_by_label("Reason").fill("to see that it can")
        await page.get_by_role("button", name=f"Use {name}", exact=True).click()
        await page.locator("tr").filter(has_text=name).get_by_text("scores").wait_for()
        assert weir.call("GET", "/v1/scorer").json["scorer"] == name


async def test_entity_goes_on_a_list_and_off_again(weir: Any, visit: Any, keys: Any) -> None:
    """With a reason, which is shown; taken off it is gone; an entity that is new is said to be."""
    page = await visit(weir.url).signed_in(keys(weir, Role.ANALYST))
    await page.goto(f"{weir.url}/console#/entity")
    await page.get_by_text("Which entity?").wait_for()
    await page.get_by_label("Id").fill("c 99/x")
    await page.get_by_role("button", name="Show").click()
    await page.get_by_text("This card is not known").wait_for()
    await page.locator("#list-deny").click()
    await page.get_by_label("Reason").fill("stolen")
    await page.get_by_role("button", name="Put on", exact=True).click()
    await page.get_by_role("cell", name="stolen").wait_for()
    assert weir.call("GET", "/v1/lists/deny/card/c%2099%2Fx").json["reason"] == "stolen"
    await page.locator("#list-deny").click()
    await page.get_by_label("Reason").fill("found")
    await page.get_by_role("button", name="Take off", exact=True).last.click()
    await page.get_by_text("not on it").nth(1).wait_for()
    assert weir.call("GET", "/v1/lists/deny/card/c%2099%2Fx").status == 404


async def test_signing_out_and_a_revoked_key_end_the_visit(weir: Any, visit: Any, keys: Any) -> None:
    """Either way the sign-in is shown again, with the reason, and going back shows nothing."""
    key = keys(weir, Role.ANALYST)
    page = await visit(weir.url).signed_in(key)
    await page.get_by_role("button", name="Sign out").click()
    await page.get_by_text("You have signed out").wait_for()
    assert await page.context.cookies() == []
    await page.goto(f"{weir.url}/console#/tiers")
    await page.get_by_label("API key").wait_for()
    page = await visit(weir.url).signed_in(key)
    path = weir.directory / KEY_FILE
    _write(path, [entry for entry in _read(path) if entry.sha256 != hashlib.sha256(key.encode()).hexdigest()])
    await page.get_by_label("API key").wait_for()  # the live feed notices


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
async def test_no_page_is_wider_than_the_screen_and_focus_is_seen(
    weir: Any, visit: Any, keys: Any, load: Any, width: int, height: int
) -> None:
    """Whatever the screen, only tables scroll sideways; each link of the frame is reached by Tab and shows its focus."""
    load(weir, 30.0)
    page = await visit(weir.url).signed_in(keys(weir, Role.ADMIN), width, height)
    for name in ("overview", "tiers", "models", "decisions", "entity/card/c1", "compare", "audit"):
        await page.goto(f"{weir.url}/console#/{name}")
        await page.locator("h1").wait_for()
        await page.locator(".loading").first.wait_for(state="detached")
        assert await page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), name
    await page.evaluate("document.activeElement.blur(); window.getSelection().removeAllRanges()")
    reached: list[str] = []
    for _ in range(20):
        await page.keyboard.press("Tab")
        tag, text, outline = await page.evaluate(
            "((at) => [at.tagName, at.textContent.trim(), getComputedStyle(at).outlineStyle])(document.activeElement)"
        )
        reached.append(text)
        assert tag == "BODY" or outline != "none", text
    assert {"Overview", "Tiers", "Decisions", "Compare", "Audit", "Sign out"} <= set(reached)


@pytest.mark.usefixtures("in_turn")
async def test_comparison_runs_with_progress_and_can_be_forgotten(make_weir: Any, visit: Any, keys: Any) -> None:
    """Without L1 against everything on: progress, then latency, decisions and caveats; another one is cancelled."""
    weir = make_weir()
    await weir.start()
    if weir.call("GET", "/v1/compare").status == 404:
        pytest.skip("this service offers no comparisons")
    page = await visit(weir.url).signed_in(keys(weir, Role.ANALYST))
    page.set_default_timeout(180_000)  # four services are started
    await page.goto(f"{weir.url}/console#/compare")
    await page.get_by_text("None yet").wait_for()
    await page.get_by_label("Stream").select_option("1000")
    await page.get_by_label("Without L1", exact=True).uncheck()
    await page.get_by_role("button", name="Start").click()
    await page.get_by_text("Choose at least one configuration").wait_for()
    await page.get_by_label("Without L1", exact=True).check()
    await page.get_by_role("button", name="Start").click()
    await page.locator("#progress").wait_for()
    await page.locator('#comparison[data-state="done"]').wait_for()
    assert await page.locator("#compare-latency tbody tr").count() == 2
    assert await page.locator("#compare-decisions tbody tr").count() == 2
    await page.get_by_role("heading", name="What this does not show").wait_for()
    await page.goto(f"{weir.url}/console#/compare")
    await page.get_by_label("Stream").select_option("50000")
    await page.get_by_role("button", name="Start").click()
    await page.get_by_role("button", name="Cancel").click()
    await page.locator('#comparison[data-state="cancelled"]').wait_for()
    await page.get_by_role("link", name="All comparisons").click()
    await page.get_by_role("button", name="Forget").first.click()
    await page.get_by_text("Forgotten").wait_for()
    weir.stop()
