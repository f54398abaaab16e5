// The frame: signing in, which page is shown, the live feed's state, the theme, signing out.
import { session } from "./api.js";
import { failed, h, loading, put } from "./dom.js";
import { Feed } from "./feed.js";
import { audit } from "./page-audit.js";
import { compare } from "./page-compare.js";
import { decisions } from "./page-decisions.js";
import { entity } from "./page-entity.js";
import { models } from "./page-models.js";
import { overview } from "./page-overview.js";
import { tiers } from "./page-tiers.js";
import { signIn } from "./sign-in.js";

const PAGES = [
  ["overview", "Overview", overview], ["tiers", "Tiers", tiers], ["models", "Scorer and models", models],
  ["decisions", "Decisions", decisions], ["entity", "Entity", entity], ["compare", "Compare", compare], ["audit", "Audit", audit],
];
const THEMES = { auto: "As the system", light: "Light", dark: "Dark" };
const STATES = { live: ["Live", "good"], connecting: ["Connecting", "warn"], broken: ["Feed lost", "bad"] };

const app = document.getElementById("app");
let who = null, feed = null, leave = () => {};

session.whenEnded(signedOut);
window.addEventListener("hashchange", show);
window.addEventListener("weir-theme", show); // charts take their colours when they are drawn
start();

async function start() {
  try {
    enter(await session.current());
  } catch (error) {
    if (error.status === 401) ask();
    else put(app, h("main", { class: "alone" }, failed(error, () => { put(app, loading()); start(); })));
  }
}

function ask(text = "") {
  document.title = "Sign in · Weir";
  put(app, signIn(text, enter));
  document.getElementById("key")?.focus();
}

function enter(holder) {
  who = holder;
  feed = new Feed(signedOut);
  feed.on("state", showState);
  put(app, frame());
  feed.open();
  show();
}

function signedOut(text = "") {
  if (!who) return;
  leave();
  leave = () => {};
  feed.close();
  who = feed = null;
  document.querySelectorAll("dialog").forEach((dialog) => dialog.close());
  ask(text);
}

function frame() {
  const out = h("button", { type: "button", class: "button quiet", id: "sign-out", onclick: async () => {
    try { await session.close(); } catch { /* it has ended already */ }
    signedOut("You have signed out.");
  } }, "Sign out");
  const theme = h("select", { "aria-label": "Theme", id: "theme", onchange: (event) => window.weirTheme.choose(event.target.value) },
    Object.entries(THEMES).map(([value, text]) => h("option", { value, selected: value === window.weirTheme.chosen }, text)));
  return [
    h("header", { class: "top" },
      h("a", { class: "brand", href: "#/overview" }, h("img", { src: "/console/icon.svg", alt: "", width: 26, height: 26 }), "Weir"),
      h("nav", { "aria-label": "Pages" }, PAGES.map(([name, text]) => h("a", { href: `#/${name}`, "data-page": name }, text))),
      h("div", { class: "who" },
        h("span", { class: "feed-state", id: "feed-state", role: "status" }),
        h("span", { class: "name", title: `Signed in with the ${who.role} key ${who.name}` }, who.name, h("small", {}, who.role)), theme, out)),
    h("main", { id: "content", tabindex: "-1" }),
  ];
}

function showState() {
  const place = document.getElementById("feed-state");
  if (!place || !feed) return;
  const [text, tone] = STATES[feed.state];
  place.className = `feed-state ${tone}`;
  place.textContent = text;
  place.title = feed.problem;
}

function show() {
  if (!who) return;
  const [name = "", ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decoded);
  const [page, title, render] = PAGES.find(([known]) => known === name) ?? PAGES[0];
  leave();
  document.title = `${title} · Weir`;
  for (const link of document.querySelectorAll("[data-page]")) {
    if (link.dataset.page === page) { link.setAttribute("aria-current", "page"); link.scrollIntoView({ block: "nearest", inline: "center" }); }
    else link.removeAttribute("aria-current");
  }
  const root = put(document.getElementById("content"), h("h1", {}, title));
  showState();
  leave = render(root, { feed, who, arguments: rest }) ?? (() => {});
  window.scrollTo(0, 0);
}

function decoded(part) {
  try { return decodeURIComponent(part); } catch { return part; }
}
