// Numbers, times and words as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

export const count = (n) => (n === null || n === undefined ? "–" : whole.format(n));
export const rate = (n) => (n >= 100 || n === 0 ? whole.format(n) : fine.format(n));
export const share = (part, all) => (all > 0 ? `${fine.format((100 * part) / all)} %` : "–");

export function ms(value) {
  if (value === null || value === undefined) return "–";
  return value < 1 ? `${whole.format(value * 1000)} µs` : value < 1000 ? `${fine.format(value)} ms` : `${fine.format(value / 1000)} s`;
}

export function bytes(n) {
  if (n === null || n === undefined) return "–";
  const step = Math.min(4, Math.floor(Math.log2(Math.max(n, 1)) / 10));
  return `${fine.format(n / 1024 ** step)} ${["B", "KiB", "MiB", "GiB", "TiB"][step]}`;
}

export function age(milliseconds) {
  if (milliseconds === null || milliseconds === undefined) return "new";
  const s = Math.max(0, milliseconds / 1000);
  if (s < 1) return `${Math.round(milliseconds)} ms`;
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) if (s >= 2 * length) return `${whole.format(s / length)} ${unit}`;
  return `${fine.format(s)} s`;
}

export const time = (milliseconds) => new Date(milliseconds).toLocaleTimeString("en-GB");
export const moment = (milliseconds) => (milliseconds ? `${new Date(milliseconds).toISOString().slice(0, 19).replace("T", " ")} UTC` : "–");

const NO_CENTS = new Set(["JPY", "KRW", "HUF"]);
export function money(amount, currency) {
  if (amount === null || amount === undefined) return "–";
  const digits = NO_CENTS.has(currency) && currency !== "HUF" ? 0 : 2;
  return `${(amount / 10 ** digits).toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits })} ${currency}`;
}

/** An LSN as epoch.position: its high 16 bits are the epoch. Given as text where it is beyond what a double holds. */
export function lsn(value) {
  if (value === null || value === undefined) return "–";
  const wide = BigInt(value);
  return `${wide >> 48n}·${(wide & ((1n << 48n) - 1n)).toString()}`;
}

export const tierNames = {
  l1: "L1", bloom: "Bloom", l2: "L2", redis: "Redis", postgres: "Postgres", ledger: "Ledger", write_behind: "write-behind",
  new: "nowhere: new", bloom_new: "Bloom: new", absent: "not named", unknown: "could not be asked", waiting: "write-behind",
};
export const tierName = (name) => tierNames[name] ?? name;
export const sentence = (code) => {
  const words = String(code).replaceAll("_", " ").toLowerCase();
  return words.charAt(0).toUpperCase() + words.slice(1);
};
