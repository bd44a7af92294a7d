// Values as people read them. Pure.

const MIB_PER_GIB = 1024;
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** `512 MiB`, `2 GiB`, `1.5 GiB`. */
export function mib(value: number): string {
  if (value < MIB_PER_GIB) return `${value} MiB`;
  const gib = value / MIB_PER_GIB;
  return `${Number.isInteger(gib) ? gib : gib.toFixed(1)} GiB`;
}

/** A size in bytes in the largest unit that leaves at least one whole. */
export function bytes(value: number): string {
  let size = value;
  let unit = 0;
  while (size >= 1024 && unit < UNITS.length - 1) {
    size /= 1024;
    unit += 1;
  }
  const text = size >= 100 || Number.isInteger(size) ? size.toFixed(0) : size.toFixed(1);
  return `${text} ${UNITS[unit] ?? ""}`;
}

/** A span in whole words of its largest unit: `5 s`, `3 min`, `2 h`, `4 d`. */
export function span(milliseconds: number): string {
  const seconds = Math.max(0, Math.floor(milliseconds / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

/** How long ago a time was; empty for one that was never written. */
export function age(at: string | null | undefined, now: number): string {
  const then = at ? Date.parse(at) : Number.NaN;
  return Number.isNaN(then) || then <= 0 ? "" : span(now - then);
}

/** How long something took: `41 ms`, then to a tenth of a second: `0.4 s`, `12.0 s`, `2 min 5 s`. */
export function took(milliseconds: number): string {
  if (milliseconds > 0 && milliseconds < 100) return `${Math.max(1, Math.round(milliseconds))} ms`;
  const seconds = Math.max(0, milliseconds) / 1000;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
}

/** The beginning of a UUID that is enough to name it. */
export function shortId(id: string): string {
  return id.split("-").at(-1)?.slice(-8) ?? id;
}

/** `VmStarted` as `VM started`. */
export function words(camel: string): string {
  const text = camel.replace(/([a-z])([A-Z])/g, "$1 $2").toLowerCase();
  return text.replace(/^vm\b/, "VM").replace(/^./, (first) => first.toUpperCase());
}
