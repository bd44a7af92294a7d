// Words for a POSIX shell. Pure.

/** Characters that no shell takes for anything but themselves. */
const PLAIN = /^[A-Za-z0-9_@%+=:,./-]+$/;

/** A word as it is typed in a POSIX shell, quoted when it needs to be. */
export function quote(word: string): string {
  return PLAIN.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}

/** A command line of words. */
export function line(...words: string[]): string {
  return words.map(quote).join(" ");
}

/** An option with its value. A value that begins with `-` is joined to it, so that it is not taken for an option. */
export function option(flag: string, value: string): string[] {
  return value.startsWith("-") ? [`${flag}=${value}`] : [flag, value];
}
