import { describe, expect, it } from "vitest";
import { SseParser } from "./sse";

const STREAM = `: hello\n\nid: 7\ndata: {"a":1}\n\nevent: reset\ndata: x\ndata: y\n\ndata:z\r\n\r\n`;
const MESSAGES = [
  { event: "message", data: '{"a":1}', id: "7" },
  { event: "reset", data: "x\ny", id: "7" },
  { event: "message", data: "z", id: "7" },
];

describe("a stream of events", () => {
  it("is taken apart into messages; comments are none", () => {
    expect(new SseParser().push(STREAM)).toEqual(MESSAGES);
  });

  it("gives the same wherever it is cut", () => {
    for (let cut = 0; cut <= STREAM.length; cut += 1) {
      const parser = new SseParser();
      expect([...parser.push(STREAM.slice(0, cut)), ...parser.push(STREAM.slice(cut))], `cut at ${cut}`).toEqual(
        MESSAGES,
      );
    }
  });

  it("keeps a message that has not ended for later", () => {
    const parser = new SseParser();
    expect(parser.push("data: half")).toEqual([]);
    expect(parser.push("\n")).toEqual([]);
    expect(parser.push("\n")).toEqual([{ event: "message", data: "half", id: "" }]);
  });
});
