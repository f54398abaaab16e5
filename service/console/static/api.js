// Calls of /v1 with the session's cookie; changes carry its CSRF token. What fails is thrown as a Problem.

let csrf = "";
let onSignedOut = () => {};

export class Problem extends Error {
  constructor(status, body) {
    super(body.detail ?? `the service answered ${status}`);
    this.status = status;
    this.title = body.title ?? `Error ${status}`;
    this.detail = body.detail ?? this.message;
    this.field = body.field;
  }
}

/** JSON in which integers that a double cannot hold (LSNs) are kept as text. */
export const parse = (text) => JSON.parse(text, (key, value, context) =>
  typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value) && /^\d+$/.test(context?.source ?? "") ? context.source : value);

export async function call(method, path, body, signal) {
  let reply;
  try {
    reply = await fetch(path, {
      method, signal, credentials: "same-origin", cache: "no-store",
      headers: { ...(body === undefined ? {} : { "Content-Type": "application/json" }), ...(method === "GET" ? {} : { "X-CSRF-Token": csrf }) },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { title: "No connection", detail: "The service does not answer. Is it running?" });
  }
  const text = await reply.text();
  let value = {};
  try { value = text ? parse(text) : {}; } catch { value = { detail: "the reply is no JSON" }; }
  if (!reply.ok) {
    if (reply.status === 401 && path !== "/v1/session") onSignedOut(value.detail);
    throw new Problem(reply.status, value);
  }
  return value;
}

export const get = (path, signal) => call("GET", path, undefined, signal);
export const quoted = encodeURIComponent;

/** The value at `path`, or null where this service does not offer it. */
export async function offered(path, signal) {
  try { return await get(path, signal); } catch (error) {
    if (error.status === 404 || error.status === 405) return null;
    throw error;
  }
}

function keep(session) {
  csrf = session.csrf;
  return { name: session.name, role: session.role };
}

export const session = {
  whenEnded(then) { onSignedOut = then; },
  current: async () => keep(await get("/v1/session")),
  open: async (key) => keep(await call("POST", "/v1/session", { key })),
  close: () => call("DELETE", "/v1/session"),
};
