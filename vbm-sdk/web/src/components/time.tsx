import { useEffect, useState } from "react";
import { age } from "../lib/format";

const TICK_MS = 5_000;

/** The time, now and then. */
export function useNow(everyMs = TICK_MS): number {
  const [now, setNow] = useState(() => Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), everyMs);
    return () => clearInterval(timer);
  }, [everyMs]);
  return now;
}

/** How long ago something was; the exact time is shown on hover. */
export function Ago({ at }: { at: string | null | undefined }) {
  const now = useNow();
  const text = age(at, now);
  if (!at || !text) return <span className="vbm-faint">–</span>;
  return (
    <time dateTime={at} title={new Date(at).toLocaleString()}>
      {text} ago
    </time>
  );
}

/** A time of day with its date where it is not of today. */
export function Clock({ at }: { at: string }) {
  const time = new Date(at);
  const today = new Date().toDateString() === time.toDateString();
  return (
    <time dateTime={at} title={time.toLocaleString()} className="vbm-nowrap">
      {today ? time.toLocaleTimeString() : time.toLocaleString()}
    </time>
  );
}
