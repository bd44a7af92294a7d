// Server-Sent Events out of pieces of text (WHATWG HTML, section 9.2.6). Pure.
//
// The browser's own EventSource does not tell 401 from a lost connection, nor begin at a given revision;
// so the stream is read with fetch, and taken apart here.

export interface Message {
  event: string;
  data: string;
  /** The last id that was sent, in this message or before. */
  id: string;
}

export class SseParser {
  #rest = "";
  #event = "";
  #data: string[] = [];
  #id = "";

  /** Takes a piece of the stream; gives the messages that it completes. Comments (keep-alives) give none. */
  push(piece: string): Message[] {
    const lines = (this.#rest + piece).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop() ?? "";
    return lines.flatMap((text) => this.#line(text) ?? []);
  }

  #line(text: string): Message | undefined {
    if (text === "") return this.#end();
    const colon = text.indexOf(":");
    const field = colon < 0 ? text : text.slice(0, colon);
    const value = colon < 0 ? "" : text.slice(colon + 1).replace(/^ /, "");
    if (field === "event") this.#event = value;
    else if (field === "data") this.#data.push(value);
    else if (field === "id") this.#id = value;
    return undefined;
  }

  #end(): Message | undefined {
    const message = { event: this.#event || "message", data: this.#data.join("\n"), id: this.#id };
    const empty = this.#data.length === 0;
    this.#event = "";
    this.#data = [];
    return empty ? undefined : message;
  }
}
