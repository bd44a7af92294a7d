import { describe, expect, it } from "vitest";
import { VM_TABS, href, parse, type Route } from "./routes";

const PLACES: Route[] = [
  { page: "vms" },
  ...VM_TABS.map((tab): Route => ({ page: "vm", name: "web-1", tab })),
  { page: "networks" },
  { page: "network", name: "lan" },
  { page: "groups" },
  { page: "floating-ips" },
  { page: "images" },
  { page: "nodes" },
  { page: "operations" },
  { page: "events" },
];

describe("addresses", () => {
  it("lead back to the place that they were made of", () => {
    for (const place of PLACES) expect(parse(href(place))).toEqual(place);
  });

  it("begin at the VMs", () => {
    expect(parse("/")).toEqual({ page: "vms" });
  });

  it("survive names that nobody should have", () => {
    const name = `a/b "c" <script>虚拟机`;
    expect(parse(href({ page: "vm", name, tab: "serial" }))).toEqual({ page: "vm", name, tab: "serial" });
  });

  it("that lead nowhere say so", () => {
    for (const path of ["/nope", "/vms/a/b/c", "/vms/a/nope", "/nodes/x", "/%E0%A4%A", "/networks/a/b"])
      expect(parse(path), path).toEqual({ page: "lost", path });
  });
});
