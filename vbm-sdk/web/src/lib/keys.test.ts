import { describe, expect, it } from "vitest";
import { TYPED_MAX_CHARS, strokes } from "./keys";

const keys = (text: string) => strokes(text).map(({ code, shift }) => `${shift ? "shift+" : ""}${code}`);

describe("text as key presses", () => {
  it("are those of a US keyboard", () => {
    expect(keys("aA1!\r\n\t ~")).toEqual([
      "KeyA",
      "shift+KeyA",
      "Digit1",
      "shift+Digit1",
      "Enter",
      "Tab",
      "Space",
      "shift+Backquote",
    ]);
  });

  it("reach every printable character of ASCII", () => {
    const ascii = Array.from({ length: 0x7f - 0x20 }, (_, at) => String.fromCharCode(at + 0x20)).join("");
    expect(strokes(ascii)).toHaveLength(ascii.length);
    expect(strokes(ascii).filter(({ code }) => code === null)).toEqual([]);
    expect(new Set(keys(ascii)).size).toBe(ascii.length);
  });

  it("send other characters as themselves, and leave out what no key types", () => {
    expect(strokes("é€机😀").map(({ keysym }) => keysym)).toEqual([0xe9, 0x010020ac, 0x0100673a, 0x0101f600]);
    expect(strokes("\u0000\u001b\u007f")).toEqual([]);
  });

  it("are not endless", () => {
    expect(strokes("x".repeat(TYPED_MAX_CHARS + 9))).toHaveLength(TYPED_MAX_CHARS);
  });
});
