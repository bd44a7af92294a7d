import { execFileSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { line, option, quote } from "./quote";

const AWKWARD = [
  "web1",
  "",
  "two words",
  "it's",
  `"double"`,
  "<script>alert('x')</script>",
  "$HOME `id` $(id)",
  "a\\b",
  "new\nline",
  "虚拟机",
  "*?[a]{b,c}~!#;&|<>",
  "-x",
  "'''",
];

describe("quoting", () => {
  it("leaves plain words alone", () => {
    expect(quote("lan,address=10.0.0.5,group=web")).toBe("lan,address=10.0.0.5,group=web");
    expect(quote("tcp/80@10.0.0.0/8")).toBe("tcp/80@10.0.0.0/8");
  });

  it("puts all else into single quotes", () => {
    expect(quote("")).toBe("''");
    expect(quote("it's")).toBe(`'it'\\''s'`);
    expect(line("vbm", "launch", "my image")).toBe("vbm launch 'my image'");
  });

  it("gives words that a real shell reads back unchanged", () => {
    const script = `printf '%s\\0' ${line(...AWKWARD)}`;
    const said = execFileSync("sh", ["-c", script], { encoding: "utf8", timeout: 10_000 });
    expect(said.split("\0").slice(0, -1)).toEqual(AWKWARD);
  });

  it("joins a value that looks like an option to its flag", () => {
    expect(option("--label", "-a=b")).toEqual(["--label=-a=b"]);
    expect(option("--label", "a=b")).toEqual(["--label", "a=b"]);
  });
});
