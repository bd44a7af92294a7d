// Text as key presses, for "type this text": a console has no clipboard. Pure.
//
// A guest sees keys, not characters. The keys are those of a US keyboard, which is what a guest takes a keyboard for
// until it is told otherwise; a character that this has no key for is sent as itself, for servers that know how.

/** A press of a key: X11's number for the character, the key's place (UI Events KeyboardEvent code), with Shift or not. */
export interface Stroke {
  keysym: number;
  code: string | null;
  shift: boolean;
}

/** X11 keysyms of keys that are not characters (X11/keysymdef.h). */
const KEYSYM_RETURN = 0xff0d;
const KEYSYM_TAB = 0xff09;
export const KEYSYM_SHIFT = 0xffe1;
/** Characters beyond Latin-1 are numbered from here (X11 protocol, appendix A). */
const KEYSYM_UNICODE = 0x01000000;
const LATIN1_END = 0x100;
/** More than this is refused: a guest takes keys one by one. */
export const TYPED_MAX_CHARS = 4_096;

/** Keys of a US keyboard that are neither letters nor on their own: the character without and with Shift. */
const US_KEYS: [plain: string, shifted: string, code: string][] = [
  ["`", "~", "Backquote"],
  ["1", "!", "Digit1"],
  ["2", "@", "Digit2"],
  ["3", "#", "Digit3"],
  ["4", "$", "Digit4"],
  ["5", "%", "Digit5"],
  ["6", "^", "Digit6"],
  ["7", "&", "Digit7"],
  ["8", "*", "Digit8"],
  ["9", "(", "Digit9"],
  ["0", ")", "Digit0"],
  ["-", "_", "Minus"],
  ["=", "+", "Equal"],
  ["[", "{", "BracketLeft"],
  ["]", "}", "BracketRight"],
  ["\\", "|", "Backslash"],
  [";", ":", "Semicolon"],
  ["'", '"', "Quote"],
  [",", "<", "Comma"],
  [".", ">", "Period"],
  ["/", "?", "Slash"],
];

function keyOf(char: string): { code: string; shift: boolean } | undefined {
  if (char === " ") return { code: "Space", shift: false };
  if (/^[a-z]$/i.test(char)) return { code: `Key${char.toUpperCase()}`, shift: char !== char.toLowerCase() };
  const key = US_KEYS.find(([plain, shifted]) => char === plain || char === shifted);
  return key && { code: key[2], shift: char === key[1] };
}

/** How a character is typed; `undefined` for one that no key types. */
function stroke(char: string): Stroke | undefined {
  const number = char.codePointAt(0);
  if (number === undefined) return undefined;
  if (char === "\n" || char === "\r") return { keysym: KEYSYM_RETURN, code: "Enter", shift: false };
  if (char === "\t") return { keysym: KEYSYM_TAB, code: "Tab", shift: false };
  if (number < 0x20 || (number >= 0x7f && number < 0xa0)) return undefined;
  const keysym = number < LATIN1_END ? number : KEYSYM_UNICODE + number;
  return { keysym, ...(keyOf(char) ?? { code: null, shift: false }) };
}

/** The presses that type a text, line ends of each kind once. */
export function strokes(text: string): Stroke[] {
  const chars = [...text.replaceAll("\r\n", "\n")];
  return chars.slice(0, TYPED_MAX_CHARS).flatMap((char) => stroke(char) ?? []);
}
