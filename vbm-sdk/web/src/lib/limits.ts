// Limits of ports as people write them: `100mbit`. Pure.

const UNITS = { kbit: 1, mbit: 1_000, gbit: 1_000_000 } as const;

/** A rate in kbit a second; `null` for none, `undefined` for what is no rate. */
export function parseRate(text: string): number | null | undefined {
  const typed = text.trim().toLowerCase();
  if (typed === "" || typed === "none") return null;
  const [, number, unit] = /^(\d{1,9})(kbit|mbit|gbit)$/.exec(typed) ?? [];
  if (number === undefined) return undefined;
  return Number(number) * UNITS[unit as keyof typeof UNITS];
}

/** The shortest way to write it. */
export function rateText(kbit: number | null | undefined): string {
  if (kbit === null || kbit === undefined) return "none";
  if (kbit % UNITS.gbit === 0) return `${kbit / UNITS.gbit}gbit`;
  if (kbit % UNITS.mbit === 0) return `${kbit / UNITS.mbit}mbit`;
  return `${kbit}kbit`;
}

/** A number of connections; `null` for none, `undefined` for what is no number. */
export function parseCount(text: string): number | null | undefined {
  const typed = text.trim().toLowerCase();
  if (typed === "" || typed === "none") return null;
  return /^\d{1,9}$/.test(typed) ? Number(typed) : undefined;
}

/** Addresses as they are typed, one beside the other; each with `=MAC` where it has its own. */
export function parsePairs(text: string): { address: string; mac: string | null }[] {
  const typed = text.split(/[\s,]+/).filter(Boolean);
  return typed.map((one) => {
    const [address = "", mac] = one.split("=");
    const bits = address.includes(":") ? 128 : 32;
    return { address: address.includes("/") ? address : `${address}/${bits}`, mac: mac ?? null };
  });
}

/** The same back: without the length of what is one address. */
export function pairText(pair: { address: string; mac?: string | null }): string {
  const address = pair.address.replace(/^([^:]*)\/32$/, "$1").replace(/^(.*:.*)\/128$/, "$1");
  return pair.mac ? `${address}=${pair.mac}` : address;
}
