// The live feed: one EventSource for all pages, the last minutes of it, and who wants to hear.
import { parse, session } from "./api.js";

const SAMPLES_MAX = 300; // five minutes at one a second
const DECISIONS_MAX = 400;
const RETRY_MS = 4000;

export class Feed {
  constructor(ended) {
    this.samples = [];
    this.decisions = [];
    this.state = "connecting";
    this.problem = "";
    this.lost = 0;
    this.ended = ended;
    this.listeners = { stats: new Set(), decisions: new Set(), state: new Set() };
  }

  /** Hear of "stats", "decisions" or "state"; returns what ends it. */
  on(what, listener) {
    this.listeners[what].add(listener);
    return () => this.listeners[what].delete(listener);
  }

  get last() { return this.samples.at(-1) ?? null; }

  open() {
    const source = new EventSource("/v1/events");
    this.source = source;
    source.onopen = () => this.become("live");
    source.addEventListener("stats", (event) => {
      this.samples.push({ ...parse(event.data), at: Date.now() });
      if (this.samples.length > SAMPLES_MAX) this.samples.shift();
      this.tell("stats");
    });
    source.addEventListener("decisions", (event) => {
      this.decisions.push(...parse(event.data));
      this.decisions.splice(0, this.decisions.length - DECISIONS_MAX);
      this.tell("decisions");
    });
    source.addEventListener("lost", (event) => { this.lost += JSON.parse(event.data).messages; });
    source.addEventListener("end", () => this.recheck());
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) this.recheck(); // the service said no: why?
      else this.become("connecting");
    };
  }

  close() {
    clearTimeout(this.timer);
    this.source?.close();
  }

  async recheck() {
    this.close();
    try {
      await session.current();
      this.become("broken", "The live feed was refused; too many may be watching.");
    } catch (error) {
      if (error.status === 401) { this.ended(error.detail); return; }
      this.become("broken", error.detail);
    }
    this.timer = setTimeout(() => this.open(), RETRY_MS);
  }

  become(state, problem = "") {
    this.state = state;
    this.problem = problem;
    this.tell("state");
  }

  tell(what) {
    for (const listener of [...this.listeners[what]]) listener(this);
  }
}

/** Look-ups of the last `n` samples together: tier -> {asked, answered}, and the seconds that they took. */
export function summed(samples, n) {
  const tiers = {};
  let seconds = 0;
  for (const sample of samples.slice(-n)) {
    seconds += sample.interval_s;
    for (const [tier, { asked, answered }] of Object.entries(sample.lookups)) {
      tiers[tier] ??= { asked: 0, answered: 0 };
      tiers[tier].asked += asked;
      tiers[tier].answered += answered;
    }
  }
  return { tiers, seconds };
}
