// The store within React: one for the page, fed for as long as the page is signed in.

import { type ReactNode, createContext, useContext, useEffect, useMemo, useState, useSyncExternalStore } from "react";
import { Wake, run } from "./feed";
import { type Action, BEGINNING, type Live, reduce } from "./store";

class LiveStore {
  #live = BEGINNING;
  readonly #listeners = new Set<() => void>();
  readonly wake = new Wake();

  readonly get = (): Live => this.#live;

  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };

  readonly dispatch = (action: Action): void => {
    this.#live = reduce(this.#live, action);
    for (const listener of this.#listeners) listener();
  };
}

const Context = createContext<LiveStore | undefined>(undefined);

export function LiveProvider({ children }: { children: ReactNode }) {
  const [store] = useState(() => new LiveStore());
  useEffect(() => {
    const stop = new AbortController();
    void run(store.dispatch, store.wake, stop.signal);
    return () => stop.abort();
  }, [store]);
  return <Context.Provider value={store}>{children}</Context.Provider>;
}

function useStore(): LiveStore {
  const store = useContext(Context);
  if (!store) throw new Error("used outside of LiveProvider");
  return store;
}

/** What is known now; the component is drawn again with each change. */
export function useLive(): Live {
  const store = useStore();
  return useSyncExternalStore(store.subscribe, store.get);
}

export interface LiveActions {
  dispatch(action: Action): void;
  /** Something was changed by this page: look at once where nothing tells of it. */
  changed(): void;
}

export function useLiveActions(): LiveActions {
  const store = useStore();
  return useMemo(() => ({ dispatch: store.dispatch, changed: () => store.wake.now() }), [store]);
}
