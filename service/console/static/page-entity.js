// An entity: its windows, which tiers hold it and up to which LSN, and the lists that name it.
import { call, get, offered, quoted } from "./api.js";
import { confirmWithReason, toast } from "./dialog.js";
import { badge, card, empty, failed, h, loading, put, table } from "./dom.js";
import { count, lsn, moment, tierName } from "./format.js";

const KINDS = ["card", "merchant", "device", "ip"];
const FIELDS = ["count", "sum", "max", "distinct_bits", "frauds"];
const FIELD_TEXT = { count: "Count", sum: "Sum", max: "Largest", distinct_bits: "Distinct (bits)", frauds: "Frauds" };

export function entity(root, { arguments: [kind, id] }) {
  const kindInput = h("select", { id: "kind" }, KINDS.map((name) => h("option", { value: name, selected: name === kind }, name)));
  const idInput = h("input", { id: "entity-id", type: "search", required: true, maxlength: "128", placeholder: "c1", value: id ?? "" });
  const body = h("div", {});
  let isHere = true;
  root.append(
    h("form", { class: "bar row", onsubmit: (event) => { event.preventDefault(); location.hash = `#/entity/${kindInput.value}/${quoted(idInput.value.trim())}`; } },
      h("label", { for: "kind" }, "Kind"), kindInput, h("label", { for: "entity-id" }, "Id"), idInput, h("button", { type: "submit", class: "button primary" }, "Show")),
    body);
  const load = async () => {
    put(body, loading());
    try {
      const [found, lists] = await Promise.all([get(`/v1/entities/${quoted(kind)}/${quoted(id)}`).catch(orNull), listsOf(kind, id)]);
      if (isHere) put(body, found ? parts(found) : empty(`This ${kind} is not known`, `No tier holds ${id}. Its first transaction makes its profile.`), listCard(kind, id, lists, load));
    } catch (error) {
      if (isHere) put(body, failed(error, load));
    }
  };
  if (kind && id) load();
  else put(body, empty("Which entity?", "Give a kind and an id, or open one from a decision."));
  return () => { isHere = false; };
}

function orNull(error) {
  if (error.status === 404) return null;
  throw error;
}

const listsOf = (kind, id) => Promise.all(["deny", "allow"].map((name) => offered(`/v1/lists/${name}/${quoted(kind)}/${quoted(id)}`)));

function parts(found) {
  const held = Object.entries(found.tiers);
  const newest = held.map(([, at]) => at).filter((at) => at !== null).map(BigInt).reduce((a, b) => (b > a ? b : a), 0n);
  const windows = Object.entries(found.windows);
  const columns = FIELDS.filter((field) => windows.some(([, values]) => values[field] !== undefined));
  const state = (name, at) => {
    if (found.unavailable.includes(name)) return badge("not answering", "bad");
    if (at === null) return name === "write_behind" ? badge("nothing waits") : badge("does not hold it");
    return BigInt(at) === newest ? badge("newest", "good") : badge("older", "warn");
  };
  return [
    h("section", { class: "card" }, h("h2", { class: "id" }, `${found.kind} ${found.id}`),
      h("dl", { class: "pairs" }, [["First seen", moment(found.first_seen)], ["Last seen", moment(found.last_seen)], ["Newest LSN", lsn(found.lsn)], ["Too late for their tile", count(found.late_dropped)]]
        .map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))))),
    h("div", { class: "two" },
      card("Windows, as of the last event", table("Windows", ["Window", ...columns.map((field) => ({ text: FIELD_TEXT[field], number: true }))],
        windows.map(([name, values]) => [name, ...columns.map((field) => (values[field] === undefined ? "–" : field === "sum" || field === "max" ? (values[field] / 100).toLocaleString("en", { minimumFractionDigits: 2 }) : count(values[field])))])),
      h("p", { class: "note" }, "Sums in the base currency of the spec.")),
      card("Which tiers hold it", table("Tiers", ["Tier", "State", { text: "LSN", number: true }], held.map(([name, at]) => [tierName(name), state(name, at), lsn(at)])))),
  ];
}

function listCard(kind, id, [deny, allow], reload) {
  const change = (name, entry) => async () => {
    const verb = entry ? "Take off" : "Put on";
    const path = `/v1/lists/${name}/${quoted(kind)}/${quoted(id)}`;
    const done = entry
      ? await confirmWithReason({ title: `Take ${id} off the ${name} list?`, text: "It counts from the next transaction on.", verb, danger: name === "deny" }, () => call("DELETE", path))
      : await confirmWithReason({ title: `Put ${id} on the ${name} list?`, text: `Every transaction that names this ${kind} is ${name === "deny" ? "declined" : "approved"} from now on.`, verb, danger: true }, (reason) => call("PUT", path, { reason }));
    if (done) { toast(`${id} is ${entry ? "off" : "on"} the ${name} list.`); reload(); }
  };
  return card("Lists", table("Lists", ["List", "State", "Reason", ""], [["deny", deny], ["allow", allow]].map(([name, entry]) => [
    name, entry ? badge("on it", name === "deny" ? "bad" : "good") : badge("not on it"), entry?.reason ?? "–",
    h("button", { type: "button", class: "button small", id: `list-${name}`, onclick: change(name, entry) }, entry ? "Take off" : "Put on …"),
  ])));
}
