import { describe, expect, it } from "vitest";
import { treeRows } from "./snapshots";

const at = (id: string, parent: string | null, day: number) => ({
  id,
  parent,
  created_at: `2026-01-0${day}T00:00:00Z`,
});
const shape = (...items: ReturnType<typeof at>[]) => treeRows(items).map((row) => `${row.depth}${row.item.id}`);

describe("snapshots as a tree", () => {
  it("has parents before their children, and older ones first", () => {
    expect(shape(at("d", "b", 4), at("c", "a", 3), at("b", "a", 2), at("a", null, 1))).toEqual([
      "0a",
      "1b",
      "2d",
      "1c",
    ]);
  });

  it("shows each once, also when a parent is gone or a circle was made", () => {
    expect(shape(at("b", "gone", 2), at("a", null, 1))).toEqual(["0a", "0b"]);
    expect(shape(at("a", "b", 1), at("b", "a", 2))).toEqual(["0a", "1b"]);
    expect(shape()).toEqual([]);
  });
});
