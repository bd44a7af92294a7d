// Going from place to place without loading the page anew.

import { type AnchorHTMLAttributes, type MouseEvent, useSyncExternalStore } from "react";
import { href, parse, type Route } from "./routes";

const MOVED = "vbm-moved";

export function go(route: Route): void {
  history.pushState(null, "", href(route));
  window.dispatchEvent(new Event(MOVED));
}

function subscribe(moved: () => void): () => void {
  window.addEventListener("popstate", moved);
  window.addEventListener(MOVED, moved);
  return () => {
    window.removeEventListener("popstate", moved);
    window.removeEventListener(MOVED, moved);
  };
}

export function useRoute(): Route {
  return parse(useSyncExternalStore(subscribe, () => location.pathname));
}

/** Follows a click, unless the browser is asked for something else (a new tab, a download). */
export function follow(event: MouseEvent, route: Route): void {
  if (event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go(route);
}

type LinkProps = AnchorHTMLAttributes<HTMLAnchorElement> & { to: Route };

export function Link({ to, children, ...rest }: LinkProps) {
  return (
    <a {...rest} href={href(to)} onClick={(event) => follow(event, to)}>
      {children}
    </a>
  );
}
