// Doing something at once: told at the edge, followed to its end.

import { useCallback } from "react";
import type { Operation } from "../api/types";
import { useLiveActions } from "../live/context";
import { useTell } from "./Toasts";

export interface Deed {
  /** What is done, for people: "Start web". */
  title: string;
  /** The same as a command. */
  command: string;
  run: () => Promise<unknown>;
}

function operationOf(answer: unknown): Operation | undefined {
  return typeof answer === "object" && answer !== null && "operation" in answer
    ? (answer.operation as Operation)
    : undefined;
}

/** Gives what does a deed and throws its failure: for forms, which show it themselves. */
export function useDo(): (deed: Deed) => Promise<void> {
  const { dispatch, changed } = useLiveActions();
  const tell = useTell();
  return useCallback(
    async ({ title, command, run }) => {
      const operation = operationOf(await run());
      if (operation) dispatch({ type: "merged", table: "operation", record: operation });
      changed();
      tell({ title, command, operation: operation?.id });
    },
    [dispatch, changed, tell],
  );
}

/** Gives what does a deed and tells its failure at the edge: for buttons. */
export function useAct(): (deed: Deed) => Promise<void> {
  const act = useDo();
  const tell = useTell();
  return useCallback(
    (deed) => act(deed).catch((error: unknown) => tell({ title: deed.title, command: deed.command, error })),
    [act, tell],
  );
}
