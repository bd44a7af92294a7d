// What the page was asked to do, told at the edge: begun, how far, and how it ended.

import { Alert, AlertActionCloseButton, AlertGroup, Spinner } from "@patternfly/react-core";
import { type ReactNode, createContext, useCallback, useContext, useEffect, useMemo, useRef, useState } from "react";
import type { Operation } from "../api/types";
import { useLive } from "../live/context";
import { CliBox } from "./CliBox";
import { ErrorBody, partsOf, sentence } from "./ErrorNote";

/** How long a success stays. Failures stay until they are closed. */
const SUCCESS_MS = 6_000;
/** More than these push out the oldest. */
const TOASTS_MAX = 5;

interface Toast {
  key: number;
  title: string;
  command?: string | undefined;
  /** The operation that sees it through. */
  operation?: string | undefined;
  error?: unknown;
}
type Tell = (toast: Omit<Toast, "key">) => void;

const Context = createContext<Tell>(() => undefined);

export function Toasts({ children }: { children: ReactNode }) {
  const [toasts, setToasts] = useState<Toast[]>([]);
  const last = useRef(0);
  const tell = useCallback<Tell>((toast) => {
    last.current += 1;
    const added = { ...toast, key: last.current };
    setToasts((before) => [added, ...before].slice(0, TOASTS_MAX));
  }, []);
  const close = useCallback((key: number) => setToasts((before) => before.filter((toast) => toast.key !== key)), []);
  const shown = useMemo(
    () => toasts.map((toast) => <OneToast key={toast.key} toast={toast} close={close} />),
    [toasts, close],
  );
  return (
    <Context.Provider value={tell}>
      {children}
      <AlertGroup isToast isLiveRegion>
        {shown}
      </AlertGroup>
    </Context.Provider>
  );
}

export function useTell(): Tell {
  return useContext(Context);
}

function OneToast({ toast, close }: { toast: Toast; close: (key: number) => void }) {
  const { key } = toast;
  const live = useLive();
  const operation = toast.operation === undefined ? undefined : live.tables.operation[toast.operation];
  const error = toast.error ?? operation?.error;
  const running = toast.operation !== undefined && error === undefined && operation?.state !== "done";
  const over = !running && !error;
  useEffect(() => {
    if (!over) return undefined;
    const timer = setTimeout(() => close(key), SUCCESS_MS);
    return () => clearTimeout(timer);
  }, [over, close, key]);

  const parts = error ? partsOf(error) : undefined;
  const variant = parts ? "danger" : running ? "info" : "success";
  const title = parts ? sentence(parts.what) : toast.title;
  return (
    <Alert
      variant={variant}
      title={title}
      {...(running ? { customIcon: <Spinner size="md" aria-label="under way" /> } : {})}
      actionClose={<AlertActionCloseButton onClose={() => close(key)} />}
    >
      {parts && <ErrorBody why={parts.why} fix={parts.fix} />}
      {running && operation && <p className="vbm-faint">{stepText(operation)}</p>}
      {toast.command && <CliBox command={toast.command} />}
    </Alert>
  );
}

/** What an operation does now. */
export function stepText(operation: Operation): string {
  return operation.steps?.at(-1)?.name ?? "accepted";
}
