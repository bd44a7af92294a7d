// The places of the page and their addresses. Pure.

export const VM_TABS = ["overview", "desktop", "serial", "snapshots", "events"] as const;
export type VmTab = (typeof VM_TABS)[number];

export type Route =
  | { page: "vms" }
  | { page: "vm"; name: string; tab: VmTab }
  | { page: "networks" }
  | { page: "network"; name: string }
  | { page: "groups" }
  | { page: "floating-ips" }
  | { page: "images" }
  | { page: "nodes" }
  | { page: "operations" }
  | { page: "events" }
  | { page: "lost"; path: string };

const PLAIN = ["networks", "groups", "floating-ips", "images", "nodes", "operations", "events"] as const;

/** The address of a place. */
export function href(route: Route): string {
  switch (route.page) {
    case "vm": {
      const base = `/vms/${encodeURIComponent(route.name)}`;
      return route.tab === "overview" ? base : `${base}/${route.tab}`;
    }
    case "network":
      return `/networks/${encodeURIComponent(route.name)}`;
    case "lost":
      return route.path;
    default:
      return `/${route.page}`;
  }
}

/** The place of an address. */
export function parse(path: string): Route {
  const lost: Route = { page: "lost", path };
  let parts: string[];
  try {
    parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  } catch {
    return lost;
  }
  const [first = "vms", name, tab = "overview", ...rest] = parts;
  if (rest.length > 0) return lost;
  if (first === "vms" && name !== undefined) {
    const known = VM_TABS.find((other) => other === tab);
    return known ? { page: "vm", name, tab: known } : lost;
  }
  if (parts.length === 2 && first === "networks" && name) return { page: "network", name };
  if (parts.length > 1) return lost;
  if (first === "vms") return { page: "vms" };
  const plain = PLAIN.find((page) => page === first);
  return plain ? { page: plain } : lost;
}
