import type { Operation } from "../api/types";
import { Link } from "../navigation";
import type { Route } from "../routes";

type Target = Operation["target"];

function placeOf(object: Target): Route | undefined {
  switch (object.kind) {
    case "vm":
      return { page: "vm", name: object.name, tab: "overview" };
    case "network":
      return { page: "network", name: object.name };
    case "group":
      return { page: "groups" };
    case "image":
      return { page: "images" };
    case "node":
      return { page: "nodes" };
    default:
      return undefined;
  }
}

/** What an event or an operation is about, leading to where it is shown. */
export function ObjectLink({ object }: { object: Target }) {
  const to = placeOf(object);
  return (
    <>
      <span className="vbm-faint">{object.kind}</span> {to ? <Link to={to}>{object.name}</Link> : object.name}
    </>
  );
}
