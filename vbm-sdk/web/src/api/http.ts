// Requests to vbmd, typed by the API document: a path, a body or a field that it does not have does not compile.

import type { paths } from "./schema";
import type { Problem } from "./types";

/** How long an answer may take. Requests are accepted at once; what takes time is an operation. */
const ANSWER_WITHIN_MS = 30_000;
/** Items of one part of a list. */
const PAGE_ITEMS = 1_000;
/** Parts of one list: a page that shows more than this many thousand records is of no use to anybody. */
const PAGES_MAX = 20;

/** A failure as every part of VBM tells it. */
export class ApiError extends Error {
  constructor(
    readonly what: string,
    readonly why: string,
    readonly fix: string,
    /** The HTTP status; 0 when there was no answer. */
    readonly status: number,
  ) {
    super(`${what}: ${why}`);
    this.name = "ApiError";
  }
}

/** Any failure in the form of an `ApiError`. */
export function asApiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error;
  const why = error instanceof Error ? error.message : String(error);
  return new ApiError("The page failed", why, "Reload the page; if it happens again, tell those who make VBM.", 0);
}

type Method = "get" | "post" | "put" | "patch" | "delete";
type JsonOf<R> = R extends { content: infer C } ? C[keyof C] : never;
type Responses<Op> = Op extends { responses: infer R } ? R : never;
type Good<R> = JsonOf<R[Extract<keyof R, 200 | 201 | 202 | 204>]>;
type Operation<P extends keyof paths, M extends Method> = M extends keyof paths[P] ? paths[P][M] : never;
type BodyOf<Op> = Op extends { requestBody: { content: { "application/json": infer B } } } ? B : undefined;
type PathOf<Op> = Op extends { parameters: { path: infer P } } ? P : undefined;
type QueryOf<Op> = Op extends { parameters: { query?: infer Q } } ? Q : undefined;

/** What a request needs: names in the path, a query, a body. */
export interface Options<Op> {
  path?: PathOf<Op>;
  query?: QueryOf<Op>;
  body?: BodyOf<Op>;
  signal?: AbortSignal;
}

/** Fills the names of a path in: `/v1/vms/{vm}` with `{ vm: "web" }`. */
export function fill(
  template: string,
  names: Record<string, unknown> = {},
  query: Record<string, unknown> = {},
): string {
  const path = template.replace(/\{(\w+)\}/g, (_, name: string) => encodeURIComponent(String(names[name])));
  const pairs = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
  const search = new URLSearchParams(pairs.map(([key, value]) => [key, String(value)])).toString();
  return search ? `${path}?${search}` : path;
}

/** The failure in an answer: its problem JSON, or what can be said without one. */
export async function failure(response: Response): Promise<ApiError> {
  const text = await response.text().catch(() => "");
  try {
    const { error, status } = JSON.parse(text) as Problem;
    return new ApiError(error.what, error.why, error.fix, status);
  } catch {
    const why = `It answered ${response.status} ${response.statusText}`.trim();
    return new ApiError("vbmd did not understand the request", why, "Reload the page.", response.status);
  }
}

function unreachable(error: unknown): ApiError {
  const timedOut = error instanceof DOMException && error.name === "TimeoutError";
  const why = timedOut ? `there was no answer within ${ANSWER_WITHIN_MS / 1000} s` : "the connection failed";
  return new ApiError("vbmd does not answer", why, "See whether vbmd runs; what runs in VMs goes on without it.", 0);
}

/** Sends something and gives the answer, whatever it holds. Changes bear a key: sent twice, they are done once. */
export async function send(method: Method, url: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  if (method !== "get") headers.set("Idempotency-Key", crypto.randomUUID());
  let response: Response;
  try {
    response = await fetch(url, {
      signal: AbortSignal.timeout(ANSWER_WITHIN_MS),
      ...init,
      method: method.toUpperCase(),
      headers,
      credentials: "same-origin",
    });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw unreachable(error);
  }
  if (!response.ok) throw await failure(response);
  return response;
}

/** Calls an endpoint that answers JSON. */
export async function call<M extends Method, P extends keyof paths>(
  method: M,
  path: P,
  options: Options<Operation<P, M>> = {},
): Promise<Good<Responses<Operation<P, M>>>> {
  const url = fill(path, options.path ?? {}, options.query ?? {});
  const { body } = options;
  const init: RequestInit = options.signal ? { signal: options.signal } : {};
  if (body !== undefined) {
    init.body = JSON.stringify(body);
    init.headers = { "Content-Type": "application/json" };
  }
  const response = await send(method, url, init);
  return (await response.json()) as Good<Responses<Operation<P, M>>>;
}

type ListPath = {
  [P in keyof paths]: Good<Responses<Operation<P, "get">>> extends { items: unknown[] } ? P : never;
}[keyof paths];
type ItemOf<P extends ListPath> = Good<Responses<Operation<P, "get">>> extends { items: (infer T)[] } ? T : never;

/** A whole list, part by part, and the lowest revision that a part was read at. */
export async function list<P extends ListPath>(
  path: P,
  signal?: AbortSignal,
  names: Record<string, string> = {},
): Promise<{ items: ItemOf<P>[]; revision: number }> {
  const items: ItemOf<P>[] = [];
  let revision = Number.MAX_SAFE_INTEGER;
  let after: string | undefined;
  for (let page = 0; page < PAGES_MAX; page += 1) {
    const response = await send("get", fill(path, names, { limit: PAGE_ITEMS, after }), signal ? { signal } : {});
    const part = (await response.json()) as { items: ItemOf<P>[]; next?: string | null; revision: number };
    items.push(...part.items);
    revision = Math.min(revision, part.revision);
    if (!part.next) break;
    after = part.next;
  }
  return { items, revision };
}
